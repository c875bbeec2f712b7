"""JSON files of data sets that cannot be used are named."""

from __future__ import annotations

import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.json_document import read_description, read_json


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "labels.json"
    path.write_bytes(b'\xef\xbb\xbf{"liver": 1}')
    assert read_json(path) == {"liver": 1}


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "\udcff", ""])
def test_a_damaged_file_is_one_line(tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=r"labels\.json: expected JSON, found .*cannot be read as JSON"):
        read_json(path)


def test_a_description_is_an_object(tmp_path):
    (tmp_path / "dataset.json").write_text("[1, 2]")
    with pytest.raises(DatasetError, match=r"expected an object with labels, found \[1, 2\]"):
        read_description(tmp_path)


def test_a_key_twice_with_two_values_is_refused(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"liver": 1, "liver": 2}')
    with pytest.raises(DatasetError, match="the key 'liver' twice, with 1 and 2") as caught:
        read_json(path)
    assert "keep one of the two" in caught.value.remedy
    assert "label_remap: {2: liver}" in caught.value.remedy
    assert read_json(path, keys_twice=True) == {"liver": 2}  # where they do not matter
    path.write_text('{"12": 1, "12": 2}')
    with pytest.raises(DatasetError) as caught:
        read_json(path)
    assert "label_remap: {2: '12'}" in caught.value.remedy  # a tooth, not the class of index 12
    path.write_text('{"liver": 1, "liver": 1}')
    assert read_json(path) == {"liver": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings_are_read(tmp_path, encoding):
    path = tmp_path / "labels.json"
    path.write_bytes('{"Kopf, Müller": 1}'.encode(encoding))
    assert read_json(path) == {"Kopf, Müller": 1}


@pytest.mark.parametrize("text", ['{\n"liver": 1,\n}', '{\n"liver": 1\n// later more\n}'])
def test_the_line_to_correct_is_named(tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"correct line [23]; JSON has no comma behind the last entry, no comments"):
        read_json(path)

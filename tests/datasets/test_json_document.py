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
    path.write_text('{"liver": 1, "liver": 1}')
    assert read_json(path) == {"liver": 1}

"""Only regular files of bounded size are read; what has no end is refused at once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.config.files import load_mapping
from pipeline.config.settings import ConfigError
from pipeline.datasets.csv_table import read_csv
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.json_document import read_json as read_document
from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json
from pipeline.files.regular import read_regular, read_with_sha256
from pipeline.training.resume import read_resume
from pipeline.writers.outputs import OutputOptions, check_table
from pipeline.writers.segmentation import SegmentationError


def test_a_file_is_read_whole_up_to_the_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="over 0 MB"):
        read_regular(path, 4)


def test_content_and_hash_are_of_the_same_file_where_it_is_replaced_in_between(tmp_path):
    path, contents = tmp_path / "x", [b"second", b"first"]

    def read_and_replace(path):
        content = path.read_bytes()
        if contents:
            path.with_name("next").write_bytes(contents.pop(0))
            path.with_name("next").replace(path)
        return content

    path.write_bytes(b"before")
    assert read_with_sha256(path, read_and_replace) == (b"first", hashlib.sha256(b"first").hexdigest())
    contents = [bytes([n]) for n in range(99)]
    with pytest.raises(OSError, match="expected a file that stays, found another one after each reading"):
        read_with_sha256(path, read_and_replace)


@pytest.mark.fault(
    "a pipe or an endless device in the place of a JSON or CSV file, a config, a resume state or a file of the cache",
    "refused in one line, or made again; nothing hangs",
)
@pytest.mark.timeout(240)
def test_what_has_no_end_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(path, 100)
        with pytest.raises(FileError, match="cannot be read"):
            read_json(path)
        for read in (read_document, read_csv):
            with pytest.raises(DatasetError, match="not a regular file"):
                read(path)
    with pytest.raises(OSError, match=r"Is a directory|not a regular file"):
        read_regular(tmp_path, 100)
    with pytest.raises(FileError, match=r"pipe: cannot be resumed from \(.*not a regular file"):
        read_resume(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe: expected the groups .*, found no mapping"):
        load_mapping(tmp_path / "pipe")
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "labels.ctbl")
    with pytest.raises(SegmentationError, match=r"labels.ctbl: cannot be read \(not a regular file\)"):
        check_table(OutputOptions(tmp_path / "out", ("background", "liver")), [])


def test_a_config_may_come_out_of_a_pipe_that_somebody_writes_to():
    """As `--config <(sed … base.yaml)` gives it."""
    reader, writer = os.pipe()
    os.write(writer, b"training: {lr: 0.5}")
    os.close(writer)
    assert load_mapping(Path(f"/dev/fd/{reader}")) == {"training": {"lr": 0.5}}
    os.close(reader)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_regular(tmp_path / "link", 5) == b"1"

"""Bad volume files of every kind; what a header claims is measured in a process with a limit on its memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hostile import Row, check_answer, table_of
from tests.support.hostile_volumes import ROWS, endless, mha, nrrd
from tests.support.volumes import edit_header, hounsfield, save


@table_of("bad volume files", ROWS)
def test_bad_input_is_named_and_nothing_else_is_touched(
    row: Row, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_answer(row, workspace, capsys)


MEASURE = """
import json, resource, sys, time
from transforms.io.errors import VolumeError
from transforms.io.load import read_volume
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
before = peak()
for path in sys.argv[1:]:
    started = time.process_time()
    try:
        said = str(read_volume(path).array.shape)
    except VolumeError as error:
        said = "refused: " + str(error)
    print(json.dumps([said, time.process_time() - started, peak() - before]))
"""


@pytest.mark.fault(
    "headers (NIfTI, NRRD, MetaImage) that claim 10^12 voxels, and gzip that unpacks to gigabytes",
    "refused within 5 s of one core and 100 MB of memory, measured in a process of its own",
)
def test_hostile_headers_take_neither_memory_nor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("scan.nii.gz"), hounsfield("s"))
    whole = gzip.decompress(Path("scan.nii.gz").read_bytes())
    fields: dict[str, dict[str, object]] = {
        "endless": {},
        "far": {"vox_offset": 2.0**30},
        "many": {"dim": [3, 10000, 10000, 10000, 1, 1, 1, 1]},
        "wide": {"dim": [3, 1200, 1000, 900, 1, 1, 1, 1], "datatype": 64, "bitpix": 64},
    }
    for name, changes in fields.items():
        Path(f"{name}.nii.gz").write_bytes(gzip.compress(whole))
        edit_header(Path(f"{name}.nii.gz"), **changes)
        endless(
            f"{name}.nii.gz", gzip.decompress(Path(f"{name}.nii.gz").read_bytes()), 9000 if name == "wide" else 2048
        )
    Path("many.nrrd").write_bytes(nrrd("10000 10000 10000"))
    Path("many.mha").write_bytes(mha("10000 10000 10000"))
    Path("packed.mha").write_bytes(mha("1000 1000 2000", more="CompressedData = True\n"))
    names = ["endless.nii.gz", "far.nii.gz", "many.nii.gz", "wide.nii.gz", "many.nrrd", "many.mha", "packed.mha"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, check=True)
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == len(names)
    for name, (said, seconds, megabytes) in zip(names, measured, strict=True):
        assert said.startswith(f"refused: {name}: "), said
        assert seconds < 5, (name, seconds)
        assert megabytes < 100, (name, megabytes)

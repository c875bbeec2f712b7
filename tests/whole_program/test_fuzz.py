"""Files mutated at random: whatever they say, the answer is a result or an expected error, soon and in little memory.

`make test` tries the same few examples every time; `make fuzz` tries new ones for minutes (FUZZ_EXAMPLES a test). What
ITK or GDCM died of would end the whole test run, and so be noticed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.cli.main import is_input_error, main
from pipeline.config.files import load_mapping
from pipeline.datasets.listing import list_cases
from pipeline.evaluation.comparison import compare_metrics
from pipeline.runs.run_folder import RunFolder
from tests.support.finished_run import documented_config, finished_run
from tests.support.volumes import CLASSES, hounsfield, organs, save, write_series
from transforms.io.errors import VolumeError
from transforms.io.load import read_volume

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,  # the alarm below ends what hangs
    phases=[Phase.generate] if not EXAMPLES else [Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
SECONDS = 20
GIGABYTES = 2


class Hang(BaseException):
    """More than SECONDS for one small file."""


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Run with an alarm clock and with 2 GB of address space beyond what is in use."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


# What is changed ------------------------------------------------------------------------------------------------------

ODD_WORDS = st.sampled_from(
    [
        b"0",
        b"-1",
        b"nan",
        b"inf",
        b"1e400",
        b"99999999999",
        b"2147483648",
        b"",
        b" ",
        b"\n",
        b"..",
        b"/etc/passwd",
        b"%d",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes, header: int) -> bytes:
    """Bytes changed, put in, taken out or replaced by odd words, mostly in the first `header` bytes."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(header, len(content)) - 1)))
        kind = draw(st.sampled_from(["change", "change", "insert", "remove", "word", "cut"]))
        if kind == "change":
            content[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 16))]
        elif kind == "word":
            content[at : at + draw(st.integers(0, 6))] = draw(ODD_WORDS)
        else:
            del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["..", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "__import__('os')", "🫀"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document in which one or two values, somewhere, are others or gone."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        holder, key = document, None
        while isinstance(holder, dict | list) and holder:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
            if not isinstance(holder[key], dict | list) or not holder[key] or draw(st.integers(0, 3)) == 0:
                break
            holder = holder[key]
        if key is None:
            return draw(VALUES)
        if draw(st.integers(0, 4)) == 0:
            del holder[key]
        else:
            holder[key] = draw(VALUES)
    return document


# Volumes --------------------------------------------------------------------------------------------------------------


def volume_bytes(folder: Path, name: str) -> bytes:
    path = folder / name
    if ".nii" in name:
        save(path, hounsfield("a"))
    else:
        image = sitk.GetImageFromArray(hounsfield("a"))
        sitk.WriteImage(image, str(path), useCompression="z" in name)
    return path.read_bytes()


def read_or_refuse(path: Path) -> None:
    with within_limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of odd values; what it then gives is judged
        with contextlib.suppress(VolumeError):
            volume = read_volume(path)
            assert volume.array.size <= 2**31
            assert np.isfinite(volume.affine).all()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.fault(
    "NIfTI, NRRD, MetaImage and DICOM files mutated at random", "a volume or one line; under 2 GB, no hang"
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "az.nrrd", "a.mha", "az.mha"])
def test_a_mutated_volume_is_read_or_refused(tmp_path: Path, name: str) -> None:
    whole = volume_bytes(tmp_path, name)
    header = 700 if "nii" not in name else 352

    @FUZZ
    @given(mutated(gzip.decompress(whole) if name.endswith(".gz") else whole, header))
    def try_one(content: bytes) -> None:
        (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        read_or_refuse(tmp_path / name)

    try_one()


@pytest.mark.fault(
    "NIfTI, NRRD, MetaImage and DICOM files mutated at random", "a volume or one line; under 2 GB, no hang"
)
def test_a_mutated_dicom_slice_is_read_or_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "series", [0, 3, 6])
    path = sorted((tmp_path / "series").iterdir())[1]
    whole = path.read_bytes()

    @FUZZ
    @given(mutated(whole[128:], len(whole) - 128 - 400))
    def try_one(content: bytes) -> None:
        path.write_bytes(bytes(128) + content)
        read_or_refuse(tmp_path / "series")

    try_one()


# Texts ----------------------------------------------------------------------------------------------------------------


def expected_or(act: Callable[[], object]) -> None:
    """Run; an error that the command line does not expect is a fault."""
    with within_limits():
        try:
            act()
        except Exception as error:
            if not is_input_error(error):
                raise


def nnunet(root: Path) -> dict[str, Any]:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in "ab":
        save(root / f"imagesTr/{name}_0000.nii.gz", hounsfield(name))
        save(root / f"labelsTr/{name}.nii.gz", organs())
    return {"channel_names": {"0": "CT"}, "labels": CLASSES, "file_ending": ".nii.gz", "numTraining": 2}


ENTRIES = [
    {"image": f"imagesTr/{n}_0000.nii.gz", "label": f"labelsTr/{n}.nii.gz", "fold": i} for i, n in enumerate("ab")
]
LIST = [{"case": n, "image": f"imagesTr/{n}_0000.nii.gz", "label": f"labelsTr/{n}.nii.gz", "split": s, "subject": n}
        for n, s in zip("ab", ("train", "val"), strict=True)]  # fmt: skip


@pytest.mark.fault("dataset.json, CSV and JSON lists mutated at random", "a data set or one line for each entry")
@pytest.mark.parametrize("layout", ["nnunet", "msd", "list"])
def test_a_mutated_description_is_listed_or_refused(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "data"
    document = nnunet(root) | ({"training": ENTRIES} if layout == "msd" else {})
    target = root / "dataset.json" if layout != "list" else root / "cases.json"
    document = {"cases": LIST, "labels": CLASSES, "channel_names": ["CT"]} if layout == "list" else document
    whole = json.dumps(document).encode()

    @FUZZ
    @given(changed(document).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        target.write_bytes(content)
        expected_or(lambda: list_cases(target if layout == "list" else root, layout))
        expected_or(lambda: list_cases(target if layout == "list" else root, layout, strict=False))

    try_one()


@pytest.mark.fault("dataset.json, CSV and JSON lists mutated at random", "a data set or one line for each entry")
def test_a_mutated_csv_is_listed_or_refused(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES))
    rows = ["case,subject,image,label,split", *(",".join(map(str, c.values())) for c in LIST)]
    whole = "\n".join([rows[0], *(f"{c['case']},{c['subject']},{c['image']},{c['label']},{c['split']}" for c in LIST)])

    @FUZZ
    @given(mutated(whole.encode(), len(whole)))
    def try_one(content: bytes) -> None:
        (tmp_path / "cases.csv").write_bytes(content)
        expected_or(lambda: list_cases(tmp_path / "cases.csv"))

    try_one()


@pytest.mark.fault("config files mutated at random", "settings or one line that names the setting")
def test_a_mutated_config_is_read_or_refused(tmp_path: Path) -> None:
    document = documented_config()
    document["model"]["network"] = {"_target_": "SegResNet", "init_filters": 8}
    path = tmp_path / "c.yaml"

    def print_config() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["train", "--config", str(path), "--print_config"]) in (0, 2)

    @FUZZ
    @given(
        changed(document).map(lambda d: yaml.safe_dump(d, allow_unicode=True).encode("utf-8", "surrogatepass"))
        | mutated(yaml.safe_dump(json.loads(json.dumps(document))).encode(), 600)
    )
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        expected_or(lambda: load_mapping(path))
        with within_limits():
            print_config()

    try_one()


@pytest.mark.fault("the JSON files of a run mutated at random", "plot and compare name the file, or work")
@pytest.mark.parametrize("name", ["training_config.json", "training_log.json", "training_summary.json"])
def test_a_mutated_run_is_read_or_refused(tmp_path: Path, name: str) -> None:
    config = json.loads(json.dumps(documented_config()))
    first = finished_run(tmp_path / "logs", config)
    shutil.copytree(first.path, tmp_path / "logs" / "second")
    path = tmp_path / "logs" / "second" / name
    whole = path.read_bytes()

    def read_all() -> None:
        second = RunFolder.at(tmp_path / "logs" / "second")
        second.read_log(), second.read_config(), second.read_summary()

    @FUZZ
    @given(changed(json.loads(whole)).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        expected_or(read_all)
        with within_limits(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["compare", str(tmp_path / "logs")]) in (0, 2)
            if name == "training_log.json" and EXAMPLES:  # a picture takes half a second
                assert main(["plot", str(path.parent)]) in (0, 2)

    try_one()


@pytest.mark.fault("the JSON files of a run mutated at random", "plot and compare name the file, or work")
def test_mutated_metrics_are_compared_or_refused(tmp_path: Path) -> None:
    scores = {"dice": 0.5, "iou": 0.4, "hd95_mm": 3.0, "surface_dice": 0.6}
    document = {
        "format": 2,
        "class_names": ["background", "liver"],
        "settings": {"tolerance_mm": 2.0},
        "cases": [{"case": n, "label_sha256": "0", "classes": {"liver": scores}} for n in "abc"],
    }
    (tmp_path / "first.json").write_text(json.dumps(document))
    whole = json.dumps(document).encode()

    @FUZZ
    @given(changed(document).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        (tmp_path / "second.json").write_bytes(content)
        expected_or(lambda: compare_metrics(tmp_path / "first.json", tmp_path / "second.json"))

    try_one()

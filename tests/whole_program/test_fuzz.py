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
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import yaml
from hypothesis import given

from pipeline.cli.main import main
from pipeline.config.files import load_mapping
from pipeline.datasets.listing import list_cases
from tests.support.finished_run import documented_config
from tests.support.mutations import FUZZ, changed, expected_or, mutated, within_limits
from tests.support.volumes import CLASSES, hounsfield, organs, save, write_series
from transforms.io.errors import VolumeError
from transforms.io.load import read_volume

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

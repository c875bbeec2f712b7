"""Public data sets are read as docs/data.md says: imitations with the names that their archives have, files empty."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.dataset import label_files
from pipeline.datasets.listing import list_cases
from tests.support.datasets import LABELS, refused, write_json
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("## Public data sets")[2].partition("\n## ")[0]
SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
MASKS = "segmentations/liver.nii.gz, {}/segmentations/aorta.nii.gz"

GIVEN = {
    "TotalSegmentator": (f"s{{n}}/ct.nii.gz, s{{n}}/{MASKS.format('s{n}')}", "CT", 3, 3),
    "TotalSegmentator MRI": (f"s{{n}}/mri.nii.gz, s{{n}}/{MASKS.format('s{n}')}", "MR", 3, 3),
    "AbdomenAtlas": (f"BDMAP_{{n}}/ct.nii.gz, BDMAP_{{n}}/{MASKS.format('BDMAP_{n}')}", "CT", 3, 3),
    "Decathlon": ("imagesTr/la_{n}.nii.gz, labelsTr/la_{n}.nii.gz, imagesTr/._la_{n}.nii.gz", "CT", 3, 3),
    "WORD": ("images{part}/w_{n}.nii.gz, labels{part}/w_{n}.nii.gz", "CT", 3, 3),
    "AMOS22": ("images{part}/amos_000{n}.nii.gz, labels{part}/amos_000{n}.nii.gz", "CT", 3, 3),
    "BTCV": (
        "RawData/Training/img/img000{n}.nii.gz, RawData/Training/label/label000{n}.nii.gz, "
        "RawData/Testing/img/img006{n}.nii.gz",
        "image", 3, 3,
    ),
    "KiTS19": (
        "kits19/data/case_{n}/imaging.nii.gz, kits19/data/case_{n}/segmentation.nii.gz, kits19/data/kits.json, "
        "kits19/data/case_00299/imaging.nii.gz",
        "imaging", 3, 3,
    ),
    "KiTS23": (
        "kits23/dataset/case_{n}/imaging.nii.gz, kits23/dataset/case_{n}/segmentation.nii.gz, kits23/dataset/k.json, "
        "kits23/dataset/case_{n}/instances/kidney_instance-1_annotation-1.nii.gz",
        "imaging", 3, 3,
    ),
    "LiTS": ("Training Batch 1/volume-{n}.nii, Training Batch 1/segmentation-{n}.nii", "image", 3, 3),
    "FLARE22": ("FLARE22Train/images/Tr_000{n}_0000.nii.gz, FLARE22Train/labels/Tr_000{n}.nii.gz", "image", 3, 3),
    "SPIDER": ("images/{n}_t1.mha, masks/{n}_t1.mha, images/{n}_t2_SPACE.mha, masks/{n}_t2_SPACE.mha", "image", 6, 3),
    "CT-ORG": ("volume-{n}.nii.gz, labels-{n}.nii.gz, README.txt", "image", 3, 3),
    "PROMISE12": ("Case{n}.mhd, Case{n}.raw, Case{n}_segmentation.mhd, Case{n}_segmentation.raw", "image", 3, 3),
    "MM-WHS": ("ct_train_100{n}_image.nii.gz, ct_train_100{n}_label.nii.gz", "image", 3, 3),
    "COVID-19-20": ("volume-covid19-A-{n}_ct.nii.gz, volume-covid19-A-{n}_seg.nii.gz", "image", 3, 3),
    "BraTS up to 2021": (
        ", ".join(f"B_{{n}}/B_{{n}}_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2", "seg")),
        "flair t1 t1ce t2", 3, 3,
    ),
    "BraTS from 2023 on": (
        ", ".join(f"B-{{n}}-00{v}/B-{{n}}-00{v}-{name}.nii.gz" for v in "01" for name in ("t1c", "t1n", "t2w", "seg")),
        "t1c t1n t2w", 6, 3,
    ),
    "SegTHOR": ("Patient_{n}/Patient_{n}.nii.gz, Patient_{n}/GT.nii.gz", "image", 3, 3),
    "HaN-Seg": ("case_{n}/ct.nrrd, case_{n}/segmentations/Lips.nrrd, case_{n}/segmentations/Eye_L.nrrd", "CT", 3, 3),
    "KiTS21": (
        "data/case_{n}/imaging.nii.gz, data/case_{n}/aggregated_MAJ_seg.nii.gz, data/kits.json, "
        "data/case_{n}/segmentations/kidney_instance-1_annotation-1.nii.gz, data/case_{n}/aggregated_OR_seg.nii.gz",
        "CT", 3, 3,
    ),
    "VerSe": (
        "dataset-01training/rawdata/sub-v{n}/sub-v{n}_ct.nii.gz, "
        "dataset-01training/derivatives/sub-v{n}/sub-v{n}_seg-vert_msk.nii.gz",
        "CT", 3, 3,
    ),
    "ISLES22": (
        "sub-s{n}/ses-0001/dwi/sub-s{n}_ses-0001_dwi.nii.gz, sub-s{n}/ses-0001/dwi/sub-s{n}_ses-0001_adc.nii.gz, "
        "sub-s{n}/ses-0001/anat/sub-s{n}_ses-0001_FLAIR.nii.gz, participants.tsv, "
        "derivatives/sub-s{n}/ses-0001/sub-s{n}_ses-0001_msk.nii.gz",
        "DWI ADC", 3, 3,
    ),
    "FeTA": ("sub-{n}/anat/sub-{n}_rec-mial_T2w.nii.gz, sub-{n}/anat/sub-{n}_rec-mial_dseg.nii.gz", "T2w", 3, 3),
    "ATLAS R2.0": (
        "Training/R001/sub-r{n}/ses-1/anat/sub-r{n}_ses-1_T1w.nii.gz, "
        "Training/R001/sub-r{n}/ses-1/anat/sub-r{n}_ses-1_label-L_desc-T1lesion_mask.nii.gz",
        "T1w", 3, 3,
    ),
    "ACDC": (
        ", ".join(
            f"training/patient{{n}}/patient{{n}}_{name}.nii.gz"
            for name in ("4d", "frame01", "frame01_gt", "frame12", "frame12_gt")
        ),
        "MR", 6, 3,
    ),
    "autoPET": (
        ", ".join(f"PETCT_{{n}}/{day}/{name}.nii.gz" for day in "34" for name in ("CT", "CTres", "PET", "SUV", "SEG")),
        "CT PET", 6, 3,
    ),
    "HECKTOR": (
        "imagesTr/CHUM-{n}__CT.nii.gz, imagesTr/CHUM-{n}__PT.nii.gz, labelsTr/CHUM-{n}.nii.gz",
        "CT PET", 3, 3,
    ),
    "WMH": (
        "Utrecht/{n}/pre/FLAIR.nii.gz, Utrecht/{n}/pre/T1.nii.gz, Utrecht/{n}/orig/T1.nii.gz, Utrecht/{n}/wmh.nii.gz",
        "FLAIR T1", 3, 3,
    ),
    "LA 2018": ("Training Set/A{n}/lgemri.nrrd, Training Set/A{n}/laendo.nrrd", "MR", 3, 3),
}  # fmt: skip
"""By data set: its files, {n} being the number of a case; then channels, cases and subjects as they should be read."""


def lay_out(root: Path, name: str) -> None:
    """Make the empty files of a data set, and the tables that it brings."""
    part_of = {"1": "Tr", "2": "Tr", "3": "Va" if name == "AMOS22" else "Val"}
    for file in GIVEN[name][0].split(", "):
        for number, part in part_of.items():
            path = root / file.replace("{n}", number).replace("{part}", part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    if name.startswith("TotalSegmentator"):
        lines = ["\ufeffimage_id;age;study_type;split", "s1;60;ct abdomen;train", "s2;;ct;train", "s3;60;ct;val"]
        (root / "meta.csv").write_text("\n".join(lines), encoding="utf-8")
    if name in ("Decathlon", "AMOS22", "WORD"):
        found = sorted(path.relative_to(root).as_posix() for path in root.glob("images*/[!.]*"))
        pairs = [{"image": f"./{image}", "label": f"./{image.replace('images', 'labels')}"} for image in found]
        parts = {
            "training": [pair for pair in pairs if "imagesV" not in pair["image"]],
            "test": ["./imagesTs/t.nii.gz"],
        }
        if len(parts["training"]) < len(pairs):
            parts["validation"] = [pair for pair in pairs if "imagesV" in pair["image"]]
        (root / "imagesTs").mkdir()
        (root / "imagesTs/t.nii.gz").touch()
        write_json(root / "dataset.json", {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a"}, **parts})


def rows(head: str) -> dict[str, list[str]]:
    """The other cells of the table with this head by data set."""
    table = re.search(rf"^\| data set \| {head}.*\n\|[- |]+\|\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    assert table
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table[1].splitlines()]
    plain = [[cell.strip().replace("\\|", "|") for cell in of_row] for of_row in cells]
    return {name.partition(" (")[0]: [*others, name] for first, *others in plain for name in first.split(", ")}


PLAIN, LISTED = rows("give"), rows("LABEL")


@pytest.mark.parametrize("name", GIVEN)
def test_a_public_data_set_is_read_as_the_page_says(tmp_path, name):
    lay_out(tmp_path, name)
    cells = LISTED.get(name) or PLAIN[name]
    folder = tmp_path
    if name in LISTED:
        patterns = [cell.strip("`") for cell in cells[:3]]
        subprocess.run([sys.executable, "-c", SCRIPTS[0], str(tmp_path), *patterns], check=True)
    elif cells[0].startswith("`"):
        folder = tmp_path / cells[0].split("`")[1]
    if name in LISTED or cells[1].startswith("`labels.json`"):
        refused(folder, "names of the classes, found none")
        write_json(folder / "labels.json", LABELS)
    pattern = re.search(r"--data.subject_pattern '([^']*)'", " ".join(cells))
    skips_bad = "--skip_bad_cases" in " ".join(cells)
    found = list_cases(folder, subject_pattern=pattern[1] if pattern else "", strict=not skips_bad)
    subjects = {case.subject for case in found.cases}
    assert (" ".join(found.channel_names), len(found.cases), len(subjects)) == GIVEN[name][1:]
    assert len(found.refused) == skips_bad
    assert not found.warnings
    if found.split:
        assert [len(cases) for _, cases in found.split.items()] == [2, 1, 0]
    for case in found.cases:  # each with files of its own, so that no label is taken for an image
        assert len({*case.image, *label_files(case.label)}) == len(case.image) + len(label_files(case.label))


def test_every_data_set_of_the_page_is_tried():
    converted = {"those of the next table", "Decathlon's BrainTumour and Prostate"}
    converted |= {"LIDC-IDRI", "NSCLC-Radiomics", "CHAOS"}
    assert {*PLAIN, *LISTED} - converted == {*GIVEN}


def test_frames_of_the_decathlon_are_channels(tmp_path):
    files = ["imagesTr/BRATS_001.nii.gz", "imagesTs/BRATS_002.nii.gz"]
    for name in (*files, "labelsTr/BRATS_001.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.arange(32, dtype=np.float32).reshape(2, 2, 2, 4), np.eye(4)), tmp_path / name)
    modality = dict(zip("0123", ("FLAIR", "T1w", "t1gd", "T2w"), strict=True))
    training = [{"image": f"./{files[0]}", "label": "./labelsTr/BRATS_001.nii.gz"}]
    content = {"modality": modality, "labels": {"0": "background", "1": "edema"}, "training": training}
    write_json(tmp_path / "dataset.json", content | {"test": [f"./{files[1]}"]})
    found = list_cases(tmp_path)
    assert found.channel_names == tuple(modality.values())
    assert [case.frames for case in (*found.cases, *found.unlabelled)] == [(0, 1, 2, 3)] * 2

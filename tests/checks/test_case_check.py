"""One case by itself: every fault is a finding that names its file, and no fault hides another."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.checks.case_check import CheckedCase, check_case, check_cases
from pipeline.datasets.joined import list_data_sets
from pipeline.datasets.listing import list_cases
from tests.support.datasets import nnunet
from tests.support.screening import plain
from tests.support.volumes import AFFINE, Folder, hounsfield, organs, save, with_value


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def checked(folder: Folder, case: str, fill_nan: float | None = None) -> CheckedCase:
    dataset = list_cases(folder.write())
    return check_case(next(listed for listed in dataset.cases if listed.id == case), dataset, fill_nan=fill_nan)


def test_a_good_case_is_measured_and_has_no_findings(folder: Folder) -> None:
    case = checked(folder, "a")
    assert case.findings == ()
    assert case.label is not None
    assert case.label.class_voxels[1:].tolist() == [27, 27, 48]
    assert len(case.images[0].by_class) == 4
    inside = hounsfield("a")[organs() == 3]
    assert case.images[0].by_class[3][1] == pytest.approx(np.median(inside))


def test_a_fault_of_the_image_hides_none_of_the_label(folder: Folder) -> None:
    save(folder.image("a"), with_value(hounsfield("a"), np.nan))
    save(folder.label("a"), 0 * organs(), AFFINE @ np.diag([1, 1, 1.5, 1]))
    assert {finding.kind for finding in checked(folder, "a").findings} == {"not_finite", "grid_mismatch", "empty_label"}


@pytest.mark.fault(
    "a float64 volume with a voxel beyond float32, in which a training computes",
    "check and train refuse the case by name; --skip_bad_cases leaves it out",
)
def test_a_float64_beyond_float32_is_named_as_the_training_would_see_it(folder: Folder) -> None:
    image = hounsfield("a").astype(np.float64)
    image[3, 3, 3] = 1e300
    save(folder.image("a"), image)
    (finding,) = checked(folder, "a").findings
    assert (finding.severity, finding.kind) == ("error", "not_finite")
    assert finding.found == "1 voxels that are NaN, infinite or beyond float32"


def without_a_field_of_view(folder: Folder, value: float) -> None:
    image = hounsfield("a").astype(np.float32)
    image[:, :, 11] = value
    save(folder.image("a"), image)


def test_nan_outside_the_field_of_view_is_measured_as_the_number_that_fills_it(folder: Folder) -> None:
    without_a_field_of_view(folder, -1024)
    expected = checked(folder, "a").images[0]
    without_a_field_of_view(folder, np.nan)
    (finding,) = checked(folder, "a").findings
    assert finding.kind == "not_finite"
    assert "set data.fill_nan (-1024 in a CT)" in finding.remedy
    filled = checked(folder, "a", fill_nan=-1024)
    assert filled.findings == ()
    assert filled.images[0].content == expected.content
    assert (filled.images[0].minimum, filled.images[0].intensities) == (expected.minimum, expected.intensities)


def test_a_number_for_nan_that_is_far_from_the_others_is_warned_of(folder: Folder) -> None:
    """A CT's -1024 in a PET: scaled by mean and deviation, all that the network is to tell apart would be one grey."""
    pet = np.random.default_rng(0).gamma(2, 1, hounsfield("a").shape).astype(np.float32)
    pet[:, :, 11] = np.nan
    save(folder.image("a"), pet)
    assert checked(folder, "a", fill_nan=0).findings == ()
    (finding,) = checked(folder, "a", fill_nan=-1024).findings
    assert (finding.severity, finding.kind) == ("warning", "far_fill_nan")
    assert finding.found.startswith(f"{pet[:, :, 11].size} voxels that become -1024, the others are from 0.0")


def test_each_channel_has_a_number_for_nan_of_its_own(folder: Folder) -> None:
    """CT and PET: air in the one is none in the other."""
    without_a_field_of_view(folder, np.nan)
    dataset = list_cases(folder.write())
    both = replace(dataset.cases[0], image=dataset.cases[0].image * 2)
    ct, pet = check_case(both, dataset, fill_nan=[-1024, 0]).images
    assert (ct.minimum, ct.n_not_finite, pet.n_not_finite) == (-1024, 0, 0)
    assert ct.content != pet.content
    assert pet.content == checked(folder, "a", fill_nan=0).images[0].content


def test_channels_in_one_file_are_measured_as_those_in_files_of_their_own(folder: Folder) -> None:
    dataset = list_cases(folder.write())
    files = [folder.image(case) for case in "abd"]
    save(folder.image("c"), np.stack([nib.load(file).get_fdata(dtype=np.float32) for file in files], -1))
    case = replace(dataset.cases[0], image=(folder.image("c"),), frames=(0, 1, 2))
    found, apart = check_case(case, dataset), check_case(replace(case, image=tuple(files), frames=()), dataset)
    assert found.findings == ()
    for one, other in zip(found.images, apart.images, strict=True):
        assert plain([replace(apart, images=(replace(one, path=other.path, dtype=other.dtype),))]) == plain(
            [replace(apart, images=(other,))]
        )
    turned = check_case(replace(case, frames=(2, 0, 1)), dataset)
    assert [image.content for image in turned.images] == [found.images[n].content for n in (2, 0, 1)]
    (finding,) = check_case(replace(case, frames=(0, 1)), dataset).findings
    assert (finding.kind, finding.expected) == ("not_3d", "2 frames of a NIfTI file, one a channel")
    image = np.stack([hounsfield("a"), hounsfield("b")], -1).astype(np.float32)
    image[3, 3, 3, 1] = np.nan
    save(folder.image("c"), image)
    (finding,) = check_case(replace(case, frames=(0, 1)), dataset).findings
    assert (finding.kind, finding.file) == ("not_finite", f"{folder.image('c')}, frame 1")


def test_filling_nan_keeps_infinite_voxels_an_error(folder: Folder) -> None:
    without_a_field_of_view(folder, np.inf)
    (finding,) = checked(folder, "a", fill_nan=-1024).findings
    assert (finding.severity, finding.kind) == ("error", "not_finite")
    assert "fill_nan" not in finding.remedy


def test_a_label_over_nan_is_warned_of(folder: Folder) -> None:
    image = hounsfield("a").astype(np.float32)
    image[6:10, 8, 7] = np.nan  # four voxels of the liver
    save(folder.image("a"), image)
    (finding,) = checked(folder, "a", fill_nan=-1024).findings
    assert (finding.severity, finding.kind) == ("warning", "nan_labelled")
    assert finding.found.startswith("4 labelled voxels of NaN")


def test_a_label_of_64_unsigned_bits_is_named_and_ends_nothing(folder: Folder) -> None:
    label = organs().astype(np.uint64)
    label[:, :, 3] = 2**64 - 1
    nib.save(nib.Nifti1Image(label, AFFINE, dtype=np.uint64), folder.label("a"))
    (finding,) = checked(folder, "a").findings
    assert (finding.kind, finding.file) == ("label_not_integral", str(folder.label("a")))


def test_a_sheared_grid_is_a_warning(folder: Folder) -> None:
    shear = AFFINE.copy()
    shear[0, 2] = 0.3  # 0.3 mm to the side a slice of 3 mm: 5.7 degrees
    save(folder.image("a"), hounsfield("a"), shear)
    save(folder.label("a"), organs(), shear)
    kinds = {finding.kind: finding.found for finding in checked(folder, "a").findings}
    assert kinds.pop("sheared") == "axes 5.7 degrees away from right angles"
    assert set(kinds) <= {"sform_qform"}  # a quaternion cannot hold a shear


def seg_nrrd(path: Path, label: np.ndarray, values: dict[str, int]) -> None:
    segments = enumerate(values.items())
    fields = "".join(f"Segment{n}_Name:={name}\nSegment{n}_LabelValue:={value}\n" for n, (name, value) in segments)
    sizes = " ".join(map(str, label.shape))
    head = (
        f"NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
        "space directions: (-2,0,0) (0,-2,0) (0,0,3)\nkinds: domain domain domain\nendian: little\nencoding: gzip\n"
        f"space origin: (0,0,0)\n{fields}\n"
    )
    path.write_bytes(head.encode() + gzip.compress(label.tobytes(order="F")))


@pytest.mark.parametrize("spelled", [str, str.upper, lambda name: name.replace("_", " ").capitalize()])
def test_a_segmentation_whose_header_exchanges_values_is_an_error(
    folder: Folder, spelled: Callable[[str], str]
) -> None:
    """3D Slicer numbers the segments of every file by itself: liver and kidney exchanged train livers as kidneys."""
    same = {"kidney_left": 1, "kidney_right": 2, "liver": 3}
    for name, values in (("a", same), ("b", same | {"kidney_left": 3, "liver": 1})):
        label = np.zeros_like(organs())
        for structure, value in values.items():
            label[organs() == same[structure]] = value
        seg_nrrd(folder.root / f"{name}.seg.nrrd", label, {spelled(name): value for name, value in values.items()})
        folder[name]["label"] = f"{name}.seg.nrrd"
    assert checked(folder, "a").findings == ()
    (finding,) = checked(folder, "b").findings
    assert (finding.severity, finding.kind) == ("error", "segment_values")
    kidney, liver = spelled("kidney_left"), spelled("liver")
    assert finding.found == f"{kidney} at 3, {liver} at 1 by the segments in its own header"


def test_cases_come_back_in_their_order_and_one_by_one(folder: Folder) -> None:
    dataset = list_cases(folder.write())
    seen: list[str] = []
    steps: list[tuple[int, int]] = []
    found = check_cases(
        dataset.cases,
        dataset,
        workers=3,
        progress=lambda done, total, what="", note="": steps.append((done, total)),
        on_case=lambda case: seen.append(case.case),
    )
    assert [case.case for case in found] == [case.id for case in dataset.cases]
    assert sorted(seen) == sorted(case.id for case in dataset.cases)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_segment_of_a_class_that_only_another_data_set_names_has_no_value_to_agree_with(folder: Folder) -> None:
    same = {"kidney_left": 1, "kidney_right": 2, "liver": 3}
    seg_nrrd(folder.root / "a.seg.nrrd", organs(), same | {"spleen": 4})
    folder["a"]["label"] = "a.seg.nrrd"
    other = nnunet(folder.root / "other", cases=("z",), labels={"background": 0, "spleen": 1})
    dataset = list_data_sets([folder.write(), other], "auto")
    (case,) = [case for case in dataset.cases if case.id == "a"]
    assert [finding.kind for finding in check_cases([case], dataset)[0].findings] == []

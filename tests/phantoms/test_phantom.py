"""Phantoms against closed forms, nibabel, SimpleITK and a real scan: sides, volumes, partial volume, files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from pipeline.phantoms import phantom, sample_dataset
from pipeline.phantoms.anatomy import CLASS_NAMES, Body, Structure, draw_body
from pipeline.phantoms.balls import balls, geometry_proof
from pipeline.phantoms.phantom import ORIENTATIONS, Phantom, PhantomError, draw_grid, make_body
from pipeline.phantoms.shapes import Ellipsoid, Loft, Shape, Tube, Warp

SPACING_MM = (3.7, 4.0, 4.4)


@pytest.fixture(scope="module")
def body() -> Phantom:
    """One person on an oblique, left-handed, anisotropic grid."""
    return make_body(11, spacing_mm=SPACING_MM, orientation="SLP", oblique_deg=9)


def centroids_mm(label: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """World position of every class that a label map holds."""
    where, found = np.argwhere(label > 0), label[label > 0]
    counts = np.bincount(found, minlength=len(CLASS_NAMES))
    sums = np.stack([np.bincount(found, weights=column, minlength=len(CLASS_NAMES)) for column in where.T], 1)
    present = [n for n in range(1, len(CLASS_NAMES)) if counts[n]]
    places = nib.affines.apply_affine(affine, sums[present] / counts[present, None])
    return dict(zip((CLASS_NAMES[n] for n in present), places, strict=True))


def volumes_ml(scan: Phantom) -> np.ndarray:
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    return np.bincount(scan.label.ravel(), minlength=len(CLASS_NAMES)) * voxel_ml


def tilted_affine(spacing_mm: tuple[float, float, float], origin_mm: tuple[float, float, float]) -> np.ndarray:
    """A left-handed grid turned by 20 degrees about z and 10 about x."""
    a, b = np.radians(20), np.radians(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1, 1, 1]) * spacing_mm
    affine[:3, 3] = origin_mm
    return affine


def test_there_are_70_structures_and_a_background() -> None:
    assert len(CLASS_NAMES) == 71
    assert len(set(CLASS_NAMES)) == 71
    assert CLASS_NAMES[0] == "background"
    assert {f"vertebrae_{level}" for level in ("C1", "C7", "T1", "T12", "L1", "L5")} <= set(CLASS_NAMES)


def test_every_left_structure_has_a_right_one() -> None:
    lefts = {name for name in CLASS_NAMES if name.endswith("_left")}
    assert len(lefts) == 13
    assert all(name.replace("_left", "_right") in CLASS_NAMES for name in lefts)


def test_the_names_are_those_of_real_label_maps(shared_data: Path) -> None:
    known = set().union(*json.loads((shared_data / "class_names.json").read_text()).values())
    ours_alone = set(CLASS_NAMES) - known
    assert ours_alone == {"ribs_left", "ribs_right"}  # all ribs of a side are one class here


def test_every_structure_is_in_the_body(body: Phantom) -> None:
    counts = np.bincount(body.label.ravel(), minlength=71)
    assert counts.min() >= 40
    assert counts[0] == counts.max()


def test_every_structure_survives_the_samples_coarse_grid() -> None:
    for seed in range(3):
        assert len(np.unique(make_body(seed).label)) == 71


def test_a_person_lies_the_same_way_in_the_world_on_every_orientation() -> None:
    assert len(set(ORIENTATIONS)) == 48
    rng = np.random.default_rng(5)
    person = draw_body(rng)
    for code in ORIENTATIONS:
        grid = draw_grid(person, rng, spacing_mm=14.0, orientation=code, oblique_deg=8)
        scan = phantom.render(person, *grid)
        assert "".join(nib.aff2axcodes(scan.affine)) == code
        at = centroids_mm(scan.label, scan.affine)
        for name in at:
            if name.endswith("_left") and name.replace("_left", "_right") in at:
                assert at[name][0] < at[name.replace("_left", "_right")][0], f"{name} in {code}"
        assert at["liver"][0] > 30 > -30 > at["spleen"][0]
        assert at["sternum"][1] > at["heart"][1] > at["vertebrae_T7"][1]
        assert at["brain"][2] > at["heart"][2] > at["urinary_bladder"][2]


def test_left_and_right_are_those_of_a_real_scan(shared_data: Path, body: Phantom) -> None:
    real = nib.Nifti1Image.from_filename(shared_data / "abdomen_ct" / "example_seg_fast_force_split.nii.gz")
    ids = json.loads((shared_data / "class_names.json").read_text())
    ids = ids["abdomen_ct and abdomen_ct_dicom (ids of the 117-structure map)"]
    data, ours = np.asarray(real.dataobj), centroids_mm(body.label, body.affine)
    pairs = [("liver", "spleen"), ("kidney_right", "kidney_left"), ("hip_right", "hip_left")]
    pairs += [("inferior_vena_cava", "aorta"), ("autochthon_right", "autochthon_left")]
    for right, left in pairs:
        real_x = [nib.affines.apply_affine(real.affine, np.argwhere(data == ids[n]).mean(0))[0] for n in (right, left)]
        assert np.sign(ours[right][0] - ours[left][0]) == np.sign(real_x[0] - real_x[1]), (right, left)


def test_vertebrae_stand_on_each_other_in_order(body: Phantom) -> None:
    at = centroids_mm(body.label, body.affine)
    order = [*(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13)), *(f"L{n}" for n in range(1, 6))]
    heights = np.array([at[f"vertebrae_{level}"][2] for level in order])
    assert (np.diff(heights) < -8).all()


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_body() -> None:
    first, again, other = make_body(1, voxel_mm=12), make_body(1, voxel_mm=12), make_body(2, voxel_mm=12)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.label.tobytes() == again.label.tobytes()
    assert first.affine.tobytes() == again.affine.tobytes()
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_volumes_do_not_depend_on_the_resolution() -> None:
    coarse = volumes_ml(make_body(4, spacing_mm=4.4, orientation="RAS", oblique_deg=7))
    fine = volumes_ml(make_body(4, spacing_mm=3.0, orientation="PIL", oblique_deg=11))
    large = fine > 30
    large[0] = False  # the air around the body depends on the grid
    large[[CLASS_NAMES.index(f"femur_{side}") for side in ("left", "right")]] = False  # cut where the scan ends
    assert large.sum() > 25
    np.testing.assert_allclose(coarse[large], fine[large], rtol=0.04)


def test_organs_have_plausible_volumes() -> None:
    """Adult reference volumes in ml, with room for small and large people (ICRP 89, rounded)."""
    expected = {"liver": (800, 2400), "spleen": (80, 400), "kidney_left": (80, 250), "heart": (250, 900)}
    expected |= {"brain": (800, 1800), "vertebrae_L3": (25, 90), "adrenal_gland_left": (2, 14), "pancreas": (25, 140)}
    for seed in range(4):
        found = volumes_ml(make_body(seed, spacing_mm=5.0))
        for name, (low, high) in expected.items():
            assert low < found[CLASS_NAMES.index(name)] < high, (seed, name)


def test_intensities_are_those_of_a_ct(body: Phantom) -> None:
    """HU by class, with room for contrast agent; outside the patient there is air."""
    expected = {"lung_lower_lobe_left": (-900, -700), "liver": (40, 130), "aorta": (60, 320), "brain": (10, 60)}
    expected |= {"femur_right": (200, 900), "trachea": (-1000, -500), "urinary_bladder": (-15, 35)}
    for name, (low, high) in expected.items():
        assert low < np.median(body.image[body.label == CLASS_NAMES.index(name)]) < high, name
    corner = body.image[:5, :5, :5]
    assert abs(corner.mean() + 1000) < 5
    assert 8 < corner.std() < 16
    assert body.image.min() >= -1024


def test_boundary_voxels_hold_the_share_of_each_tissue() -> None:
    """A ball of water in air, without noise: the summed HU give the ball's volume far better than counting voxels."""
    solid = Ellipsoid(np.zeros(3), np.full(3, 20.0), np.eye(3))
    water = Structure(1, (solid,), 0.0, 0.0, 4.0)
    affine = tilted_affine((3.0, 4.0, 5.0), (40.0, -45.0, -50.0))
    scan = phantom.render(Body((water,), np.zeros((1, 3))), (26, 24, 22), affine, noise_hu=0.0)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert (scan.image.astype(float) + 1000).sum() / 1000 * voxel_ml == pytest.approx(33.5103, rel=0.015)
    mixed = (scan.image > -990) & (scan.image < -10)
    assert mixed.sum() > 50
    np.testing.assert_array_equal(scan.label, balls((26, 24, 22), affine, [(0, 0, 0)], [20.0]))
    assert ((scan.image >= -500) == (scan.label == 1)).all()


def test_a_volume_rendered_in_slabs_is_the_same_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_body(6, voxel_mm=11)
    monkeypatch.setattr(phantom, "_SLAB_VOXELS", 5000)
    slabs = make_body(6, voxel_mm=11)
    np.testing.assert_array_equal(whole.label, slabs.label)
    np.testing.assert_array_equal(whole.image, slabs.image)


def test_memory_beyond_the_result_does_not_grow_with_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "_SLAB_VOXELS", 1 << 16)
    extra = []
    for planes in (16, 48):
        tracemalloc.start()
        scan = make_body(6, spacing_mm=(900 / planes, 5.0, 4.0), shape=(planes, 64, 128), orientation="SAR")
        extra.append(tracemalloc.get_traced_memory()[1] - scan.image.nbytes - scan.label.nbytes)
        tracemalloc.stop()
    assert extra[1] < 1.2 * extra[0]


def test_a_ball_of_10_mm_has_4_19_ml() -> None:
    for spacing in ((1.0, 1.0, 1.0), (0.8, 0.8, 2.5)):
        affine = tilted_affine(spacing, (30.0, -30.0, -35.0))
        label = balls((66, 70, 70), affine, [(0.3, 1.1, -0.7)], [10.0])
        assert label.sum() * np.prod(spacing) / 1000 == pytest.approx(4 / 3 * np.pi, rel=0.01)
        np.testing.assert_allclose(
            nib.affines.apply_affine(affine, np.argwhere(label).mean(0)), (0.3, 1.1, -0.7), atol=0.1
        )


def test_a_ball_that_leaves_the_grid_is_refused_with_its_place() -> None:
    with pytest.raises(PhantomError, match=r"ball of 10 mm at \(25\.0, 0\.0, 0\.0\) mm: leaves the grid"):
        balls((30, 30, 30), np.eye(4), [(25, 0, 0)], [10])


@pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "AIR"])
def test_the_geometry_proof_has_its_balls_where_it_says(code: str) -> None:
    rng = np.random.default_rng(0)
    wishes: dict[str, Any] = {
        "spacing_mm": (1.6, 2.0, 2.5),
        "shape": (171, 131, 125),
        "orientation": code,
        "oblique_deg": 12,
    }
    shape, affine = draw_grid(draw_body(rng), rng, **wishes)
    proof = geometry_proof(shape, affine)
    assert set(np.unique(proof.label)) == set(range(len(proof.names) + 1))
    for n, (name, centre, radius) in enumerate(zip(proof.names, proof.centres_mm, proof.radii_mm, strict=True)):
        found = np.argwhere(proof.label == n + 1)
        np.testing.assert_allclose(nib.affines.apply_affine(affine, found.mean(0)), centre, atol=0.6, err_msg=name)
        assert len(found) * 1.6 * 2.0 * 2.5 == pytest.approx(
            4 / 3 * np.pi * radius**3, rel=0.2 if radius < 10 else 0.02
        )
    at = dict(zip(proof.names, proof.centres_mm, strict=True))
    assert at["marker_left"][0] < at["ball_60"][0] < at["marker_right"][0]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm: expected positive numbers"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "spacing_mm: expected positive numbers"),
        ({"shape": (10, 10)}, "shape: expected three positive counts"),
        ({"orientation": "RRS"}, "orientation: expected three axis codes"),
    ],
)
def test_a_grid_without_sense_is_refused_by_field(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(PhantomError, match=message):
        make_body(0, **wish)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    assert sample_dataset.write_dataset(folder, n_cases=4, seed=3, voxel_mm=10)
    return folder


def test_the_data_set_is_in_the_nnunet_raw_layout(dataset: Path) -> None:
    said = json.loads((dataset / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "CT"}
    assert said["numTraining"] == 4
    assert said["file_ending"] == ".nii.gz"
    assert list(said["labels"].items()) == [(name, n) for n, name in enumerate(CLASS_NAMES)]
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    assert [f"{case}_0000.nii.gz" for case in cases] == sorted(path.name for path in (dataset / "imagesTr").iterdir())
    assert len(cases) == 4


def test_nibabel_reads_back_what_was_drawn(dataset: Path) -> None:
    for n in range(4):
        image = nib.Nifti1Image.from_filename(dataset / "imagesTr" / f"body_{n:03d}_0000.nii.gz")
        label = nib.Nifti1Image.from_filename(dataset / "labelsTr" / f"body_{n:03d}.nii.gz")
        scan = make_body([3, n], voxel_mm=10, orientation="".join(nib.aff2axcodes(image.affine)))
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj), scan.image)
        np.testing.assert_array_equal(np.asarray(label.dataobj), scan.label)
        np.testing.assert_array_equal(image.affine, scan.affine)
        for header in (image.header, label.header):
            assert (header["sform_code"], header["qform_code"]) == (1, 1)
            np.testing.assert_allclose(header.get_qform(), scan.affine, atol=1e-3)


def test_cases_differ_in_size_spacing_orientation_and_tilt(dataset: Path) -> None:
    scans = [nib.Nifti1Image.from_filename(path) for path in sorted((dataset / "labelsTr").iterdir())]
    assert len({scan.shape for scan in scans}) == 4
    assert len({nib.aff2axcodes(scan.affine) for scan in scans}) == 4
    assert len({scan.header.get_zooms() for scan in scans}) == 4
    tilts = [np.degrees(nib.affines.obliquity(scan.affine)).max() for scan in scans]
    assert min(tilts) > 0.5
    assert all(max(scan.header.get_zooms()) > 1.09 * min(scan.header.get_zooms()) for scan in scans)


def test_simpleitk_and_nibabel_agree_where_an_organ_lies(dataset: Path) -> None:
    liver = CLASS_NAMES.index("liver")
    for path in sorted((dataset / "labelsTr").iterdir()):
        statistics = SimpleITK.LabelShapeStatisticsImageFilter()
        statistics.Execute(SimpleITK.ReadImage(str(path)))
        itk_mm = np.array(statistics.GetCentroid(liver)) * (-1, -1, 1)  # ITK's world is LPS
        scan = nib.Nifti1Image.from_filename(path)
        ours = centroids_mm(np.asarray(scan.dataobj), scan.affine)["liver"]
        np.testing.assert_allclose(ours, itk_mm, atol=0.01)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_data_set_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert not sample_dataset.write_dataset(dataset, n_cases=4, seed=3, voxel_mm=10)
    assert before == {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}


def test_an_interrupted_write_is_seen_and_done_again(dataset: Path, tmp_path: Path) -> None:
    """The writer is killed in mid-write, as a process of its own; the second write leaves the same bytes."""
    code = "import os, sys; from pipeline.phantoms import sample_dataset\n"
    code += "stop = lambda done, total: done == 2 and os.kill(os.getpid(), 9)\n"
    code += "sample_dataset.write_dataset(sys.argv[1], n_cases=4, seed=3, voxel_mm=10, progress=stop)"
    root = Path(phantom.__file__).resolve().parents[1]
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "dataset.json").exists()
    assert sample_dataset.write_dataset(tmp_path, n_cases=4, seed=3, voxel_mm=10)
    assert snapshot(tmp_path) == snapshot(dataset)


def test_a_missing_case_or_another_recipe_is_written_anew(tmp_path: Path) -> None:
    small: dict[str, Any] = {"seed": 1, "voxel_mm": 16.0}
    sample_dataset.write_dataset(tmp_path, n_cases=2, **small)
    whole = snapshot(tmp_path)
    (tmp_path / "labelsTr" / "body_001.nii.gz").unlink()
    assert sample_dataset.write_dataset(tmp_path, n_cases=2, **small)
    assert snapshot(tmp_path) == whole
    assert sample_dataset.write_dataset(tmp_path, n_cases=1, **small)
    assert len(snapshot(tmp_path)) == 3
    assert snapshot(tmp_path)["labelsTr/body_000.nii.gz"] == whole["labelsTr/body_000.nii.gz"]


def test_somebody_elses_data_set_is_not_touched(tmp_path: Path) -> None:
    for content in ('{"labels": {"background": 0}}', "not json"):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(PhantomError, match=r"holds a dataset\.json that is no phantom's"):
            sample_dataset.write_dataset(tmp_path, n_cases=1)
        assert snapshot(tmp_path) == {"dataset.json": content.encode()}


def test_progress_counts_every_case(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sample_dataset.write_dataset(tmp_path, n_cases=3, voxel_mm=20, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_mirrored_solid_is_as_far_from_a_point_as_the_solid_from_the_mirrored_point() -> None:
    still = Warp(np.ones(3), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
    tube = Tube(np.array([(10.0, 0, 0), (60, 20, 30), (90, -10, 80)]), np.array([5.0, 9, 7]), np.array([2.0, 1, 1]))
    levels, plane = np.array([(0.0, 40, 0, 30, 20), (90, 50, 5, 20, 15)]), np.array([(45.0, 0, 0, 1, 0.5, -0.2)])
    turn = np.array([(0.6, 0.8, 0), (-0.8, 0.6, 0), (0, 0, 1.0)])
    x, y, z = np.random.default_rng(0).uniform(-150, 150, (3, 1, 1, 500)).astype(np.float32)
    blob = Ellipsoid(np.array([50.0, 10, 5]), np.array([30.0, 10, 20]), turn)
    solids: tuple[Tube | Loft | Ellipsoid, ...] = (tube, Loft(levels, plane), blob)
    for solid in solids:
        pieces: tuple[Shape, ...] = solid.placed(still, np.zeros(3), 1.0)
        twins: tuple[Shape, ...] = solid.mirrored().placed(still, np.zeros(3), 1.0)
        for piece, twin in zip(pieces, twins, strict=True):
            np.testing.assert_allclose(piece.distance(-x, y, z), twin.distance(x, y, z), rtol=1e-4, atol=1e-3)

"""Whole-body phantoms with known labels on awkward grids: the embedded sample, the tests' volumes, the geometry proof.

Samples a body of `pipeline.anatomy` on any grid (shape, affine) as a CT with its label map; writes data sets of them.
Axes: arrays are (I, J, K); affines map voxel indices to world mm, RAS+, where integer indices are voxel centres.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.anatomy import CLASS_NAMES, Body, Structure, draw_body
from pipeline.shapes import Array, Points, Shape

__all__ = ["CLASS_NAMES", "ORIENTATIONS", "Phantom", "PhantomError", "balls", "draw_body", "draw_grid"]
__all__ += ["geometry_proof", "make_body", "render", "write_dataset"]

ORIENTATIONS: tuple[str, ...] = tuple(
    "".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)
)
"""The 48 ways to lay three voxel axes along three body axes, as nibabel writes them ("RAS", "LPS", "SLA", …)."""

_AIR_HU = -1000.0
_SLAB_VOXELS = 1 << 22  # a slab's temporaries are some ten float32 arrays of this size, however large the volume
Shape3 = tuple[int, int, int]
Progress = Callable[[int, int], None]


class PhantomError(ValueError):
    """A phantom that cannot be made as asked; one line."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic CT: image (I, J, K) int16 in HU, label (I, J, K) uint8, affine (4, 4) voxel -> mm, RAS+."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: Points


def make_body(
    seed: int | Sequence[int],
    *,
    voxel_mm: float = 7.0,
    spacing_mm: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    orientation: str | None = None,
    oblique_deg: float | None = None,
    noise_hu: float = 12.0,
) -> Phantom:
    """Draw a person by seed and scan them; the same arguments give the same bits.

    What is None is drawn by the seed too: an anisotropic spacing around `voxel_mm`, one of the 48 orientations, a tilt
    of 2 to 12 degrees, and a shape that covers head and trunk. The person depends on the seed alone, not on the grid;
    label values are positions in CLASS_NAMES. Raises PhantomError for a grid that makes no sense.
    """
    key = np.ravel(seed).tolist()
    body = draw_body(np.random.default_rng([*key, 0]))
    grid = draw_grid(
        body,
        np.random.default_rng([*key, 1]),
        voxel_mm=voxel_mm,
        spacing_mm=spacing_mm,
        shape=shape,
        orientation=orientation,
        oblique_deg=oblique_deg,
    )
    return render(body, *grid, noise_hu=noise_hu, seed=[*key, 2])


def draw_grid(
    body: Body,
    rng: np.random.Generator,
    *,
    voxel_mm: float = 7.0,
    spacing_mm: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    orientation: str | None = None,
    oblique_deg: float | None = None,
) -> tuple[Shape3, Points]:
    """Draw a scan's grid (shape, affine) around a body; every draw is made whether or not its value is given.

    `spacing_mm` runs along the voxel axes I J K. `oblique_deg` turns the grid about a drawn axis. The affine's numbers
    fit float32 exactly, as NIfTI headers store them. Raises PhantomError for a grid that makes no sense.
    """
    drawn_spacing = voxel_mm * rng.uniform(0.9, 1.1) * rng.permutation([1.0, 1.0, rng.uniform(1.1, 1.4)])
    drawn_orientation, drawn_angle = ORIENTATIONS[rng.integers(48)], rng.uniform(2, 12)
    axis, margin_mm = rng.normal(size=3), rng.uniform(2, 25, size=(2, 3))
    spacing = np.broadcast_to(np.asarray(drawn_spacing if spacing_mm is None else spacing_mm, float), (3,))
    angle = np.radians(drawn_angle if oblique_deg is None else oblique_deg)
    _check_grid(spacing, shape, orientation)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    axes = turn @ inv_ornt_aff(axcodes2ornt(orientation or drawn_orientation), (1, 1, 1))[:3, :3].T
    along = body.reach_mm @ axes
    low, high = along.min(0) - margin_mm[0], along.max(0) + margin_mm[1]
    counts = np.ceil((high - low) / spacing).astype(int) + 1 if shape is None else np.asarray(shape, int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ ((low + high) / 2 - (counts - 1) / 2 * spacing)
    return (int(counts[0]), int(counts[1]), int(counts[2])), affine.astype(np.float32).astype(float)


def _check_grid(spacing: Points, shape: Sequence[int] | None, orientation: str | None) -> None:
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise PhantomError(f"spacing_mm: expected positive numbers, found {tuple(spacing.tolist())}")
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise PhantomError(f"shape: expected three positive counts, found {tuple(shape)}")
    if orientation is not None and orientation not in ORIENTATIONS:
        raise PhantomError(f"orientation: expected three axis codes such as RAS or LPI, found {orientation!r}")


def render(
    body: Body,
    shape: Sequence[int],
    affine: Points,
    *,
    noise_hu: float = 12.0,
    seed: int | Sequence[int] = 0,
    progress: Progress | None = None,
) -> Phantom:
    """Scan a body on a grid: labels by voxel centre, intensities mixed by the share of a voxel that a structure fills.

    Works in slabs along I, so that beyond the result the memory does not grow with the volume; noise is seeded per
    plane, so the slabs do not show. `progress` is called with (planes done, planes in all).
    """
    n_planes, key = int(shape[0]), np.ravel(seed).tolist()
    image, label = np.empty(tuple(shape), np.int16), np.zeros(tuple(shape), np.uint8)
    step = max(1, _SLAB_VOXELS // (int(shape[1]) * int(shape[2])))
    for start in range(0, n_planes, step):
        stop = min(start + step, n_planes)
        slab = _Slab(start, np.full((stop - start, *label.shape[1:]), _AIR_HU, np.float32), label[start:stop], affine)
        for structure in body.structures:
            _paint(slab, structure)
        for plane in range(start, stop):
            noise = np.random.default_rng([*key, plane]).standard_normal(label.shape[1:], np.float32)
            noisy = slab.image[plane - start] + np.float32(noise_hu) * noise
            image[plane] = np.rint(noisy).clip(-1024, 3071).astype(np.int16)
        if progress:
            progress(stop, n_planes)
    return Phantom(image, label, np.array(affine, float))


@dataclass(frozen=True, eq=False)
class _Slab:
    """The planes of a grid from `start` on: their image in float32 HU and their label, both painted in place."""

    start: int
    image: Array
    label: NDArray[np.uint8]
    affine: Points

    @cached_property
    def inverse(self) -> Points:
        """World mm to voxel indices of the slab (3, 4)."""
        inverse = np.asarray(np.linalg.inv(self.affine)[:3], np.float64)
        inverse[0, 3] -= self.start
        return inverse

    def index_box(self, box_mm: Points) -> NDArray[np.int64]:
        """Voxels of the slab (first, last + 1) that a world box touches, at least half a voxel around it included."""
        middle = self.inverse[:, :3] @ ((box_mm[0] + box_mm[1]) / 2) + self.inverse[:, 3]
        reach = np.abs(self.inverse[:, :3]) @ ((box_mm[1] - box_mm[0]) / 2)
        box = np.array([np.floor(middle - reach), np.ceil(middle + reach) + 1]).astype(np.int64)
        return np.minimum(np.maximum(box, 0), self.image.shape)

    def world(self, box: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """World coordinates x, y, z (mm) of the voxel centres of an index box and of one voxel more all around."""
        first = box[0] + (self.start - 1, -1, -1)
        i, j, k = (np.arange(n + 2) + start for n, start in zip(box[1] - box[0], first, strict=True))
        i, j, k = i[:, None, None], j[None, :, None], k[None, None, :]
        rows = self.affine[:3]
        x, y, z = ((a * i + d).astype(np.float32) + (b * j + c * k).astype(np.float32) for a, b, c, d in rows)
        return x, y, z


def _paint(slab: _Slab, structure: Structure) -> None:
    """Lay a structure over what the slab holds already."""
    boxes = [slab.index_box(shape.box_mm()) for shape in structure.shapes]
    touched = [(shape, box) for shape, box in zip(structure.shapes, boxes, strict=True) if (box[1] > box[0]).all()]
    if not touched:
        return
    low, high = np.min([box[0] for _, box in touched], 0), np.max([box[1] for _, box in touched], 0)
    filled, core = np.zeros(high - low, np.float32), np.zeros(high - low, np.float32)
    for shape, box in touched:
        part = _slices(box - low)
        away, width = _distance(slab, shape, box)
        np.maximum(filled[part], _share(away, width), out=filled[part])
        if structure.core_hu != structure.hu:
            np.maximum(core[part], _share(away + np.float32(structure.wall_mm), width), out=core[part])
    image, label = slab.image[_slices(np.stack([low, high]))], slab.label[_slices(np.stack([low, high]))]
    hu = np.float32(structure.hu) + core * np.float32(structure.core_hu - structure.hu)
    image += filled * (hu - image)
    label[filled >= 0.5] = structure.class_index


def _share(away: Array, width: Array) -> Array:
    """Share of a voxel inside a surface at distance `away` from its centre; at least one half where the centre is."""
    return np.clip(np.float32(0.5) - away / width, 0, 1)


def _distance(slab: _Slab, shape: Shape, box: NDArray[np.int64]) -> tuple[Array, Array]:
    """Distance of a box's voxel centres from a surface, and the width of a voxel across it in the same measure.

    The width is the root of the summed squares of the distance's changes along the three axes: for a plane, a linear
    ramp that wide has the variance of the voxel's box projected on the normal.
    """
    away = shape.distance(*slab.world(box))
    squares = np.full(box[1] - box[0], 1e-12, np.float32)
    for axis in range(3):
        others = tuple(slice(None) if n == axis else slice(1, -1) for n in range(3))
        along = away[others].swapaxes(0, axis)
        steps = np.abs(along[1:] - along[:-1])
        # The larger of the steps to both neighbours: across a tube thinner than a voxel their mean would vanish.
        squares += np.square(np.maximum(steps[1:], steps[:-1])).swapaxes(0, axis)
    return away[1:-1, 1:-1, 1:-1], np.sqrt(squares)


def _slices(box: NDArray[np.int64]) -> tuple[slice, slice, slice]:
    (a, b, c), (d, e, f) = box.tolist()
    return slice(a, d), slice(b, e), slice(c, f)


def balls(
    shape: Sequence[int],
    affine: Points,
    centres_mm: Sequence[Sequence[float]],
    radii_mm: Sequence[float],
    values: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Label map (I, J, K) of balls at world positions: a voxel whose centre lies within the radius belongs to the ball.

    `values` are the labels, 1, 2, 3, … by default; later balls override earlier ones. A ball's true volume is 4/3 π r³.
    Raises PhantomError for a ball that does not lie wholly inside the grid, since its volume would be unknown.
    """
    label, affine = np.zeros(tuple(shape), np.uint8), np.asarray(affine, float)
    for n, (centre, radius) in enumerate(zip(np.asarray(centres_mm, float), radii_mm, strict=True)):
        box = _ball_box(label.shape, affine, centre, radius)
        i, j, k = np.ogrid[_slices(box)]
        rows = np.column_stack([affine[:3, :3], affine[:3, 3] - centre])
        squares = sum(np.square(a * i + b * j + c * k + d) for a, b, c, d in rows)
        label[_slices(box)][squares <= radius**2] = n + 1 if values is None else values[n]
    return label


def _ball_box(shape: Sequence[int], affine: Points, centre: Points, radius: float) -> NDArray[np.int64]:
    inverse = np.linalg.inv(affine)[:3]
    middle, reach = inverse[:, :3] @ centre + inverse[:, 3], radius * np.linalg.norm(inverse[:, :3], axis=1)
    if (middle - reach < -0.5).any() or (middle + reach > np.asarray(shape) - 0.5).any():
        where = tuple(round(float(c), 1) for c in centre)
        raise PhantomError(f"ball of {radius:g} mm at {where} mm: leaves the grid {tuple(shape)}; move or shrink it")
    return np.stack([np.floor(middle - reach), np.ceil(middle + reach) + 1]).astype(np.int64).clip(0, shape)


@dataclass(frozen=True, eq=False)
class GeometryProof:
    """Balls at known places: label (I, J, K) uint8, and for its values 1, 2, … name, centre (mm, RAS+), radius (mm)."""

    label: NDArray[np.uint8]
    names: tuple[str, ...]
    centres_mm: Points
    radii_mm: tuple[float, ...]


# Name: offset from the middle of the grid (mm, RAS+) and radius. No two axes and no two directions look alike.
_PROOF = {
    "ball_60": ((0, 0, 0), 60.0),
    "ball_20": ((10, 88, 0), 20.0),
    "ball_8": ((0, -84, 20), 8.0),
    "ball_4": ((6, 10, 88), 4.0),
    "marker_left": ((-85, 0, 15), 12.0),
    "marker_right": ((85, 0, -15), 12.0),
}


def geometry_proof(shape: Sequence[int], affine: Points) -> GeometryProof:
    """Balls of 60, 20, 8 and 4 mm and a marker on either side, around the middle of a grid of at least 220 mm each way.

    Raises PhantomError where the grid is too small.
    """
    middle = (np.asarray(affine, float) @ [*((np.asarray(shape) - 1) / 2), 1])[:3]
    centres = middle + np.array([offset for offset, _ in _PROOF.values()], float)
    radii = tuple(radius for _, radius in _PROOF.values())
    return GeometryProof(balls(shape, affine, centres, radii), tuple(_PROOF), centres, radii)


def write_dataset(
    folder: str | Path, *, n_cases: int = 24, seed: int = 0, voxel_mm: float = 7.0, progress: Progress | None = None
) -> bool:
    """Write phantoms in the nnU-Net raw layout: dataset.json, imagesTr/body_000_0000.nii.gz, labelsTr/body_000.nii.gz.

    Returns False where the folder already holds exactly this data set, True once it was written. dataset.json comes
    last and in one step, so an interrupted write is seen and done again. Case n is the same in data sets of any size.
    `progress` is called with (cases done, cases in all).
    Raises PhantomError for a folder that holds another data set: that one is not ours to replace.
    """
    if n_cases < 1 or not voxel_mm > 0:
        raise PhantomError(f"n_cases, voxel_mm: expected positive numbers, found {n_cases} and {voxel_mm}")
    folder, recipe = Path(folder), _recipe(n_cases, seed, voxel_mm)
    found = _found_recipe(folder)
    if found == recipe and all(path.is_file() for n in range(n_cases) for path in _case_paths(folder, n)):
        return False
    _clear(folder)
    codes = np.random.default_rng(seed).permutation(ORIENTATIONS)
    for n in range(n_cases):
        phantom = make_body([seed, n], voxel_mm=voxel_mm, orientation=str(codes[n % len(codes)]))
        image_path, label_path = _case_paths(folder, n)
        _write_nifti(phantom.image, phantom.affine, image_path)
        _write_nifti(phantom.label, phantom.affine, label_path)
        if progress:
            progress(n + 1, n_cases)
    _write_json(folder / "dataset.json", recipe)
    return True


def _recipe(n_cases: int, seed: int, voxel_mm: float) -> dict[str, Any]:
    """What dataset.json says, with what it takes to know whether the cases beside it are the ones asked for."""
    code = b"".join(Path(__file__).with_name(f"{room}.py").read_bytes() for room in ("shapes", "anatomy", "phantom"))
    made_by = {"seed": seed, "voxel_mm": voxel_mm, "code": hashlib.sha256(code).hexdigest()[:16]}
    return {
        "name": "BodyPhantom",
        "channel_names": {"0": "CT"},
        "labels": {name: value for value, name in enumerate(CLASS_NAMES)},
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
        "phantom": made_by,
    }


def _found_recipe(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "dataset.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "phantom" not in found:
        raise PhantomError(f"{folder}: holds a dataset.json that is no phantom's; name another folder")
    return found


def _case_paths(folder: Path, n: int) -> tuple[Path, Path]:
    return folder / "imagesTr" / f"body_{n:03d}_0000.nii.gz", folder / "labelsTr" / f"body_{n:03d}.nii.gz"


def _clear(folder: Path) -> None:
    """Remove an older or half-written phantom data set, the file that declares it whole first."""
    (folder / "dataset.json").unlink(missing_ok=True)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in (folder / name).glob("body_*.nii.gz"):
            path.unlink()


def _write_nifti(array: NDArray[Any], affine: Points, path: Path) -> None:
    picture = nib.Nifti1Image(array, affine)
    picture.set_sform(affine, code="scanner")
    picture.set_qform(affine, code="scanner")
    picture.header.set_xyzt_units("mm")
    nib.save(picture, path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)

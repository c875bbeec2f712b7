"""Send the geometry phantom through preprocessing and back on one grid, and measure how far structures moved.

The path is a prediction's: files, `transforms.chains`, and `transforms.restore`, with what was prepared in place of a
network's features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.phantoms.balls import GeometryProof, around_ball, geometry_proof
from pipeline.phantoms.nifti import write_nifti
from transforms.chains import preprocessing_arguments, preprocessing_chain
from transforms.io.grid import voxel_edges_mm
from transforms.restore import FeatureMap, restore

MARK_MM = 36.0
"""Radius of the smooth marks at the structures' centres. Interpolation there and back reproduces planes exactly and
blurs what is curved, more here and less there as the two grids beat: between voxels of 4 mm that moves the centroid of
so wide a mark by at most 0.07 mm, of a sharp 8 mm ball by 0.3 mm. No two marks touch (86 mm apart)."""

APART_MM = 43.0
"""Voxels nearer than this to a structure's centre count as its mark."""

SHARPNESS = 2.0
"""Logit of a mark's middle: its probabilities run from 0.5 to 0.88, in 97 of 255 steps."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A scan's grid."""

    name: str
    """For people."""
    shape: tuple[int, int, int]
    """Voxels (I, J, K)."""
    affine: np.ndarray
    """4×4, voxel -> world mm, RAS+."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The edge lengths of a voxel along i, j and k in mm."""
        return voxel_edges_mm(self.affine)


@dataclass(frozen=True)
class StructureRoundTrip:
    """One structure of the phantom after its way there and back."""

    name: str
    """As the phantom names it."""
    radius_mm: float
    """Of the ball."""
    dice: float
    """Of the stored integer label, restored, with the source label: what a perfect network could score at best."""
    shift_mm: float
    """How far the mark at its centre moved, image chain and restoring together; infinite if it is lost."""
    label_shift_mm: float
    """How far the centroid of the label moved: for small balls on coarse grids mostly the noise of whole voxels."""
    lies_at: str
    """The structure whose centre its label came back to, itself unless sides were swapped; "" if it is lost."""


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """The phantom on one grid after its way there and back."""

    grid: Grid
    """The source's grid."""
    target_size: tuple[int, ...]
    """Voxels of the prepared volume."""
    coarsest_mm: float
    """Largest voxel edge of source and target."""
    structures: tuple[StructureRoundTrip, ...]
    """One a structure of the phantom."""


def round_trip(grid: Grid, chain_arguments: Mapping[str, Any]) -> RoundTrip:
    """Send the geometry phantom through `preprocessing_chain(**chain_arguments)` and back.

    The image holds a smooth mark at each structure's centre, the label the structures. Label values of the arguments
    are replaced by the phantom's. Raises PhantomError for a grid of less than 220 mm a side, ChainError for arguments
    that make no chain.
    """
    proof = geometry_proof(grid.shape, grid.affine)
    labels = {"label_values": None, "ignore_value": None, "label_remap": None, "with_label": True}
    way = chain_arguments.get("intensity", "ct")  # of several channels one a channel; the phantom has the first
    arguments = {**chain_arguments, **labels, "intensity": way if isinstance(way, str) else way[0]}
    chain = preprocessing_chain(**arguments)
    drawn = _drawn_marks(proof, grid)
    with TemporaryDirectory(prefix="check_geometry_") as folder:
        case = chain({**_write(drawn, proof.label, arguments, grid, Path(folder)), "case": grid.name})
    affine = case["image"].affine.numpy()
    label = _restored_label(case["label"].as_tensor()[0], case["label"].affine.numpy(), grid, len(proof.names) + 1)
    marks = (drawn, _restored_marks(case["image"].as_tensor()[0], affine, grid))
    structures = [_compared(n, proof, grid, marks, label) for n in range(len(proof.names))]
    edges = [*grid.spacing_mm, *voxel_edges_mm(affine)]
    return RoundTrip(grid, tuple(case["image"].shape[1:]), max(edges), tuple(structures))


def _drawn_marks(proof: GeometryProof, grid: Grid) -> np.ndarray:
    """Volume (I, J, K) uint8 with a raised cosine of `MARK_MM` around each centre, 0 elsewhere."""
    marks = np.zeros(grid.shape, np.uint8)
    for centre in proof.centres_mm:
        box, distance_mm = around_ball(centre, MARK_MM, grid.shape, grid.affine)
        height = np.where(distance_mm < MARK_MM, 127.5 + 127.5 * np.cos(np.pi * distance_mm / MARK_MM), 0)
        marks[box] = np.maximum(marks[box], np.rint(height).astype(np.uint8))
    return marks


def _write(
    marks: np.ndarray, label: np.ndarray, chain_arguments: Mapping[str, Any], grid: Grid, folder: Path
) -> dict[str, str]:
    """Write image and label as NIfTI; a CT's marks rise from the window's lower end to its upper one."""
    arguments = preprocessing_arguments(**chain_arguments)
    low, high = arguments["window"] if arguments["intensity"] == "ct" else (0, 1000)
    image = (low + marks * ((high - low) / 255)).astype(np.float32)
    volumes = {"image": image, "label": label}
    return {key: str(write_nifti(folder / f"{key}.nii", array, grid.affine)) for key, array in volumes.items()}


def _restored_label(label: Tensor, affine: np.ndarray, grid: Grid, n_classes: int) -> np.ndarray:
    """Restore the stored label (I, J, K) as if it were a network's prediction with probabilities of 0 and 1."""
    one_hot = torch.stack([label == c for c in range(n_classes)]).to(torch.float16)
    return restore([FeatureMap(one_hot, affine)], grid.shape, grid.affine).segmentation


def _restored_marks(image: Tensor, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Restore a prepared image (I, J, K) as uint8 that rises with it from a constant outside the marks."""
    above = image - image.min()
    inside = above / above.max().clamp(min=1e-6) * SHARPNESS
    logits = torch.stack([torch.zeros_like(inside), inside])
    return restore([FeatureMap(logits, affine)], grid.shape, grid.affine, probabilities_of=[1]).probabilities[1]


def _compared(
    n: int, proof: GeometryProof, grid: Grid, marks: tuple[np.ndarray, np.ndarray], label: np.ndarray
) -> StructureRoundTrip:
    """Compare a structure; marks: those of the image before and after, (I, J, K) on the source's grid."""
    before = proof.label == n + 1
    after = label == n + 1
    start, end = (_mark_centre(volume, proof.centres_mm[n], grid) for volume in marks)
    label_start = _centroid(before, grid.affine)
    label_end = _centroid(after, grid.affine)
    nearest = None if label_end is None else np.linalg.norm(proof.centres_mm - label_end, axis=1).argmin()
    return StructureRoundTrip(
        name=proof.names[n],
        radius_mm=proof.radii_mm[n],
        dice=float(2 * np.count_nonzero(before & after) / (np.count_nonzero(before) + np.count_nonzero(after))),
        shift_mm=_distance(start, end),
        label_shift_mm=_distance(label_start, label_end),
        lies_at="" if nearest is None else proof.names[int(nearest)],
    )


def _mark_centre(volume: np.ndarray, centre_mm: np.ndarray, grid: Grid) -> np.ndarray | None:
    """Centre of mass in mm of what rises above the volume's minimum near a structure's centre; None if nothing does."""
    box, distance_mm = around_ball(centre_mm, APART_MM, grid.shape, grid.affine)
    near = np.where(distance_mm < APART_MM, volume[box].astype(np.int64) - int(volume.min()), 0)
    shifted = grid.affine.copy()
    shifted[:3, 3] += grid.affine[:3, :3] @ [part.start for part in box]
    return _centroid(near, shifted)


def _centroid(weights: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """Centre of mass in mm of (I, J, K) weights; None where there are none."""
    sums = [weights.sum(axes, dtype=np.int64) for axes in ((1, 2), (0, 2), (0, 1))]
    if not sums[0].any():
        return None
    return affine[:3, :3] @ [float(s @ np.arange(len(s)) / s.sum()) for s in sums] + affine[:3, 3]


def _distance(start: np.ndarray | None, end: np.ndarray | None) -> float:
    return np.inf if start is None or end is None else float(np.linalg.norm(start - end))

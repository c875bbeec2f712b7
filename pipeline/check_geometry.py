"""The command check-geometry: prove that a chain moves, mirrors and swaps nothing, and say what its size costs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy.spatial.transform import Rotation

from networks.checkpoint import read_checkpoint
from pipeline.config.files import from_mapping, load_mapping
from pipeline.config.settings import Config, ConfigError
from pipeline.console.progress import Progress
from pipeline.files.json_files import null_for_undefined
from pipeline.phantoms.phantom import ORIENTATIONS
from pipeline.phantoms.round_trip import Grid, RoundTrip, StructureRoundTrip, round_trip
from pipeline.runs.run_folder import RunFolder
from transforms.chains import TARGET_SIZE, preprocessing_arguments

LARGEST_SHIFT_MM = 0.1

DOCUMENTED_GRID = ((384, 384, 150), (0.8, 0.8, 2.5))
"""Voxels and their mm of the scan for which the documented Dice holds."""

DOCUMENTED_DICE = {60.0: 0.99, 20.0: 0.97, 8.0: 0.94, 4.0: 0.87}
"""What a perfect prediction must reach at 160×160×256, by the ball's radius in mm."""

WHOLE_VOXEL_NOISE = 0.05
"""Share of the coarsest voxel by which the rounding to whole voxels may move the 60 mm ball; 0.01 is usual."""

COARSE_MM = 4.0
"""Largest edge of the small grids' voxels, where the settings have none larger: 64 of them span a phantom. Coarser ones
blur the marks there and back by more than `LARGEST_SHIFT_MM` (see `MARK_MM`), by the square of the edge."""

MOST_VOXELS = 2**27
"""Of the scan of the documented size at the voxel size of a training on patches: 0.64 mm, 0.5 GB in float32."""

_OBLIQUE_DEG = ((16.5, 0.0, 0.0), (12.0, -20.0, 33.0), (-7.0, 41.0, 90.0))
_ORIGIN_MM = (31.7, -214.3, 402.9)


@dataclass(frozen=True)
class GeometryReport:
    """How the phantom came back from a chain, on every grid."""

    chain: dict[str, Any]
    """Arguments of `transforms.chains.preprocessing_chain`."""
    trips: tuple[RoundTrip, ...]
    """The first is the documented scan at the chain's own target size; the others are small."""
    failures: tuple[str, ...]
    """One line for everything that was swapped, lost, moved, or scores too low; empty if the chain is sound."""

    @property
    def exit_code(self) -> int:
        """0 if the geometry holds, else 1."""
        return 1 if self.failures else 0

    @property
    def largest_shift_mm(self) -> float:
        """Over all structures of all grids; infinite if one was lost."""
        return max(structure.shift_mm for trip in self.trips for structure in trip.structures)

    @property
    def best_dice(self) -> dict[str, float]:
        """The Dice that a perfect network could score, by structure, at the documented scan's size."""
        return {structure.name: structure.dice for structure in self.trips[0].structures}


def check_geometry(
    target: Config | Mapping[str, Any] | Path | str | None = None,
    *,
    target_size: Sequence[int] | None = None,
    keep_aspect: bool | None = None,
    progress: Progress | None = None,
) -> GeometryReport:
    """Send a phantom through a chain and back: all 48 orientations, oblique, anisotropic and odd grids.

    The scan of the documented size goes through the chain as it is; the others through the same chain with a target of
    a third of its voxels along each axis (at least 64), or voxels of three times the edges (at most `COARSE_MM`), which
    changes no rule of the geometry and takes seconds.

    Args:
        target: settings, a YAML or JSON file of them, a run folder, a best_model.ckpt, or plain arguments of
            `transforms.chains.preprocessing_chain`; None: its defaults.
        target_size, keep_aspect: instead of the target's own; None leaves them. A target size is instead of the voxel
            size of a training on patches, too.
        progress: called after each grid.

    Raises:
        ConfigError, FileError, NetworkError, ChainError: a target that has no chain, or voxels too small to be judged.
    """
    changed = {"target_size": target_size, "keep_aspect": keep_aspect}
    own = chain_of(target) | ({} if target_size is None else {"spacing_mm": None})
    chain = preprocessing_arguments(**own | {name: value for name, value in changed.items() if value is not None})
    if chain["spacing_mm"]:
        _refuse_small(chain["spacing_mm"])
    grids, trips = list(awkward_grids()), []
    for done, grid in enumerate(grids, start=1):
        trips.append(round_trip(grid, chain if done == 1 else _coarse(chain)))
        if progress:
            progress(done, len(grids))
    failures = [line for trip in trips for line in judge(trip, _allowed_shift_mm(chain))] + _judge_dice(trips[0], chain)
    return GeometryReport(chain, tuple(trips), tuple(failures))


def _refuse_small(spacing_mm: Sequence[float]) -> None:
    """Raise ConfigError for a voxel size at which the scan of the documented size does not fit into the memory."""
    n_voxels = math.prod(n * mm / edge for n, mm, edge in zip(*DOCUMENTED_GRID, spacing_mm, strict=True))
    if n_voxels > MOST_VOXELS:
        found = "×".join(f"{edge:g}" for edge in spacing_mm)
        raise ConfigError(
            f"data.spacing_mm: expected at most {MOST_VOXELS / 1e6:.0f} million voxels in a scan of 307×307×375 mm, "
            f"found {n_voxels / 1e6:.0f} million of {found} mm; judge a size instead (--target_size I J K)"
        )


def _coarse(chain: Mapping[str, Any]) -> dict[str, Any]:
    """The chain for the small grids, see `check_geometry`."""
    if chain["spacing_mm"]:
        return {**chain, "spacing_mm": [max(mm, min(3 * mm, COARSE_MM)) for mm in chain["spacing_mm"]]}
    return {**chain, "target_size": [max(64, n // 3) for n in chain["target_size"]]}


def chain_of(target: Config | Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    """Return the arguments of a target's preprocessing chain, see `check_geometry`; intensity "auto" counts as "ct".

    Raises as `check_geometry` does.
    """
    if isinstance(target, Path | str):
        path = Path(target)
        path = RunFolder.at(path).best_checkpoint if path.is_dir() else path
        if path.suffix == ".ckpt":
            return preprocessing_arguments(**read_checkpoint(path)["preprocessing"])
        groups = load_mapping(path)
        # Settings may leave the data set to the command line; the proof needs none.
        target = from_mapping(groups | {"data": {"dataset_root": ".", **groups.get("data", {})}})
    if isinstance(target, Config):
        data = target.data
        names = ("target_size", "percentiles", "keep_aspect")
        arguments: dict[str, Any] = {name: getattr(data, name) for name in names}
        if data.window != "auto":
            arguments["window"] = data.window
        if not isinstance(data.mean_std, str):
            arguments["mean_std"] = data.mean_std
        if data.mode == "patch":
            arguments["spacing_mm"] = data.spacing_mm
        return preprocessing_arguments(intensity="ct" if data.intensity == "auto" else data.intensity, **arguments)
    return preprocessing_arguments(**(target or {}))


def awkward_grids() -> Iterable[Grid]:
    """Yield the documented scan's grid, then 48 orientations, oblique, anisotropic and odd-sized ones."""
    yield _grid("documented scan", *DOCUMENTED_GRID, "LPS")
    for code in ORIENTATIONS:
        yield _grid(f"orientation {code}", (81, 100, 68), (3.1, 2.5, 3.7), code)
    for code, degrees in itertools.product(("RAS", "PIR"), _OBLIQUE_DEG):
        name = " ".join(f"{angle:g}°" for angle in degrees)
        yield _grid(f"oblique {code} {name}", (81, 100, 68), (3.1, 2.5, 3.7), code, degrees)
    yield _grid("thick slices", (208, 208, 63), (1.2, 1.2, 4.0), "LAS")
    yield _grid("thick slices along i", (63, 139, 187), (4.0, 1.8, 1.35), "RSP", (5.0, 0.0, -3.0))
    yield _grid("odd sizes", (109, 119, 105), (2.3, 2.1, 2.41), "RAS")


def _grid(
    name: str, shape: tuple[int, int, int], spacing_mm: Sequence[float], code: str, degrees: Sequence[float] = (0, 0, 0)
) -> Grid:
    axes = inv_ornt_aff(axcodes2ornt(code), (1, 1, 1))[:3, :3].T
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ axes * np.asarray(spacing_mm)
    affine[:3, 3] = _ORIGIN_MM
    return Grid(name, shape, affine.astype(np.float32).astype(np.float64))  # as NIfTI headers store it


def judge(trip: RoundTrip, allowed_mm: float | None = None) -> list[str]:
    """Say what was lost, swapped or moved on one grid, a line each.

    allowed_mm: how far a mark may seem to move; None: `LARGEST_SHIFT_MM`.
    """
    allowed_mm = LARGEST_SHIFT_MM if allowed_mm is None else allowed_mm
    return [
        f"{trip.grid.name}: {each}" for structure in trip.structures for each in _faults(structure, trip, allowed_mm)
    ]


def _allowed_shift_mm(chain: Mapping[str, Any]) -> float:
    """How far a mark may seem to move: farther where a voxel size beyond `COARSE_MM` blurs it."""
    return LARGEST_SHIFT_MM * max(1.0, max(chain["spacing_mm"] or [0]) / COARSE_MM) ** 2


def _faults(structure: StructureRoundTrip, trip: RoundTrip, allowed_mm: float) -> Iterable[str]:
    name, coarsest = structure.name, trip.coarsest_mm
    if structure.shift_mm > allowed_mm:
        yield f"the image at {name} is {structure.shift_mm:.2f} mm off, expected at most {allowed_mm:.3g}"
    if not structure.lies_at:
        if structure.radius_mm > coarsest:
            yield f"the label of {name} is lost"
        return
    if structure.lies_at != name:
        yield f"the label of {name} came back at {structure.lies_at}"
    allowed = max(LARGEST_SHIFT_MM, WHOLE_VOXEL_NOISE * coarsest)
    if structure.radius_mm == max(DOCUMENTED_DICE) and structure.label_shift_mm > allowed:
        yield f"the label of {name} is {structure.label_shift_mm:.2f} mm off, expected at most {allowed:.2f}"


def _judge_dice(trip: RoundTrip, chain: Mapping[str, Any]) -> list[str]:
    """Hold a chain of at least the documented size against the documented Dice.

    A smaller size is a choice, and so is a voxel size.
    """
    if chain["keep_aspect"] or chain["spacing_mm"]:
        return []
    if any(n < least for n, least in zip(chain["target_size"], TARGET_SIZE, strict=True)):
        return []
    lines = []
    for ball in (s for s in trip.structures if s.name.startswith("ball_")):
        least = DOCUMENTED_DICE[ball.radius_mm]
        if ball.dice < least:
            fault = f"the best possible Dice of {ball.name} is {ball.dice:.3f}, expected at least {least:g}"
            lines.append(f"{trip.grid.name}: {fault}")
    return lines


def to_text(report: GeometryReport) -> str:
    """Write what a perfect network could score, the largest shift and every failure, for people."""
    documented, *small = report.trips
    if report.chain["spacing_mm"]:
        size = f"voxels of {'×'.join(f'{mm:g}' for mm in report.chain['spacing_mm'])} mm"
    else:
        size = "×".join(str(n) for n in report.chain["target_size"])
    shape = "×".join(str(n) for n in documented.grid.shape)
    spacing = "×".join(f"{mm:g}" for mm in documented.grid.spacing_mm)
    lines = [f"Best Dice that a perfect network could score at {size}, from {shape} voxels of {spacing} mm:"]
    lines += [
        f"  ball of {s.radius_mm:g} mm radius  {s.dice:.3f}"
        for s in documented.structures
        if s.name.startswith("ball_")
    ]
    allowed_mm = _allowed_shift_mm(report.chain)
    worst = max(report.trips, key=lambda trip: max(s.shift_mm for s in trip.structures))
    lines += [
        f"Largest centroid shift: {report.largest_shift_mm:.3f} mm ({worst.grid.name}); allowed {allowed_mm:.3g} mm",
        f"Grids: 1 of the documented size, {len(small)} small ones (48 orientations, oblique, anisotropic, odd sizes)",
    ]
    lines += [f"FAILED {line}" for line in report.failures]
    return "\n".join([*lines, "The geometry does not hold." if report.failures else "Nothing is swapped or moved."])


def to_json(report: GeometryReport) -> str:
    """Write the whole report as a JSON object; what is undefined or infinite is null."""
    trips = [
        {
            "grid": trip.grid.name,
            "shape": trip.grid.shape,
            "affine": trip.grid.affine.tolist(),
            "target_size": trip.target_size,
            "structures": [asdict(structure) for structure in trip.structures],
        }
        for trip in report.trips
    ]
    document = {
        "sound": not report.failures,
        "failures": report.failures,
        "best_dice": report.best_dice,
        "largest_shift_mm": report.largest_shift_mm,
        "chain": report.chain,
        "trips": trips,
    }
    return json.dumps(null_for_undefined(document), indent=2, allow_nan=False)

"""From trained networks and a file to feature maps: loading checkpoints, preparing an image, passes through a network.

What becomes of feature maps is `transforms.restore`'s; which cases there are, and what is written, is `batch`'s.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from networks.registry import NetworkError, load_network, read_checkpoint
from pipeline.run_folder import RunFolder
from pipeline.slabs import head_matrix
from transforms.chains import inference_chain
from transforms.labels import sided_pairs
from transforms.restore import FeatureMap

AXES = {"x": 0, "y": 1, "z": 2}
"""World axes of the network's grid, which is RAS: x left-right, y back-front, z foot-head."""

AUTO = "auto"
"""Mirror as the training did."""

OVERLAP = 0.5
"""Share of the sliding window that neighbouring windows have in common."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network with what its checkpoint says about it."""

    name: str
    path: Path
    network: Any  # a module with `features` and `head`
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    n_channels: int
    flips: tuple[int, ...] = ()
    """Axes of its grid along which its training mirrored scans."""

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device


@dataclass(frozen=True)
class Passes:
    """How an image goes through a network.

    `mirrored` names the axes ("x", "xy", …) that are flipped in all combinations, each a pass of its own; `roi` is the
    sliding window in voxels of the network's grid, None for the whole volume at once; `precision` is "32" or "bf16".
    """

    mirrored: str = ""
    roi: tuple[int, int, int] | None = None
    precision: str = "32"


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as one network wants it: (C, I, J, K) float32 and the affine of its grid."""

    image: Tensor
    affine: np.ndarray


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one. Raises NetworkError if the machine lacks it."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise NetworkError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise NetworkError(f"device {name} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NetworkError(f"device {name} is not there; this machine has no CUDA device, use --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "32" or "bf16"; "auto" takes bf16 where the device computes in it."""
    if name not in ("auto", "32", "bf16"):
        raise NetworkError(f"precision: expected auto, 32 or bf16, found {name!r}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32"


def load_models(runs: Sequence[Path | str], device: torch.device, *, trust: bool = False) -> tuple[Model, ...]:
    """Load the networks of run folders or best_model.ckpt files; nothing else is needed of a run.

    Raises:
        NetworkError: a checkpoint that is missing, damaged or incomplete, or networks whose classes differ.
    """
    models = tuple(_load_model(Path(run), device, trust) for run in runs)
    for other in models[1:]:
        if other.class_names != models[0].class_names:
            raise NetworkError(
                f"{models[0].path} and {other.path} cannot be joined: expected equal class names, found "
                f"{_difference(models[0].class_names, other.class_names)}; predict with each alone"
            )
    return models


def checkpoint_path(run: Path | str) -> Path:
    """The best_model.ckpt that a run folder or the file itself stands for."""
    run = Path(run)
    return RunFolder.at(run).best_checkpoint if run.is_dir() else run


def _load_model(run: Path, device: torch.device, trust: bool) -> Model:
    path = checkpoint_path(run)
    checkpoint = read_checkpoint(path)
    names, preprocessing = checkpoint.get("class_names"), checkpoint.get("preprocessing")
    if not isinstance(preprocessing, dict) or not isinstance(names, list) or len(names) < 2:
        raise NetworkError(f"{path}: expected preprocessing and class_names beside the weights, found none of use")
    network = load_network(path, map_location=device, trust=trust)
    name = str(checkpoint.get("run") or path.stem)
    try:
        inference_chain(**preprocessing)
        n_channels = len(checkpoint.get("channel_names") or ["image"])
        flips = tuple(int(axis) for axis in checkpoint.get("flips") or ())
    except Exception as error:  # whatever a chain says to arguments that no training wrote
        reason = " ".join(str(error).split())[:200]
        raise NetworkError(f"{path}: expected the preprocessing of a training, found another ({reason})") from error
    return Model(name, path, network, preprocessing, tuple(map(str, names)), n_channels, flips)


def _difference(first: Sequence[str], second: Sequence[str]) -> str:
    if len(first) != len(second):
        return f"{len(first)} and {len(second)} classes"
    index = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return f"class {index} {first[index]!r} and {second[index]!r}"


def prepare(models: Sequence[Model], images: Sequence[Path], case: str) -> list[Prepared]:
    """Read and preprocess a case for each model; equal preprocessing is done once.

    Raises VolumeError naming the case, NetworkError if a model wants another number of channels.
    """
    done: dict[str, Prepared] = {}
    prepared = []
    for model in models:
        if len(images) != model.n_channels:
            raise NetworkError(f"case {case}: {model.name} takes {model.n_channels} channels, found {len(images)}")
        key = json.dumps(model.preprocessing, sort_keys=True)
        if key not in done:
            found = inference_chain(**model.preprocessing)({"image": list(images), "case": case})["image"]
            done[key] = Prepared(found.as_tensor(), np.asarray(found.affine, np.float64))
        prepared.append(done[key])
    return prepared


def feature_maps(model: Model, prepared: Prepared, passes: Passes) -> Iterator[FeatureMap]:
    """Send a prepared image through a network, once for each combination of mirrored axes.

    A mirrored pass shows the network a mirrored body; where left and right are exchanged, the sided classes of its
    head are exchanged back by name. Raises NetworkError where that cannot be done, and where features or head are not
    finite: every comparison with NaN is false, so that the whole scan would come out as background.
    """
    axes = mirror_axes(passes.mirrored)
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1))
    for flipped in subsets:
        features = _features(model, prepared.image.flip([1 + axis for axis in flipped]), passes)
        weight, bias = head_matrix(model.network.head, len(features))
        _check_finite(model, passes, features, weight, bias)
        affine = prepared.affine @ _mirror(flipped, prepared.image.shape[1:])
        if AXES["x"] in flipped:
            partners = torch.tensor(_partners(model), device=features.device)
            if weight is None:
                features = features[partners]
            else:
                weight, bias = weight[partners], None if bias is None else bias[partners]
        yield FeatureMap(features, affine, weight, bias)


def _check_finite(model: Model, passes: Passes, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        # The extremes of a tensor with NaN are NaN: one pass, and no second tensor of its size.
        if tensor is not None and not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor.detach())):
            remedy = "try --precision 32, or another run" if passes.precision != "32" else "predict with another run"
            raise NetworkError(f"{model.path}: its network gives NaN or infinite values for this scan; {remedy}")


def mirror_axes(names: str) -> tuple[int, ...]:
    """ "xz" or "x,z" -> (0, 2). Raises NetworkError for other letters."""
    letters = names.replace(",", "")
    if set(letters) - set(AXES) or len(set(letters)) != len(letters):
        raise NetworkError(f"tta: expected some of the letters x, y and z, each once, found {names!r}")
    return tuple(sorted(AXES[letter] for letter in letters))


def choose_mirrored(tta: str, models: Sequence[Model]) -> str:
    """The axes to mirror ("", "x", "xz", …): the named ones, or for "auto" those along which all trainings mirrored.

    Where they mirrored along none, "auto" is "x": a body is nearly its own mirror image from left to right, never
    upside down. Raises NetworkError for unknown letters, and where left and right classes cannot be exchanged back.
    """
    if tta == AUTO:
        common = set(AXES.values()).intersection(*(model.flips for model in models)) or {AXES["x"]}
    else:
        common = set(mirror_axes(tta))
    if AXES["x"] in common:
        _partners(models[0])
    return "".join(letter for letter, axis in AXES.items() if axis in common)


def _partners(model: Model) -> tuple[int, ...]:
    try:
        return sided_pairs(model.class_names)
    except ValueError as error:
        raise NetworkError(f"tta along x needs sides by name, but {error}; leave x out") from error


def _mirror(flipped: Sequence[int], size: Sequence[int]) -> np.ndarray:
    matrix = np.eye(4)
    for axis in flipped:
        matrix[axis, axis], matrix[axis, 3] = -1, size[axis] - 1
    return matrix


@torch.no_grad()
def _features(model: Model, image: Tensor, passes: Passes) -> Tensor:
    """(C, I, J, K) -> (F, I, J, K)."""
    x = image[None].to(model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=passes.precision == "bf16"):
        if passes.roi is None:
            return model.network.features(x)[0]
        # Features of overlapping windows are averaged: the head is linear, so this averages their logits.
        return sliding_window_inference(x, passes.roi, 1, model.network.features, overlap=OVERLAP, mode="gaussian")[0]

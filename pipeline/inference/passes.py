"""Send a scan through trained networks: preprocessing, whole or in sliding windows, plain and mirrored."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from networks.errors import NetworkError
from networks.head import head_matrix
from pipeline.inference.model import Model
from transforms.chains import inference_chain
from transforms.left_right import mirror_partners
from transforms.restore import FeatureMap

log = logging.getLogger(__name__)

AXES = {"x": 0, "y": 1, "z": 2}
"""World axes of the network's grid, which is RAS: x left-right, y back-front, z foot-head."""

AUTO = "auto"
"""Mirror as the training did."""

OVERLAP = 0.5
"""Share of the sliding window that neighbouring windows have in common."""


@dataclass(frozen=True)
class InferenceOptions:
    """How a scan goes through a network."""

    mirrored: str = ""
    """Axes ("x", "xy", …) that are flipped in all combinations, each a pass of its own; "" for the plain pass alone."""
    roi: tuple[int, int, int] | None = None
    """Sliding window in voxels of the network's grid; None for the whole volume at once."""
    precision: str = "32"
    """"32" or "bf16"."""


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """A scan as one network takes it."""

    image: Tensor
    """(C, I, J, K) float32; axes run to the patient's right, front and head (RAS)."""
    affine: np.ndarray
    """4×4 of the network's grid, voxel index -> world mm (RAS+)."""


def prepare(models: Sequence[Model], images: Sequence[Path], case: str) -> list[NetworkInput]:
    """Read and preprocess a case for each model; equal preprocessing is done once.

    Args:
        models: the networks.
        images: paths, one a channel.
        case: its id, for messages.

    Raises:
        VolumeError: a path that cannot be read, or channels on different grids. NetworkError: a model takes another
            number of channels.
    """
    by_preprocessing: dict[str, NetworkInput] = {}
    inputs = []
    for model in models:
        if len(images) != model.n_channels:
            raise NetworkError(f"case {case}: {model.name} takes {model.n_channels} channels, found {len(images)}")
        key = json.dumps(model.preprocessing, sort_keys=True)
        if key not in by_preprocessing:
            image = inference_chain(**model.preprocessing)({"image": list(images), "case": case})["image"]
            by_preprocessing[key] = NetworkInput(image.as_tensor(), np.asarray(image.affine, np.float64))
        inputs.append(by_preprocessing[key])
    return inputs


def feature_maps(model: Model, network_input: NetworkInput, options: InferenceOptions) -> Iterator[FeatureMap]:
    """Send a prepared scan through a network, once for each combination of mirrored axes.

    A mirrored pass shows the network a mirrored body; where left and right are exchanged, the sided classes of its
    head are exchanged back by name.

    Yields:
        The plain pass first; features (F, I, J, K) on the grid of the map's affine.

    Raises:
        NetworkError: left and right classes cannot be exchanged; features or head are NaN or infinite (every comparison
            with NaN is false, so that the whole scan would come out as background).
    """
    axes = mirror_axes(options.mirrored)
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1))
    for flipped in subsets:
        features = _features(model, network_input.image.flip([1 + axis for axis in flipped]), options)
        weight, bias = head_matrix(model.network.head, len(features))
        _check_finite(model, options, features, weight, bias)
        affine = network_input.affine @ _mirror(flipped, network_input.image.shape[1:])
        if AXES["x"] in flipped:
            partners = torch.tensor(_partners(model), device=features.device)
            if weight is None:
                features = features[partners]
            else:
                weight = weight[partners]
            if bias is not None:
                bias = bias[partners]
        yield FeatureMap(features, affine, weight, bias)


def _check_finite(model: Model, options: InferenceOptions, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        # The extremes of a tensor with NaN are NaN: one pass, and no second tensor of its size.
        if tensor is not None and not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor.detach())):
            remedy = "try --precision 32, or another run" if options.precision != "32" else "predict with another run"
            raise NetworkError(f"{model.path}: its network gives NaN or infinite values for this scan; {remedy}")


def mirror_axes(names: str) -> tuple[int, ...]:
    """ "xz" or "x,z" -> (0, 2). Raises NetworkError for other letters."""
    letters = names.replace(",", "")
    if set(letters) - set(AXES) or len(set(letters)) != len(letters):
        raise NetworkError(f"tta: expected some of the letters x, y and z, each once, found {names!r}")
    return tuple(sorted(AXES[letter] for letter in letters))


def choose_mirrored(tta: str, models: Sequence[Model]) -> str:
    """Choose the axes to mirror: the named ones, or for "auto" those along which all trainings mirrored, if any.

    A network that never saw a mirrored body is worse on one, so that axes no training mirrored are warned of.

    Args:
        tta: "" for none, "auto", or letters of `AXES`.
        models: the networks; their `flips` say what their trainings mirrored.

    Returns:
        "", "x", "xz", …

    Raises:
        NetworkError: unknown letters, or left and right classes that cannot be exchanged back.
    """
    trained = set(AXES.values()).intersection(*(model.flips for model in models))
    chosen = trained if tta == AUTO else set(mirror_axes(tta))
    if tta == AUTO and not trained:
        log.warning(
            "--tta mirrors nothing: %s, and a network is worse on mirrored scans that its training never showed",
            "training did not mirror (data.flips)" if len(models) == 1 else "no axis was mirrored in all trainings",
        )
    elif untrained := chosen - trained:
        log.warning(
            "--tta %s: training did not mirror along %s, where mirrored passes usually make results worse; "
            "give --tta alone to mirror as in training",
            tta, ", ".join(letter for letter, axis in AXES.items() if axis in untrained),
        )  # fmt: skip
    if AXES["x"] in chosen:
        _partners(models[0])
    return "".join(letter for letter, axis in AXES.items() if axis in chosen)


def _partners(model: Model) -> tuple[int, ...]:
    try:
        return mirror_partners(model.class_names)
    except ValueError as error:
        raise NetworkError(f"tta along x needs sides by name, but {error}; leave x out") from error


def _mirror(flipped: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """4×4, voxel index of the mirrored grid of `size` (I, J, K) -> voxel index of the grid."""
    matrix = np.eye(4)
    for axis in flipped:
        matrix[axis, axis], matrix[axis, 3] = -1, size[axis] - 1
    return matrix


@torch.no_grad()
def _features(model: Model, image: Tensor, options: InferenceOptions) -> Tensor:
    """(C, I, J, K) -> (F, I, J, K)."""
    x = image[None].to(model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
        if options.roi is None:
            return model.network.features(x)[0]
        # Features of overlapping windows are averaged: the head is linear, so this averages their logits.
        return sliding_window_inference(x, options.roi, 1, model.network.features, overlap=OVERLAP, mode="gaussian")[0]

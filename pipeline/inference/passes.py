"""Send a scan through trained networks: preprocessing, whole or in sliding windows, plain and mirrored."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from networks.checkpoint import SMALL_SIZE
from networks.errors import NetworkError
from networks.head import head_matrix
from networks.probe import Probe
from networks.sliding_window import STEP, SlidingWindow
from pipeline.compute.devices import choose_precision
from pipeline.console.text import counted, some_of
from pipeline.inference.model import Model
from pipeline.inference.scan_check import ScanFacts, warnings_about
from pipeline.planning.network_shape import Triple, triple
from transforms.chains import inference_chain
from transforms.io.grid import Affine
from transforms.io.load import Frames, n_frames, volume_tensor
from transforms.left_right import find_sides, mirror_partners
from transforms.restore import FeatureMap, FeatureStream, slice_axis

log = logging.getLogger(__name__)

AXES = {"x": 0, "y": 1, "z": 2}
"""World axes of the network's grid, which is RAS: x left-right, y back-front, z foot-head."""

AUTO = "auto"
"""Mirror as the training did."""


@dataclass(frozen=True)
class InferenceOptions:
    """How a scan goes through a network."""

    mirrored: str = ""
    """Axes ("x", "xy", …) that are flipped in all combinations, whose logits are averaged; "" for none."""
    roi: tuple[int, int, int] | None = None
    """Sliding window in voxels of the network's grid; None for the patch of the training, or the whole volume."""
    step: float = STEP
    """Greatest distance of neighbouring windows as a share of the window."""
    precision: str = "auto"
    """"auto" (what each network was trained in, where its device computes in it), "32", "bf16" or "16"."""

    def __post_init__(self) -> None:
        """Raise NetworkError for an impossible window or step."""
        if self.roi is not None and (len(self.roi) != 3 or min(self.roi) < 1):
            raise NetworkError(f"roi: expected three numbers of voxels above 0, found {list(self.roi)}")
        if not 0 < self.step <= 1:
            raise NetworkError(f"step: expected a share of the window above 0 and at most 1, found {self.step}")


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """A scan as one network takes it."""

    image: Tensor
    """(C, I, J, K) float32; axes run to the patient's right, front and head (RAS)."""
    affine: np.ndarray
    """4×4 of the network's grid, voxel index -> world mm (RAS+)."""


class PreparedScan(NamedTuple):
    """A scan as several networks take it."""

    inputs: list[NetworkInput]
    """One a network."""
    warnings: tuple[str, ...]
    """How the scan is unlike those that the networks were trained on."""


def prepare(models: Sequence[Model], images: Sequence[Path], case: str, frames: tuple[int, ...] = ()) -> PreparedScan:
    """Read and preprocess a case for each model; equal preprocessing is done once.

    Args:
        models: the networks.
        images: paths, one a channel; or one, whose frames are the channels of several.
        case: its id, for messages.
        frames: of the one file the frames in the order of the channels; none: as they are.

    Raises:
        VolumeError: a path that cannot be read, or channels on different grids. NetworkError: a model takes another
            number of channels.
    """
    if not frames and len(images) == 1 < models[0].n_channels:
        frames = tuple(range(n_frames(images[0])))
    for model in models:
        if len(frames or images) != model.n_channels:
            raise NetworkError(f"case {case}: {_other_channels(model, len(frames or images))}")
    source = Frames(str(images[0]), frames) if frames else list(images)

    def load(chain: Compose) -> MetaTensor:
        read = chain({"image": source, "case": case}, end=1)  # every chain's first part reads
        image: MetaTensor = read["image"]
        return image

    return _prepared(models, load, case)


def prepare_array(
    models: Sequence[Model], array: Shaped[np.ndarray, "*channel i j k"], affine: Affine, modality: str = ""
) -> PreparedScan:
    """Preprocess a scan in memory for each model, as `prepare` does with one in files.

    Args:
        models: the networks.
        array: (I, J, K), or (C, I, J, K) with the channels in the networks' order.
        affine: 4×4, voxel index -> world mm, RAS+.
        modality: "CT", "MR" or "".

    Raises:
        VolumeError: see `transforms.io.load.volume_tensor`. NetworkError: a model takes another number of channels.
    """
    n_channels = len(array) if np.ndim(array) == 4 else 1
    for model in models:
        if n_channels != model.n_channels:
            raise NetworkError(
                f"{_channels_taken(model)}, found {n_channels}; give an array of shape ({model.n_channels}, I, J, K)"
            )

    def load(chain: Compose) -> MetaTensor:
        return volume_tensor(array, affine, fill_nan=chain.transforms[0].fill_nan, modality=modality)

    return _prepared(models, load, "array")


def _prepared(models: Sequence[Model], load: Callable[[Compose], MetaTensor], case: str) -> PreparedScan:
    """Preprocess what `load` gives for a model's chain: the image before the chain's second part."""
    by_preprocessing: dict[str, NetworkInput] = {}
    inputs = []
    warnings: dict[str, None] = {}
    for model in models:
        key = json.dumps(model.preprocessing, sort_keys=True)
        if key not in by_preprocessing:
            chain = inference_chain(**model.preprocessing)
            loaded = load(chain)
            scan = ScanFacts.of(loaded)
            image = chain({"image": loaded, "case": case}, start=1)["image"]
            by_preprocessing[key] = NetworkInput(image.as_tensor(), np.asarray(image.affine, np.float64))
        inputs.append(by_preprocessing[key])
        warnings |= dict.fromkeys(warnings_about(scan, model))
    return PreparedScan(inputs, tuple(warnings))


def _channels_taken(model: Model) -> str:
    return f"{model.name} takes {counted(model.n_channels, 'channel')} ({', '.join(model.channel_names)})"


def _other_channels(model: Model, n_images: int) -> str:
    remedy = "add the missing ones, or predict with a run that was trained on such scans"
    if n_images > model.n_channels:
        remedy = "predict with a run that was trained on such scans"
    if n_images == 1:
        named = some_of([f"CASE_{name}" for name in model.channel_names], 4)
        remedy = (
            f"name the files CASE_0000, CASE_0001, … in this order, or after the channels ({named}, or without CASE_ "
            'in a folder of the case), or list them in a JSON file ([{"case": …, "image": [file, …]}])'
        )
    return f"{_channels_taken(model)}, found {n_images}; {remedy}"


def scan_features(
    model: Model,
    network_input: NetworkInput,
    options: InferenceOptions,
    source: tuple[Sequence[int], np.ndarray],
    progress: Callable[[float], None] | None = None,
) -> FeatureMap | FeatureStream:
    """Send a prepared scan through a network, as a whole or in sliding windows, plain and mirrored.

    The logits of mirrored passes are averaged, as in nnU-Net. A pass that exchanges left and right shows the network a
    mirrored body, so its head has the sided classes exchanged back by name. The head is linear, so it is the *features*
    that are averaged: those of all passes with one head in one tensor, at most two for any number of passes.

    Args:
        model: the network.
        network_input: the scan as the network takes it.
        options: windows and mirrored axes.
        source: shape (I, J, K) and affine (4×4, RAS+) of the scan's own grid.
        progress: called after each pass of each window with the share that is done.

    Returns:
        All features where there is one window, which is then computed at once; else a stream that computes windows as
        their slices are asked for.

    Raises:
        NetworkError: left and right classes cannot be exchanged; features or head are NaN or infinite (every comparison
            with NaN is false, so that the whole scan would come out as background), also later, from the stream.
        RestoreError: the scan's grid is turned against the network's.
    """
    image = network_input.image
    size = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    axis = slice_axis(source[1], source[0], network_input.affine)
    passes = _Passes(model, options)
    window = SlidingWindow(
        passes.features, image, options.roi or model.window or size, step=options.step, axis=axis, device=model.device
    )
    if progress:
        n_passes = window.n_windows * len(passes.flips)
        passes.report = lambda done: progress(done / n_passes)
    if window.n_windows == 1:
        return FeatureMap(window.slices(0, size[axis]), network_input.affine, *passes.head())
    return FeatureStream(window.slices, size, axis, network_input.affine, len(model.class_names), *passes.head())


def computed_in(model: Model, options: InferenceOptions) -> str:
    """The precision of a network's passes: "32", "bf16" or "16". Raises ConfigError for another one."""
    return choose_precision(options.precision, model.device, model.precision)


class _Passes:
    """The plain and the mirrored passes of one network through a window."""

    def __init__(self, model: Model, options: InferenceOptions) -> None:
        axes = mirror_axes(options.mirrored)
        self.flips = [flipped for n in range(len(axes) + 1) for flipped in itertools.combinations(axes, n)]
        self.model = model
        self.precision = computed_in(model, options)
        head = model.network.head
        self.weight, self.bias = (None, None) if head is None else head_matrix(head, head.in_channels)
        self._check_finite(self.weight, self.bias)
        self.partners = list(_partners(model)) if AXES["x"] in axes else list(range(len(model.class_names)))
        is_sided = self.partners != sorted(self.partners)
        self.exchanges = [is_sided and AXES["x"] in flipped for flipped in self.flips]
        """Whether each pass exchanges the left and right classes."""
        self.report: Callable[[int], None] = lambda done: None
        """Called after each pass with their number so far."""
        self._n_passes = 0

    @torch.no_grad()
    def features(self, window: Tensor) -> Tensor:
        """(1, C, *window) -> (1, F, *window), or (1, 2F, *window) where some passes exchange left and right."""
        dtype = torch.float16 if self.precision == "16" else torch.bfloat16
        plain: list[Tensor] = []
        exchanged: list[Tensor] = []
        for flipped, exchanges in zip(self.flips, self.exchanges, strict=True):
            dims = [2 + axis for axis in flipped]
            with torch.autocast(window.device.type, dtype=dtype, enabled=self.precision != "32"):
                found = self.model.network.features(window.flip(dims))
            self._check_finite(found)
            found = found.flip(dims) if dims else found
            if exchanges and self.weight is None:
                found = found[:, self.partners]
            _add(exchanged if exchanges and self.weight is not None else plain, found)
            self._n_passes += 1
            self.report(self._n_passes)
        if len(self.flips) == 1:
            return found
        return torch.cat([total.div_(len(self.flips)) for total in (*plain, *exchanged)], dim=1)

    def head(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight (C, F or 2F) and bias (C,) of the head for these features; None where the features are the logits."""
        if self.weight is None or not any(self.exchanges):
            return self.weight, self.bias
        weight = torch.cat([self.weight, self.weight[self.partners]], dim=1)
        if self.bias is None:
            return weight, None
        share = sum(self.exchanges) / len(self.exchanges)
        return weight, torch.lerp(self.bias, self.bias[self.partners], share)

    def _check_finite(self, *tensors: Tensor | None) -> None:
        for tensor in tensors:
            # The extremes of a tensor with NaN are NaN: one pass, and no second tensor of its size.
            if tensor is None or all(math.isfinite(extreme) for extreme in torch.aminmax(tensor.detach())):
                continue
            remedy = "try --precision 32, or another run" if self.precision != "32" else "predict with another run"
            raise NetworkError(f"{self.model.path}: its network gives NaN or infinite values for this scan; {remedy}")


def _add(total: list[Tensor], features: Tensor) -> None:
    """Add features to the sum in float32 that `total` holds, or is to hold."""
    if total:
        total[0] += features
    else:
        total.append(features.to(torch.float32, copy=True))


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
        for model in models:
            _partners(model)
        sides = find_sides(models[0].class_names, models[0].sided_pairs)
        if not sides.pairs and len(models[0].class_names) > 2:
            log.warning("--tta x exchanges no classes: none is named as the left or right of another")
    return "".join(letter for letter, axis in AXES.items() if axis in chosen)


def refuse_window(models: Sequence[Model], options: InferenceOptions) -> None:
    """Try the window by its shape alone, before a scan is read. A network that cannot be tried without values passes.

    Raises:
        NetworkError: a network does not take it, as one that halves it until nothing is left; names one that it takes.
    """
    if options.roi is None:
        return
    roi = triple(options.roi)
    for model in models:
        probe = Probe(model.network, model.name, model.n_channels, len(model.class_names))
        trained = triple(model.preprocessing.get("target_size") or SMALL_SIZE)
        if not _takes(probe, roi) and _takes(probe, trained):
            asked, other = (" ".join(map(str, size)) for size in (roi, _larger(roi, trained, probe)))
            raise NetworkError(
                f"roi {asked}: expected a window that the network of {model.name} takes, such as {other}, found "
                "one that it does not take; give that one, or leave roi out"
            )


def _takes(probe: Probe, size: Triple) -> bool:
    return probe.failure(size, modes=(False,)) is None


def _larger(roi: Triple, trained: Triple, probe: Probe) -> Triple:
    """The window from `roi` on that the network takes, found along each axis by itself; else that of its training."""
    edges = []
    for axis, n in enumerate(roi):
        sizes = ([*trained[:axis], edge, *trained[axis + 1 :]] for edge in range(n, trained[axis]))
        edges.append(next((size[axis] for size in sizes if _takes(probe, triple(size))), max(n, trained[axis])))
    return triple(edges) if _takes(probe, triple(edges)) else trained


def exchanged_in_words(mirrored: str, models: Sequence[Model]) -> str:
    """Say which pairs of classes are exchanged back in passes mirrored from left to right; "" where there are none."""
    if "x" not in mirrored:
        return ""
    names = models[0].class_names
    return f"mirrored from left to right: {find_sides(names, models[0].sided_pairs).in_words(names)}"


def _partners(model: Model) -> tuple[int, ...]:
    try:
        return mirror_partners(model.class_names, model.sided_pairs)
    except ValueError as error:
        raise NetworkError(f"tta along x needs sides by name, but {error}; leave x out") from error

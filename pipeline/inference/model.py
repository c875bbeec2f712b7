"""Load the models of one or several runs for prediction."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from networks.checkpoint import network_of, read_checkpoint
from networks.errors import NetworkError
from pipeline.console.text import one_line
from pipeline.files.regular import read_with_sha256
from pipeline.planning.scan_range import ScanRange
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import TrainedWeights, weights_id
from pipeline.writers.segmentation import SegmentationError
from transforms.chains import inference_chain

log = logging.getLogger(__name__)


_DECIDES = ("format", "network", "preprocessing", "class_names", "channel_names", "flips", "sided_pairs", "precision")
"""What a result depends on beside the weights, which have an id of their own; a file may hold more than we wrote."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network with what its checkpoint says about it."""

    name: str
    """Its run's."""
    path: Path
    """The checkpoint."""
    sha256: str
    """Of the file that the network was read from, in hex; by now another may lie there."""
    results_id: str
    """Equal where a scan's results are: of the weights, and of what else in the file decides; "" where not known."""
    network: Any
    """A module with `features`, (B, C, I, J, K) -> (B, F, I, J, K), and `head`, a 1×1×1 convolution or None."""
    preprocessing: dict[str, Any]
    """Arguments of `transforms.chains.inference_chain`."""
    class_names: tuple[str, ...]
    """Background first."""
    channel_names: tuple[str, ...]
    """Image channels in the network's order."""
    flips: tuple[int, ...] = ()
    """Axes of its grid (0 left-right, 1 back-front, 2 foot-head) along which its training mirrored scans."""
    sided_pairs: tuple[tuple[str, ...], ...] | None = None
    """(left, right) class names that a mirror exchanges; None: recognised by name."""
    label_values: tuple[int, ...] = ()
    """Value of each class in the label files of its training; () where these are the class indices, or not said."""
    precision: str = ""
    """What its training computed in, as Lightning calls it; "" where the checkpoint does not say."""

    scans: ScanRange | None = None
    """The range of the scans of its training; None where the checkpoint does not say."""
    trained: TrainedWeights | None = None
    """Which weights of which training these are."""

    @property
    def n_channels(self) -> int:
        """Image channels."""
        return len(self.channel_names)

    @property
    def intensities(self) -> tuple[str, ...]:
        """How its training scaled each channel: ways of `transforms.intensity.INTENSITIES`."""
        ways = self.preprocessing.get("intensity", "ct")
        return (ways,) * self.n_channels if isinstance(ways, str) else tuple(ways)

    @property
    def window(self) -> tuple[int, int, int] | None:
        """Voxels (I, J, K) of the patches it was trained on; None where it was trained on whole volumes."""
        if not self.preprocessing.get("spacing_mm"):
            return None
        i, j, k = self.preprocessing["target_size"]
        return int(i), int(j), int(k)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device


def load_models(runs: Sequence[Path | str], device: torch.device, *, trust: bool = False) -> tuple[Model, ...]:
    """Load the networks of run folders or best_model.ckpt files; nothing else is needed of a run.

    Raises:
        NetworkError: a checkpoint that is missing, damaged or incomplete, or networks whose classes or channels differ.
    """
    models = tuple(_load_model(Path(run), device, trust) for run in runs)
    if not models:
        raise NetworkError("expected a run folder or a best_model.ckpt, found none; name one")
    first = models[0]
    for other in models[1:]:
        pair = f"{first.path} and {other.path} cannot be joined"
        if other.class_names != first.class_names:
            found = _difference("class", first.class_names, other.class_names)
            raise NetworkError(f"{pair}: expected equal class names, found {found}; predict with each alone")
        if other.channel_names != first.channel_names:
            found = _difference("channel", first.channel_names, other.channel_names)
            raise NetworkError(f"{pair}: expected equal channels, found {found}; predict with each alone")
    return models


def shared_label_values(models: Sequence[Model]) -> tuple[int, ...]:
    """The value of each class in the label files of the models' trainings; () for the class indices.

    Raises SegmentationError where trainings write the same classes with different values.
    """
    values = {model.label_values for model in models}
    if len(values) > 1:
        raise SegmentationError(
            "label_values: the data sets of these runs write the same classes with different values; "
            "give --label_values index for the class indices 0, 1, 2, …"
        )
    return values.pop()


def _load_model(run: Path, device: torch.device, trust: bool) -> Model:
    path = RunFolder.at(run).best_checkpoint if run.is_dir() else run
    try:
        (checkpoint, identity), sha256 = read_with_sha256(path, lambda file: (read_checkpoint(file), weights_id(file)))
    except OSError as error:
        raise NetworkError(str(error)) from error
    names, preprocessing = checkpoint.get("class_names"), checkpoint.get("preprocessing")
    if not isinstance(preprocessing, dict) or not isinstance(names, list) or len(names) < 2:
        raise NetworkError(f"{path}: expected preprocessing and class_names beside the weights, found none of use")
    try:
        deciding = {key: checkpoint[key] for key in _DECIDES if checkpoint.get(key) is not None}
        places = [[name, list(value.shape)] for name, value in checkpoint["state_dict"].items()]
        results_id = hashlib.sha256(json.dumps([identity, places, deciding], sort_keys=True).encode()).hexdigest()
        name, precision = str(checkpoint.get("run") or path.stem), str(checkpoint.get("precision") or "")
        inference_chain(**preprocessing)
        channel_names = tuple(str(channel) for channel in checkpoint.get("channel_names") or ["image"])
        flips = tuple(int(axis) for axis in checkpoint.get("flips") or ())
        pairs = checkpoint.get("sided_pairs")
        sided_pairs = None if pairs is None else tuple(tuple(str(name) for name in pair) for pair in pairs)
        label_values = tuple(int(value) for value in preprocessing.get("label_values") or ())
    except Exception as error:  # whatever a chain says to arguments that no training wrote
        reason = one_line(error, 200)
        raise NetworkError(f"{path}: expected the preprocessing of a training, found another ({reason})") from error
    if "label_values" not in preprocessing:
        log.warning("%s does not say the values of its classes in label files; results hold class indices", path)
    if label_values and len(label_values) != len(names):
        raise NetworkError(
            f"{path}: expected a label value for each of {len(names)} classes, found {len(label_values)}"
        )
    network = network_of(checkpoint, path, map_location=device, trust=trust)
    return Model(
        name=name,
        path=path,
        sha256=sha256,
        results_id=results_id if identity else "",
        network=network,
        preprocessing=preprocessing,
        class_names=tuple(map(str, names)),
        channel_names=channel_names,
        flips=flips,
        sided_pairs=sided_pairs,
        label_values=label_values,
        precision=precision,
        scans=_scan_range(checkpoint.get("scans"), path),
        trained=TrainedWeights.of_checkpoint(checkpoint, name, identity),
    )


def _scan_range(document: Any, path: Path) -> ScanRange | None:
    if document is None:
        return None
    try:
        return ScanRange.from_document(document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise NetworkError(
            f"{path}: expected the range of the training's scans, found {str(document)[:100]}"
        ) from error


def _difference(what: str, first: Sequence[str], second: Sequence[str]) -> str:
    if len(first) != len(second):
        return f"{len(first)} and {len(second)}"
    index = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return f"{what} {index} {first[index]!r} and {second[index]!r}"

"""What a training starts from: the weights of a run or of a plain file, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from networks import BODY_NET
from networks.checkpoint import refuse_large_arguments
from networks.errors import NetworkError
from networks.growing_axes import Growing, growing_axes
from networks.parameter_limit import ParameterLimitError
from networks.registry import (
    IMAGE_SIZE,
    IN_CHANNELS,
    N_CLASSES,
    SPATIAL_DIMS,
    Specification,
    for_size,
    specify,
)
from networks.transfer import fit, named_alike
from networks.weights_file import read_weights
from pipeline.config.settings import Config
from pipeline.console.text import some_of
from pipeline.datasets.dataset import Split
from pipeline.files.atomic import FileError
from pipeline.files.json_files import read_json
from pipeline.files.regular import read_with_sha256
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.seen_cases import seen_before
from transforms.chains import inference_chain

LEAST_FIT = 0.9
"""Share of the numbers of two networks that must have the same names and shapes: less is another network, in which the
weights would not do what they did."""
Kept = dict[str, dict[str, Any]]
"""Settings by group and key."""


@dataclass(frozen=True, eq=False)
class Source:
    """Trained weights and what their file and run folder say about them."""

    path: Path
    """The file."""
    sha256: str
    """Of its bytes, in hex."""
    name: str
    """Name of the run; of a plain file its path."""
    weights: Mapping[str, Tensor]
    """By name."""
    network: Mapping[str, Any] | None
    """Class path and arguments of their network; None where the file does not say."""
    class_names: tuple[str, ...] | None
    """Background first; None where the file does not say."""
    channel_names: tuple[str, ...] | None
    """In the network's order; None where the file does not say."""
    preprocessing: Mapping[str, Any] | None
    """Arguments of `transforms.chains.inference_chain`; None where the file does not say."""
    score: str
    """Epoch and score in words; "" where the file does not say."""
    trained_on: frozenset[str]
    """Cases that it was trained on, and before it the weights that it began with; empty where they are not known."""

    @property
    def kept(self) -> Kept:
        """The settings of network and preprocessing that a training takes over where it has none of its own."""
        if self.network is None or self.preprocessing is None:
            return {}
        return {"data": _data_settings(self.preprocessing), "model": _model_settings(self.network)}

    @property
    def scaling(self) -> str:
        """The range of intensities, which no setting chooses: runs of earlier versions scaled to another one."""
        return str((self.preprocessing or {}).get("scaling", "centred"))

    def seen_in(self, split: Split) -> list[str]:
        """Name the validation and test cases that are called as cases it was trained on, a line each."""
        parts = (("validation", split.val), ("test", split.test))
        return list(filter(None, (seen_before(self.name, self.trained_on, cases, part) for part, cases in parts)))


def read_source(start_from: str | Path) -> Source:
    """Read a run folder, its best_model.ckpt, or a file with a plain state_dict.

    Raises:
        NetworkError: there is no such file, or it holds no weights that may be read, see `read_weights`.
    """
    path = Path(start_from)
    if path.is_dir():
        path = RunFolder.at(path).best_checkpoint
        if not path.exists():
            raise NetworkError(
                f"training.start_from {start_from}: expected a run folder with checkpoints/best_model.ckpt, found "
                "none; a run has it after its first validation"
            )
    try:
        (weights, checkpoint), sha256 = read_with_sha256(path, read_weights)
        if checkpoint is None:
            return Source(path, sha256, str(path), weights, None, None, None, None, "", frozenset())
        preprocessing = _checked_preprocessing(checkpoint, path)
        _refuse_other_channels(checkpoint, preprocessing or {}, path)
    except (NetworkError, OSError) as error:
        raise NetworkError(f"training.start_from: {error}") from error
    names, channels = checkpoint.get("class_names"), checkpoint.get("channel_names")
    score = checkpoint.get("val_mIoU")
    return Source(
        path=path,
        sha256=sha256,
        name=str(checkpoint.get("run") or path.stem),
        weights=weights,
        network=checkpoint["network"],
        class_names=tuple(names) if names else None,
        channel_names=tuple(map(str, channels)) if isinstance(channels, list) and channels else None,
        preprocessing=preprocessing,
        score=f"epoch {checkpoint.get('epoch')}" + (f", val mIoU {score:.4f}" if isinstance(score, float) else ""),
        trained_on=_cases_of(path),
    )


def _checked_preprocessing(checkpoint: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    found = checkpoint.get("preprocessing")
    if not isinstance(found, dict):
        return None
    try:
        inference_chain(**found)
    except Exception as error:  # whatever a chain says to arguments that no training wrote
        reason = " ".join(str(error).split())[:200]
        raise NetworkError(f"{path}: expected the preprocessing of a training, found another ({reason})") from error
    return found


def _refuse_other_channels(checkpoint: Mapping[str, Any], preprocessing: Mapping[str, Any], path: Path) -> None:
    """Raise NetworkError where the file says something of more or fewer channels than its network has."""
    n_channels = _argument(checkpoint["network"], IN_CHANNELS, None)
    for name, each in (
        ("channel_names", checkpoint.get("channel_names")),
        ("preprocessing.intensity", preprocessing.get("intensity")),
    ):
        if n_channels is not None and isinstance(each, list | tuple) and each and len(each) != n_channels:
            raise NetworkError(
                f"{path}: {name}: expected {n_channels}, one for each of the network's channels, found {len(each)}; it "
                "is damaged, copy it again from its run"
            )


def _argument(network: Mapping[str, Any], names: Sequence[str], default: int | None) -> Any:
    """The argument that has one of these names, which differ between networks."""
    return next((network[name] for name in names if name in network), default)


def _cases_of(checkpoint: Path) -> frozenset[str]:
    """The training cases that the run folder of a best_model.ckpt names, those of the weights it began with too."""
    try:
        config = read_json(checkpoint.parent.parent / "training_config.json")
        before = config.get("training", {}).get("started_from") or {}
        return frozenset(map(str, [*config["data"]["split"]["train"], *before.get("trained_on", ())]))
    except (FileError, OSError, AttributeError, KeyError, TypeError):  # a checkpoint alone, or of an earlier version
        return frozenset()


def _data_settings(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    spacing = preprocessing.get("spacing_mm")
    kept: dict[str, Any] = {"mode": "patch" if spacing else "resize", "target_size": list(preprocessing["target_size"])}
    if spacing:
        kept["spacing_mm"] = list(spacing)
    else:
        kept["keep_aspect"] = bool(preprocessing.get("keep_aspect", False))
    ways = preprocessing.get("intensity", "ct")
    ways = {ways} if isinstance(ways, str) else set(ways)
    if "ct" in ways and preprocessing.get("window"):
        kept["window"] = list(preprocessing["window"])
        kept["mean_std"] = list(preprocessing["mean_std"]) if preprocessing.get("mean_std") else "none"
    if "mr" in ways and preprocessing.get("percentiles"):
        kept["percentiles"] = list(preprocessing["percentiles"])
    if isinstance(preprocessing.get("fill_nan"), int | float):  # a list is of channels that may have another order here
        kept["fill_nan"] = preprocessing["fill_nan"]
    return kept


def _model_settings(network: Mapping[str, Any]) -> dict[str, Any]:
    of_data = {*IN_CHANNELS, *N_CLASSES, *SPATIAL_DIMS, *IMAGE_SIZE}
    arguments = {name: value for name, value in network.items() if name not in of_data}
    if arguments.get("_target_") != BODY_NET:
        return {"network": arguments}
    return {
        "base_channels": arguments.pop("base_channels", None),
        "use_light_model": bool(arguments.pop("light", False)),
        "network": arguments if len(arguments) > 1 else None,
    }


@dataclass(frozen=True, eq=False)
class Fitting:
    """Weights that fit the network of the settings."""

    source: Source
    """With the weights under the network's own names."""
    growing: Growing
    """How the network's weights depend on classes and channels."""


def refuse_other_network(source: Source, config: Config, *, trust: bool = False) -> Fitting:
    """Compare the weights with the network of the settings, before any case is opened or prepared.

    Raises:
        NetworkError: less than LEAST_FIT of the two is the same. Of a plain file, which may hold the encoder alone, it
            is what the file holds that must fit.
    """
    model = config.model
    known = source.network or {}
    specification = for_size(
        specify(
            model.network,
            in_channels=_argument(known, IN_CHANNELS, 1),
            n_classes=_argument(known, N_CLASSES, 2),
            base_channels=model.base_channels,
            light=model.use_light_model,
            trust=trust,
        ),
        config.data.target_size,
    )
    if source.network is not None and not trust:
        refuse_large_arguments(specification)
    n_numbers = sum(value.numel() for value in source.weights.values())
    try:
        growing = growing_axes(specification, None if source.network is None else n_numbers)
    except ParameterLimitError:  # a checkpoint's description may ask for a network that memory does not hold
        raise _other_network(source, specification, "none") from None
    weights = named_alike(source.weights, growing)
    found = fit(weights, growing)
    if min(found.of_old, 1.0 if source.network is None else found.of_new) < LEAST_FIT:
        raise _other_network(source, specification, f"{min(found.of_old, found.of_new):.0%}")
    return Fitting(replace(source, weights=weights), growing)


def _other_network(source: Source, specification: Specification, share: str) -> NetworkError:
    settings = {"_target_": specification.class_path, **specification.arguments}
    known = source.network
    if known is None:
        names = some_of([f"{name[:60]} {tuple(value.shape)}" for name, value in source.weights.items()], 2)
        ours, found = _in_words(settings, {}), f"{len(source.weights)} weights, {names}"
        remedy = "describe its network in model.network, or leave training.start_from out"
    else:
        ours, found = _in_words(settings, known), _in_words(known, settings)
        remedy = (
            "leave model.network, --base_channels and --use_light_model out to take its network over, or leave "
            "training.start_from out"
        )
    return NetworkError(
        f"training.start_from {source.name}: expected weights of the network of the settings, {ours}, found {found}; "
        f"{share} of the numbers fit; {remedy}"
    )


def _in_words(network: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """A network's class and those of its arguments that the other has otherwise, apart from classes and channels."""
    name = str(network.get("_target_")).rpartition(".")[2]
    of_data = {"_target_", *IN_CHANNELS, *N_CLASSES, *SPATIAL_DIMS}
    differing = [f"{k}={v!r:.60}" for k, v in network.items() if k not in of_data and other.get(k) != v]
    return f"{name}({', '.join(differing)})"

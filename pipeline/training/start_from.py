"""Begin a training with trained weights: what its classes and channels were there, what is taken, and how it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks.encoder import encoder_weights
from networks.transfer import Transfer, count_of, transfer
from pipeline.checks.modality import IntensityChoice
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, ConfigError
from pipeline.console.text import aligned, some_of
from pipeline.datasets.class_table import only_ones, plain_name
from pipeline.datasets.dataset import Dataset
from pipeline.datasets.rows import are_named
from pipeline.files.atomic import FileError
from pipeline.training.optimisation import TakenWeights
from pipeline.training.start_source import Fitting, Source

NAMES_LISTED = 4
"""Names of weights in a row of the table; training_config.json has all."""


@dataclass(frozen=True)
class Match:
    """Classes or channels of a training, and which ones they were in the network that it starts from."""

    names: tuple[str, ...]
    """The training's."""
    old_names: tuple[str, ...]
    """The old network's."""
    sources: tuple[int | None, ...]
    """For each of `names` its position among `old_names`; None: it is new."""
    by_position: bool = False
    """Whether names said nothing and the order was taken."""

    @property
    def lost(self) -> tuple[str, ...]:
        """Old names that the training has no more."""
        return tuple(name for position, name in enumerate(self.old_names) if position not in self.sources)

    @property
    def new(self) -> tuple[str, ...]:
        """Names that the old network did not have."""
        return tuple(name for name, source in zip(self.names, self.sources, strict=True) if source is None)

    def to_document(self) -> dict[str, str | None]:
        """The old name of each name, None of a new one."""
        return {
            name: None if source is None else self.old_names[source]
            for name, source in zip(self.names, self.sources, strict=True)
        }

    def in_words(self, of_new: str) -> str:
        """What became of all of them; `of_new` says what new ones are."""
        old = self.to_document()
        taken = [name if name == old[name] else f"{name} (there {old[name]})" for name in self.names if old[name]]
        parts = [some_of(taken, 12) if taken else "none is known there"]
        if self.new:
            parts.append(f"{of_new}: {some_of(self.new, 12)}")
        if self.lost:
            parts.append(f"dropped: {some_of(self.lost, 12)}")
        return "; ".join(parts) + (" (in their order, since names are missing)" if self.by_position else "")


@dataclass(frozen=True, eq=False)
class Start:
    """What a training with these classes and channels takes over."""

    fitting: Fitting
    """Weights that fit its network."""
    classes: Match
    channels: Match
    intensity: IntensityChoice | None
    """How the old run scales each channel, "unknown" for new ones; None where the settings or nobody says."""

    @property
    def source(self) -> Source:
        """Where the weights are from."""
        return self.fitting.source


@dataclass(frozen=True, eq=False)
class Started:
    """What was taken over."""

    document: Mapping[str, Any]
    """The record in training_config.json, under training.started_from."""
    lines: tuple[str, ...]
    """The same as a short table."""


def plan_start(fitting: Fitting, config: Config, dataset: Dataset) -> Start:
    """Match the classes and channels of a data set, listed, with those of the weights.

    Raises:
        ConfigError: training.start_classes names a class that is not there.
    """
    source = fitting.source
    n_classes, n_channels = (count_of(source.weights, fitting.growing, kind) for kind in ("class", "channel"))
    classes = match_classes(dataset.classes.names, source.class_names, n_classes, config.training.start_classes or {})
    channels = match_channels(dataset.channel_names, source.channel_names, n_channels)
    intensity = None
    if source.preprocessing is not None and config.data.intensity == "auto":
        found = source.preprocessing.get("intensity", "ct")
        ways = [found] * len(channels.old_names) if isinstance(found, str) else found
        kept = tuple("unknown" if position is None else ways[position] for position in channels.sources)
        intensity = IntensityChoice(kept, f"as in {source.name}")
    return Start(fitting, classes, channels, intensity)


def keep_scaling(config: Config, source: Source) -> Config:
    """Put the numbers by which the run scales CT in the place of "auto", as its kinds of intensities are."""
    if config.data.intensity not in ("auto", "ct"):
        return config
    return replace(config, data=config.data.with_scaling(source.kept.get("data", {})))


def match_classes(
    names: Sequence[str], old_names: Sequence[str] | None, n_old: int | None, renamed: Mapping[str, str]
) -> Match:
    """Find the classes of a training among those of the weights: by what `renamed` says, by name, or by name without
    regard to case, blanks and punctuation; the first is the background in both.

    Weights whose file names no classes keep their order if they have as many, else all classes are new.

    >>> match_classes(["background", "Liver", "tumour"], ["background", "liver"], 2, {}).sources
    (0, 1, None)

    Raises:
        ConfigError: `renamed` (old name: new name) names a class that is not there, or one twice.
    """
    if old_names is None:
        _refuse_unknown("names in the file that training.start_from gives", renamed, ())
        same = n_old == len(names)
        known = tuple(names) if same else tuple(f"class {n}" for n in range(n_old or 0))
        return Match(tuple(names), known, tuple(range(len(names))) if same else (None,) * len(names), same)
    _refuse_unknown("classes of the run that is started from", renamed, old_names)
    _refuse_unknown("classes of the data set", renamed.values(), names)
    twice = next((new for new in renamed.values() if list(renamed.values()).count(new) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"training.start_classes: expected each class once, found two old ones for {twice!r}; keep one"
        )
    sources: dict[str, int] = {new: old_names.index(old) for old, new in renamed.items()}
    free = [name for name in old_names[1:] if name not in renamed]
    for form in (str, plain_name):
        index_of = only_ones(free, form)
        for name in names[1:]:
            if name not in sources and form(name) in index_of:
                position = old_names.index(free[index_of[form(name)]])
                if position not in sources.values():
                    sources[name] = position
    found = (0, *(sources.get(name) for name in names[1:]))
    return Match(tuple(names), tuple(old_names), found)


def _refuse_unknown(what: str, given: Any, known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"training.start_classes: expected {what}, {some_of(known, 8) or 'of which there are none'}, "
                f"found {name!r:.80}; correct the name"
            )


def match_channels(names: Sequence[str], old_names: Sequence[str] | None, n_old: int | None) -> Match:
    """Find the channels of a training among those of the weights, by name without regard to upper and lower case.

    One channel stands for one channel whatever they are called, and where names are missing their order counts.

    >>> match_channels(["FLAIR", "T1"], ["T1"], 1).sources
    (None, 0)
    """
    old = tuple(old_names or (f"channel {n}" for n in range(n_old or 0)))
    if len(names) == len(old) == 1:
        return Match(tuple(names), old, (0,))
    if old_names is None or not are_named(old) or not are_named(names):
        found = tuple(n if n < len(old) else None for n in range(len(names)))
        return Match(tuple(names), tuple(names[n] if n < len(names) else old[n] for n in range(len(old))), found, True)
    plain = [name.strip().lower() for name in old]
    wanted = [name.strip().lower() for name in names]
    return Match(tuple(names), old, tuple(plain.index(name) if plain.count(name) == 1 else None for name in wanted))


def take_over(start: Start, network: nn.Module, config: Config) -> Started:
    """Put the weights into the network, and say what became of them."""
    source = start.source
    sources: dict[Any, Sequence[int | None]] = {"class": start.classes.sources, "channel": start.channels.sources}
    result = transfer(network.state_dict(), source.weights, start.fitting.growing, sources)
    network.load_state_dict(dict(result.weights))
    kept, changed = _kept_and_changed(source, config)
    document = {
        "run": source.name,
        "checkpoint": str(source.path),
        "sha256": source.sha256,
        "trained_on": sorted(source.trained_on),
        "kept": source.kept,
        "changed": changed,
        "classes": start.classes.to_document(),
        "lost_classes": list(start.classes.lost),
        "channels": start.channels.to_document(),
        "lost_channels": list(start.channels.lost),
        "n_weights_taken": len(result.taken),
        "weights_in_part": list(result.in_part),
        "weights_initialised": list(result.initialised),
        "weights_dropped": list(result.dropped),
    }
    heading = f"Starting from {source.name}" + (f" ({source.score})" if source.score else "")
    rows = [*_rows(start, result, config), *_rows_of_settings(kept, changed)]
    return Started(document, (heading, *(f"  {line}" for line in aligned(rows, left=(0, 1)))))


def _rows(start: Start, result: Transfer, config: Config) -> Iterator[tuple[str, str]]:
    n_taken, n_all = (_n_numbers(result.weights, names) for names in (result.taken, result.weights))
    yield "taken", f"{len(result.taken)} of {len(result.weights)} weights, {n_taken:,} of {n_all:,} numbers"
    initialised = list(result.initialised)
    if config.training.deep_supervision:
        initialised.append("the heads of deep supervision, which no run keeps")
    for title, names in (("in part", result.in_part), ("newly initialised", initialised), ("dropped", result.dropped)):
        if names:
            yield title, some_of(names, NAMES_LISTED)
    yield "classes", start.classes.in_words("newly initialised")
    yield "channels", start.channels.in_words("new, without effect at first")


def _n_numbers(weights: Mapping[str, Tensor], names: Any) -> int:
    return sum(weights[name].numel() for name in names)


def _kept_and_changed(source: Source, config: Config) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Which settings are the old run's, and which are others: [there, here]."""
    now = as_mapping(config)
    kept, changed = {}, {}
    for group, values in source.kept.items():
        for key, value in values.items():
            if now[group][key] == value:
                kept[f"{group}.{key}"] = value
            else:
                changed[f"{group}.{key}"] = [value, now[group][key]]
    return kept, changed


def _rows_of_settings(kept: Mapping[str, Any], changed: Mapping[str, list[Any]]) -> Iterator[tuple[str, str]]:
    if kept:
        yield "kept", ", ".join(f"{name} {value}" for name, value in kept.items() if value not in (None, False))
    for name, (there, here) in changed.items():
        yield "changed", f"{name}: {there} there, {here} here"


def treatment(document: Mapping[str, Any], network: Any, config: Config, *, in_channels: int) -> TakenWeights:
    """How the parameters that were taken over learn.

    Args:
        document: the record of the start, see `Started.document`: a resumed run has no more.
        network: the one that is trained.
        config: the settings.
        in_channels: image channels.

    Raises:
        NetworkError: an encoder is to be frozen and the network has none.
        FileError: the record is damaged.
    """
    training, state = config.training, network.state_dict(keep_vars=True)
    try:
        others = {*document["weights_in_part"], *document["weights_initialised"]}
    except (KeyError, TypeError) as error:
        raise FileError(
            "training_config.json: training.started_from: expected the lists weights_in_part and "
            "weights_initialised, found none; restore the file from a copy"
        ) from error
    whole = {name: value for name, value in state.items() if isinstance(value, nn.Parameter) and name not in others}
    frozen, norms = [], []
    if training.freeze_epochs:
        encoder = encoder_weights(network, in_channels, config.data.target_size)
        frozen = [value for name, value in whole.items() if name in encoder and value.requires_grad]
        tensors = {id(state[name]) for name in encoder}
        norms = [
            each for each in network.modules() if isinstance(each, _BatchNorm) and id(each.running_mean) in tensors
        ]
    return TakenWeights(
        whole=tuple(whole.values()),
        lr_factor=training.taken_lr_factor,
        frozen=tuple(frozen),
        frozen_norms=tuple(norms),
        freeze_epochs=training.freeze_epochs,
    )

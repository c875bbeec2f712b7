"""The trackers that a training can be followed in beside TensorBoard, and their options. Imports none of them."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import urlsplit

TrackerName = Literal["csv", "mlflow", "wandb"]


@dataclass(frozen=True)
class CsvOptions:
    """csv/metrics.csv in the run folder, a line an epoch; it has no options."""


@dataclass(frozen=True)
class MlflowOptions:
    """MLflow, by default a database file beside the runs."""

    tracking_uri: str = ""
    """Server or database, such as http://host:5000; empty: mlflow.db in experiment.log_dir. The environment's
    MLFLOW_TRACKING_URI is not heeded, so that nothing leaves the machine unasked."""
    experiment_name: str = ""
    """Experiment of MLflow; empty: experiment.name."""
    run_name: str = ""
    """Run of MLflow; empty: the name of the run folder."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run."""

    def __post_init__(self) -> None:
        if urlsplit(self.tracking_uri).password:
            raise ValueError(
                "tracking_uri holds a password, which training_config.json would keep; give MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD in the environment instead"
            )


@dataclass(frozen=True)
class WandbOptions:
    """Weights & Biases, by default offline: files under wandb/ in experiment.log_dir, for `wandb sync`."""

    mode: Literal["offline", "online"] = "offline"
    """online sends settings and scores to the server while the network trains."""
    project: str = ""
    """Project; empty: experiment.name."""
    entity: str = ""
    """User or team; empty: that of the login."""
    group: str = ""
    """Group of runs, such as the folds of a study; empty: none."""
    name: str = ""
    """Run; empty: the name of the run folder."""
    tags: Sequence[str] = ()
    """Tags of the run."""


TrackerOptions = CsvOptions | MlflowOptions | WandbOptions

_OPTIONS: dict[str, type[TrackerOptions]] = {"csv": CsvOptions, "mlflow": MlflowOptions, "wandb": WandbOptions}


def read_trackers(entries: Sequence[str | Mapping[str, Any]]) -> dict[str, TrackerOptions]:
    """Read the entries of experiment.logger; returns the options of each tracker by its name, in their order.

    >>> read_trackers(["csv", {"wandb": {"project": "spine"}}])["wandb"].project
    'spine'

    Args:
        entries: names, or for each one a mapping of its name to its options.

    Raises:
        ValueError: an unknown tracker or option, a value of another kind, a tracker that is named twice.
    """
    found: dict[str, TrackerOptions] = {}
    for entry in entries:
        named = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(named, Mapping) or len(named) != 1:
            raise ValueError(
                f"expected a tracker's name, or its name and its options as in {{mlflow: {{…}}}}, found {entry!r:.60}"
            )
        ((name, options),) = named.items()
        if name not in _OPTIONS:
            raise ValueError(f"unknown tracker {name!r:.40}; known are {', '.join(_OPTIONS)}")
        if name in found:
            raise ValueError(f"{name} is named twice; keep one")
        try:
            found[name] = _options(_OPTIONS[name], {} if options is None else options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _options(cls: type[TrackerOptions], given: Any) -> TrackerOptions:
    if not isinstance(given, Mapping):
        raise ValueError(f"expected options as in {{name: value}}, found {given!r:.60}")
    hints = typing.get_type_hints(cls)
    for key, value in given.items():
        if key not in hints:
            known = ", ".join(f.name for f in fields(cls)) or "none"
            raise ValueError(f"unknown option {key!r:.40}; known are {known}")
        if fault := _fault(hints[key], value):
            raise ValueError(f"{key}: expected {fault}, found {value!r:.60}")
    return cls(**given)


def _fault(hint: Any, value: Any) -> str | None:
    """What was expected, in words, where a value is of another kind."""
    if words := typing.get_args(hint) if typing.get_origin(hint) is Literal else ():
        return None if value in words else f"one of {', '.join(words)}"
    kind, what, texts = {
        str: (str, "a text", lambda: [value]),
        Sequence[str]: (list | tuple, "a list of texts", lambda: value),
        Mapping[str, str]: (Mapping, "a mapping of texts to texts", lambda: [*value, *value.values()]),
    }[hint]
    return None if isinstance(value, kind) and all(isinstance(text, str) for text in texts()) else what

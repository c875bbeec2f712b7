"""Which of a run's cases the weights that it began with were trained on, by their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pipeline.console.text import some_of


def seen_before(run: str, trained_on: Collection[str], cases: Sequence[str], part: str = "validation") -> str:
    """Name the cases that are called as cases that weights were trained on; "" where there are none.

    Args:
        run: whose weights these are.
        trained_on: the names of its training cases.
        cases: those that are scored.
        part: what they are called.

    >>> seen_before("old", {"a", "b"}, ["b", "c"]).partition(":")[0]
    '1 of 2 validation cases bear names of cases that old was trained on (b)'
    """
    known = frozenset(trained_on)
    seen = [case for case in cases if case in known]
    if not seen:
        return ""
    return (
        f"{len(seen)} of {len(cases)} {part} cases bear names of cases that {run} was trained on "
        f"({some_of(seen, 3)}): if they are the same scans, their scores are too good; keep its seed and split, or "
        "take others"
    )


def seen_at_start(configs: Sequence[Mapping[str, Any]], part: Literal["val", "test"]) -> str:
    """The same of the weights with which a training began; "" also where it began with none or does not say which.

    Args:
        configs: its training_config.json, or that of each fold of a cross-validation.
        part: of the split, whose cases are scored.
    """
    found = [each for config in configs if isinstance(each := config["training"].get("started_from"), dict)]
    started = max(found, key=lambda each: len(_names(each.get("trained_on"))), default={})  # earlier versions had none
    splits = (config["data"].get("split") for config in configs)
    cases = dict.fromkeys(case for split in splits if isinstance(split, dict) for case in _names(split.get(part)))
    called = {"val": "validation", "test": "test"}[part]
    return seen_before(str(started.get("run")), _names(started.get("trained_on")), list(cases), called)


def _names(value: object) -> list[str]:
    return list(map(str, value)) if isinstance(value, list) else []

"""What a data set is judged by before it is used: listed, every case looked at, divided, errors refused or left out.

The verb "check" and a training come here with the same questions; how a case is opened is `inspection`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.checks.case_check import CaseFacts
from pipeline.checks.dataset_check import judge_dataset
from pipeline.checks.findings import Finding, errors, from_error, refuse_errors
from pipeline.checks.modality import choose_intensity
from pipeline.checks.remembered_checks import inspect_once
from pipeline.config.settings import Config, DataConfig
from pipeline.console.progress import Progress
from pipeline.datasets.dataset import Dataset, Split
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases
from pipeline.datasets.splits import split_by_subject
from transforms.chains import ChainError, augmentation_chain

_REFUSED = "repair them, or train without these cases with --skip_bad_cases (bodyseg check says more)"
_NOT_OF_A_CASE = "--skip_bad_cases cannot help here: repair the data set or the settings"
_WERE_GOOD = "the run that is resumed began with these cases: restore their files, or begin another run"


@dataclass(frozen=True)
class Screened:
    """A data set as it was judged: how it is divided (None where it cannot be), its facts and what is wrong.

    `intensity` is `choose_intensity`'s; `skipped` says by case why it was left out of `dataset`, `split` and `facts`.
    """

    dataset: Dataset
    split: Split | None
    facts: tuple[CaseFacts, ...]
    intensity: dict[str, str]
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def list_configured(config: Config) -> tuple[Dataset, tuple[Finding, ...]]:
    """List the data set of the settings, and say what is wrong with it before any file is opened.

    Raises:
        DatasetError: there is no data set to look at.
    """
    data = config.data
    dataset = list_cases(
        Path(data.dataset_root),
        data.layout,
        fold=data.fold,
        class_names=data.class_names or None,
        label_remap=data.label_remap,
        strict=False,
        follow_links=data.follow_links,
    )
    findings = [from_error(error, file=dataset.root) for error in dataset.refused]
    return dataset, (*findings, *_class_count(dataset, config.model.n_classes), *_augmentation(config.data, dataset))


def _class_count(dataset: Dataset, n_classes: int | None) -> list[Finding]:
    found = len(dataset.classes.names)
    if n_classes in (None, found):
        return []
    expected = f"{n_classes} classes with the background (model.n_classes)"
    remedy = f"set model.n_classes to {found} or leave it out"
    return [Finding("error", "dataset", "", str(dataset.root), expected, f"{found} in the data set", remedy)]


def _augmentation(data: DataConfig, dataset: Dataset) -> list[Finding]:
    """Say what is wrong with the settings of the augmentation, for which the class names must be known."""
    if not data.data_aug:
        return []
    try:
        augmentation_chain(
            data.target_size, class_names=dataset.classes.names, flips=data.flips, **(data.augmentation or {})
        )
    except (ChainError, TypeError) as error:
        where = "data.augmentation, data.flips"
        return [Finding("error", "dataset", "", where, "settings that can be applied", str(error), "correct them")]
    return []


def judge(config: Config, dataset: Dataset, facts: Sequence[CaseFacts]) -> Screened:
    """Judge a data set by what was found in its cases. Opens no file.

    Where the data set has no split of its own, that of the configured seed is judged, by the classes in the label
    files: the one that a training uses.
    """
    findings = [finding for case in facts for finding in case.findings]
    split = dataset.split
    if split is None:
        classes_of = {f.case: np.flatnonzero(f.label.class_voxels).tolist() for f in facts if f.label is not None}
        try:
            split = split_by_subject(dataset.cases, seed=config.training.seed, classes_of=classes_of)
        except DatasetError as error:
            findings += [from_error(part, file=dataset.root) for part in error.parts]
    images = [case.images[0] for case in facts if case.images]
    intensity = choose_intensity(dataset.channel_names, images, config.data.intensity)
    findings += judge_dataset(facts, dataset, split=split, intensity=intensity["intensity"])
    return Screened(dataset, split, tuple(facts), intensity, tuple(findings))


def screen(
    config: Config, progress: Progress | None = None, *, skipped_before: Mapping[str, str] | None = None
) -> Screened:
    """Look at every case before a training, opening only those that the cache folder does not remember.

    Args:
        config: the settings; data.skip_bad_cases leaves cases with errors out instead of refusing.
        progress: called after each case.
        skipped_before: a resumed run's cases that were left out when it began, with the reasons: they stay out, and
            no others may go.

    Returns:
        A data set without errors, divided.

    Raises:
        BadDataError: errors, one a line.
        DatasetError: there is no data set, or one side of its split is left without a case.
        CacheError: the cache folder cannot be used.
    """
    dataset, found = list_configured(config)
    skipped = dict(skipped_before or {})
    if config.data.skip_bad_cases:
        refuse_errors([finding for finding in found if not finding.case], _NOT_OF_A_CASE)
    skipped |= _to_drop([finding for finding in found if finding.case not in skipped], config, skipped_before)
    dataset = _without(dataset, skipped)
    facts = inspect_once(dataset.cases, dataset, Path(config.data.cache_dir), progress=progress)
    screened = judge(config, dataset, facts)
    while wrong := errors(screened.findings):
        # A case's own errors first: a copy of a bad case may be good once that is gone.
        own = errors(finding for case in screened.facts for finding in case.findings)
        dropped = _to_drop(own if own and config.data.skip_bad_cases else wrong, config, skipped_before)
        skipped |= dropped
        kept = [case for case in screened.facts if case.case not in dropped]
        screened = judge(config, _without(screened.dataset, dropped), kept)
    return replace(screened, skipped=dict(sorted(skipped.items())))


def _to_drop(findings: Sequence[Finding], config: Config, skipped_before: Mapping[str, str] | None) -> dict[str, str]:
    """The cases with errors and what is wrong with them. Raises BadDataError where they may not be left out."""
    reasons = _reasons(findings)
    if not reasons:
        refuse_errors(findings, _NOT_OF_A_CASE)
    elif not config.data.skip_bad_cases:
        refuse_errors(findings, _REFUSED)
    elif skipped_before is not None:
        refuse_errors(findings, _WERE_GOOD)
    return reasons


def _reasons(findings: Sequence[Finding]) -> dict[str, str]:
    """What is wrong with each case that has an error, in a line."""
    wrong: dict[str, list[str]] = {}
    for finding in errors(findings):
        if finding.case:
            wrong.setdefault(finding.case, []).append(str(replace(finding, case="")))
    return {case: "; ".join(lines) for case, lines in wrong.items()}


def _without(dataset: Dataset, skipped: Mapping[str, str]) -> Dataset:
    """The data set without some cases. Raises DatasetError where a side of its own split is then empty."""
    cases = tuple(case for case in dataset.cases if case.id not in skipped)
    split = dataset.split
    if split is not None:
        kept = {name: tuple(i for i in ids if i not in skipped) for name, ids in split.items()}
        for name, use in (("train", "train on"), ("val", "validate with")):
            if not kept[name]:
                first = next(f"case {i}: {skipped[i]}" for i in getattr(split, name))
                expected = f"cases to {use}"
                found = f"that every {name} case has errors and would be left out"
                raise DatasetError("dataset", dataset.root, expected, found, f"repair one at least, such as {first}")
        split = Split(**kept, source=split.source)
    return replace(dataset, cases=cases, split=split)

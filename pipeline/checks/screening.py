"""Check a data set before a training: list, check every case, split, refuse bad cases or leave them out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.cache.key import SourceIndex
from pipeline.checks.case_check import CheckedCase, whole_cases
from pipeline.checks.channel_check import Scaling
from pipeline.checks.class_check import TargetGrid
from pipeline.checks.dataset_check import check_dataset
from pipeline.checks.findings import Finding, errors, from_error, refuse_errors
from pipeline.checks.modality import IntensityChoice, choose_intensity
from pipeline.checks.remembered_checks import check_changed_cases
from pipeline.checks.voxel_statistics import ImageStatistics
from pipeline.checks.window import WIDEST, choose_mean_std, choose_window
from pipeline.config.settings import Config, DataConfig
from pipeline.config.without_effect import unused_scaling
from pipeline.console.progress import Progress
from pipeline.datasets.dataset import Dataset, Folds, Split
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.joined import list_data_sets
from pipeline.datasets.rows import LabelReading
from pipeline.datasets.splits import fold_by_subject, split_by_subject
from transforms.axes import LEFT_RIGHT
from transforms.chains import ChainError, augmentation_chain, preprocessing_chain
from transforms.io.label_values import LabelLookup
from transforms.left_right import Sides, find_sides

_REFUSED = "repair them, or train without these cases with --skip_bad_cases (bodyseg check says more)"
_NOT_OF_A_CASE = "--skip_bad_cases cannot help here: repair the data set or the settings"
_WERE_GOOD = "the run that is resumed began with these cases: restore their files, or begin another run"


@dataclass(frozen=True)
class Screened:
    """A data set and what was found in it."""

    dataset: Dataset
    """Without skipped cases."""
    split: Split | None
    """How it is divided; None where it cannot be."""
    folds: Folds | None
    """All folds, of which `split` is one; None where there is one split."""
    cases: tuple[CheckedCase, ...]
    intensity: IntensityChoice
    """How each channel is scaled."""
    scaling: Scaling
    """The window and percentiles that channels are scaled by."""
    findings: tuple[Finding, ...]
    """Those of `assess`, and of `screen` the warnings of the listing, too."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """By case, why it was left out of `dataset`, `split` and `cases`."""


Listed = tuple[Dataset, tuple[Finding, ...]]
"""A data set, none of whose files was opened, and what is wrong with it so far."""


def list_configured(config: Config) -> Listed:
    """List the data set of the settings, and say what is wrong with it or with the chains before any file is opened.

    Raises:
        DatasetError: there is no data set, or data.fill_nan has numbers for more or fewer channels than it has.
    """
    data = config.data
    dataset = list_data_sets(
        data.dataset_root,
        data.layout,
        fold=data.fold,
        n_folds=data.folds,
        split_file=data.split_file,
        class_names=data.class_names or None,
        labels=LabelReading(data.label_remap, data.missing_masks),
        subject_pattern=data.subject_pattern,
        strict=False,
        follow_links=data.follow_links,
    )
    _check_fill_nan(data, dataset)
    findings = [from_error(error, file=dataset.root) for error in dataset.refused]
    findings += [replace(from_error(warning, file=dataset.root), severity="warning") for warning in dataset.warnings]
    findings += _wrong_class_count(dataset, config.model.n_classes)
    findings += _wrong_names(dataset)
    findings += _wrong_chains(data, dataset) or mirrored_sides(data, dataset)
    return dataset, tuple(findings)


def _check_fill_nan(data: DataConfig, dataset: Dataset) -> None:
    names = dataset.channel_names
    if isinstance(data.fill_nan, list) and len(data.fill_nan) != len(names):
        expected = f"one number, or one for each of {len(names)} channels ({', '.join(names)})"
        raise DatasetError(
            "setting", "data.fill_nan", expected, f"{data.fill_nan}", "give as many as there are channels"
        )


def _wrong_class_count(dataset: Dataset, n_classes: int | None) -> list[Finding]:
    n_listed = len(dataset.classes.names)
    if n_classes in (None, n_listed):
        return []
    expected = f"{n_classes} classes with the background (model.n_classes)"
    remedy = f"set model.n_classes to {n_listed} or leave it out"
    return [Finding("error", "setting", "", str(dataset.root), expected, f"{n_listed} in the data set", remedy)]


def _wrong_names(dataset: Dataset) -> list[Finding]:
    """Find names that no file or terminal can hold: halves of surrogate pairs, as JSON can write them."""
    findings = []
    for name in (*dataset.classes.names, *dataset.channel_names):
        try:
            name.encode()
        except UnicodeEncodeError:
            expected = "names of classes and channels that can be written as UTF-8"
            found, remedy = ascii(name), "rename it in the data set"
            findings.append(Finding("error", "dataset", "", str(dataset.root), expected, found, remedy))
    return findings


def _wrong_chains(data: DataConfig, dataset: Dataset) -> list[Finding]:
    """Build the chains of a training, which need no file, to find settings that they refuse."""
    table = dataset.classes
    root = str(dataset.root)
    findings = []
    try:
        LabelLookup(table.values, table.ignore_value, table.remap)
    except ValueError as error:
        expected, remedy = "label values that a table of classes can hold", "renumber the classes in the label files"
        findings.append(Finding("error", "setting", "", root, expected, str(error), remedy))
    try:
        window = WIDEST if data.window == "auto" else data.window
        preprocessing_chain(data.target_size, window=window, percentiles=data.percentiles)
        if data.data_aug:
            strengths = data.augmentation or {}
            augmentation_chain(
                data.target_size, class_names=table.names, flips=data.flips, sided_pairs=data.sided_pairs, **strengths
            )
    except (ChainError, TypeError) as error:
        expected, remedy = "settings that a chain of transforms can be built from", "correct the settings under data"
        findings.append(Finding("error", "setting", "", root, expected, str(error), remedy))
    return findings


def mirrored_sides(data: DataConfig, dataset: Dataset) -> list[Finding]:
    """Warn where left and right are mirrored and a class may then bear the name of the other side."""
    names = dataset.classes.names
    sides = sides_under_a_mirror(data, names)
    if sides is None:
        return []
    if not sides.without_partner and (sides.pairs or data.sided_pairs is not None or len(names) == 2):
        return []
    expected = "a partner on the other side for every class that has a side, since data.flips mirrors left and right"
    remedy = "take axis 0 out of data.flips, or name the pairs in data.sided_pairs ([] if no class has a side)"
    return [Finding("warning", "sides_unknown", "", str(dataset.root), expected, sides.in_words(names), remedy)]


def sides_under_a_mirror(data: DataConfig, class_names: Sequence[str]) -> Sides | None:
    """Which classes a mirror from left to right exchanges; None where the training has none, or refuses the pairs."""
    if LEFT_RIGHT not in data.flips:
        return None
    try:
        return find_sides(class_names, data.sided_pairs)
    except ValueError:
        return None  # an error of the chain, see `_wrong_chains`


def assess(
    config: Config, dataset: Dataset, cases: Sequence[CheckedCase], *, kept: IntensityChoice | None = None
) -> Screened:
    """Divide a data set and check it as a whole, from what was found in its cases. Opens no file.

    Where the data set has no split of its own, that of the configured seed is checked, by the classes in the label
    files: the one that a training uses.

    kept: how the run that is resumed, or started from, scales the intensities of these channels; chosen where it is
    unknown, or None.
    """
    findings = [finding for case in cases for finding in case.findings]
    split, folds = dataset.split, dataset.folds
    if split is None:
        try:
            split, folds = _divided(config, dataset, cases)
        except DatasetError as error:
            findings += [from_error(part, file=dataset.root) for part in error.parts]
    elif config.data.split_shares != DataConfig.split_shares:
        found = f"{len(split.train)} and {len(split.val)} cases: the data set's own split comes first"
        remedy = "remove that split, or leave data.split_shares out"
        shares = list(config.data.split_shares)
        expected = f"cases to train and to validate with, divided as data.split_shares {shares} says"
        findings.append(Finding("warning", "setting", "", str(dataset.root), expected, found, remedy))
    intensity = kept if kept is not None and len(kept.by_channel) == len(dataset.channel_names) else None
    if intensity is None or "unknown" in intensity.by_channel:
        chosen = choose_intensity(dataset.channel_names, _by_channel(dataset, cases), config.data.intensity)
        intensity = chosen if intensity is None else intensity.completed(chosen)
    findings += _unused_settings(config.data, intensity, dataset)
    scaling = choose_scaling(cases, intensity, config.data, split.train if split else None)
    findings += check_dataset(
        cases,
        dataset,
        split=split,
        intensity=intensity,
        scaling=scaling,
        target=TargetGrid(config.data.target_size, config.data.keep_aspect, config.data.spacing_mm),
    )
    return Screened(dataset, split, folds, tuple(cases), intensity, scaling, tuple(findings))


def _unused_settings(data: DataConfig, intensity: IntensityChoice, dataset: Dataset) -> list[Finding]:
    """Warn of numbers for intensities that the data have none of; where data.intensity names a way, it was judged."""
    if data.intensity != "auto":
        return []
    expected, found = "settings that have an effect on these data", f"intensities scaled as {intensity.in_words}"
    return [
        Finding(
            "warning", "setting", "", str(dataset.root), expected, f"data.{name}, and {found}", f"leave data.{name} out"
        )
        for name in unused_scaling(data, intensity.by_channel)
    ]


def _divided(config: Config, dataset: Dataset, cases: Sequence[CheckedCase]) -> tuple[Split, Folds | None]:
    """Divide a data set without a split of its own. Raises DatasetError where that cannot be done."""
    seed = config.training.seed
    classes_of = {c.case: np.flatnonzero(c.label.class_voxels).tolist() for c in cases if c.label is not None}
    if config.data.folds:
        if dataset.own_split is not None:
            found = f"some of them alone: {dataset.own_split.source}"
            remedy = "take these away, or leave data.folds out"
            raise DatasetError("dataset", dataset.root, "folds of their own in all data sets or in none", found, remedy)
        folds = fold_by_subject(dataset.cases, config.data.folds, seed=seed, classes_of=classes_of)
        return folds.splits[config.data.fold], folds
    train, val, test = (percent / 100 for percent in config.data.split_shares)
    own = dataset.own_split
    rest = [case for case in dataset.cases if own is None or own.of(case.id) is None]
    split = split_by_subject(rest, seed=seed, classes_of=classes_of, fractions=(train, val, test))
    return split if own is None else own.joined(split), None


def choose_scaling(
    cases: Sequence[CheckedCase], intensity: IntensityChoice, data: DataConfig, training: Collection[str] | None
) -> Scaling:
    """Choose what the settings leave open about how CT is scaled, from the labelled voxels of the `training` cases."""
    window = choose_window(cases, intensity, data.window, training)
    mean_std = data.mean_std
    if mean_std == "auto" and data.mode == "patch":
        mean_std = choose_mean_std(cases, intensity, window, training) or "none"
    return Scaling(window, data.percentiles, None if isinstance(mean_std, str) else mean_std)


def _by_channel(dataset: Dataset, cases: Sequence[CheckedCase]) -> list[list[ImageStatistics]]:
    """Of each channel its images, of whole cases."""
    n_channels = len(dataset.channel_names)
    whole = whole_cases(cases, n_channels)
    return [[case.images[channel] for case in whole] for channel in range(n_channels)]


def screen(
    config: Config,
    progress: Progress | None = None,
    *,
    listed: Listed | None = None,
    skipped_before: Mapping[str, str] | None = None,
    kept: IntensityChoice | None = None,
    sources: SourceIndex | None = None,
) -> Screened:
    """Check every case before a training, opening only those that the cache folder does not remember.

    Args:
        config: the settings; data.skip_bad_cases leaves cases with errors out instead of refusing.
        progress: called after each case.
        listed: what `list_configured` has returned for these settings; None: it is called.
        skipped_before: a resumed run's cases that were left out when it began, with the reasons: they stay out, and
            no others may go.
        kept: how a resumed run scales intensities, see `assess`.
        sources: the process's own index of the cache folder, see `check_changed_cases`.

    Returns:
        A data set without errors, divided.

    Raises:
        BadDataError: errors, one a line.
        DatasetError: there is no data set, or nothing is left to train on or to validate with.
        CacheError: the cache folder cannot be used.
    """
    dataset, findings = listed or list_configured(config)
    skipped = dict(skipped_before or {})
    if config.data.skip_bad_cases:
        refuse_errors([finding for finding in findings if not finding.case], _NOT_OF_A_CASE)
    skipped |= _to_drop([finding for finding in findings if finding.case not in skipped], config, skipped_before)
    dataset = _without(dataset, skipped)
    cases = check_changed_cases(
        dataset,
        Path(config.data.cache_dir),
        fill_nan=config.data.fill_nan,
        sources=sources,
        progress=progress,
    )
    screened = assess(config, dataset, cases, kept=kept)
    while wrong := errors(screened.findings):
        # A case's own errors first: a copy of a bad case may be good once that is gone.
        own = errors(finding for case in screened.cases for finding in case.findings)
        dropped = _to_drop(own if own and config.data.skip_bad_cases else wrong, config, skipped_before)
        skipped |= dropped
        good = [case for case in screened.cases if case.case not in dropped]
        screened = assess(config, _without(screened.dataset, dropped), good, kept=kept)
    warnings = warnings_of_listing(findings, skipped)
    return replace(screened, findings=(*warnings, *screened.findings), skipped=dict(sorted(skipped.items())))


def warnings_of_listing(findings: Iterable[Finding], skipped: Collection[str]) -> tuple[Finding, ...]:
    """What `list_configured` warns of, without the cases that were left out."""
    return tuple(finding for finding in findings if finding.severity == "warning" and finding.case not in skipped)


def _to_drop(findings: Sequence[Finding], config: Config, skipped_before: Mapping[str, str] | None) -> dict[str, str]:
    """The cases with errors and what is wrong with them. Raises BadDataError where they may not be left out."""
    reasons = _reasons(findings)
    if not reasons:
        refuse_errors(findings, _NOT_OF_A_CASE)
    elif not config.data.skip_bad_cases:
        refuse_errors(findings, _REFUSED if all(finding.case for finding in errors(findings)) else _NOT_OF_A_CASE)
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
    """The data set without some cases. Raises DatasetError where its own split then has none to train or validate."""
    cases = tuple(case for case in dataset.cases if case.id not in skipped)
    before, split = dataset.split, None
    if before is not None:
        split = before.without(skipped)
        for name, use in (("train", "train on"), ("val", "validate with")):
            if not getattr(split, name):
                first = next(f"case {case}: {skipped[case]}" for case in getattr(before, name))
                found = f"that every {name} case has errors and would be left out"
                remedy = f"repair one at least, such as {first}"
                raise DatasetError("dataset", dataset.root, f"cases to {use}", found, remedy)
    folds = dataset.folds.without(skipped) if dataset.folds else None
    own_split = dataset.own_split.without(skipped) if dataset.own_split else None
    return replace(dataset, cases=cases, split=split, folds=folds, own_split=own_split)

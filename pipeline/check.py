"""The command "check": open every case of a data set once, report what is wrong, what is unusual and what it costs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from networks.errors import NetworkError
from pipeline.checks.case_check import check_cases
from pipeline.checks.findings import HEADINGS, Finding, by_cause, errors, from_error
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.screening import Screened, assess, list_configured, sides_under_a_mirror
from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.console.progress import Progress, one_step
from pipeline.console.tables import in_parts
from pipeline.console.text import aligned, counted, fitted, four_digits, gigabytes, printable, some_of, volume_unit
from pipeline.datasets.dataset import Dataset, Split
from pipeline.datasets.errors import DatasetError
from pipeline.files.json_files import null_for_undefined
from pipeline.planning.data_settings import as_flags
from pipeline.planning.fingerprint import Fingerprint, Spread, take_fingerprint
from pipeline.training.cost import Estimate, estimate_training, measure_step
from pipeline.training.first_training import FirstTraining, suggest_training
from pipeline.training.network import check_settings, network_of_settings, refuse_network
from pipeline.training.start_from import plan_start, take_over, treatment
from pipeline.training.start_source import Source, read_source, refuse_other_network

_LISTED_PER_KIND = 20
"""Causes of one kind of finding in the text; the JSON has every finding."""

_COUNTED = ("cases", "train", "val", "voxels")


@dataclass(frozen=True)
class Report:
    """What a check found."""

    findings: tuple[Finding, ...]
    fingerprint: Fingerprint | None
    """The data set in numbers; None where no case could be listed."""
    estimate: Estimate | None
    """What a training costs; None where that was not asked for."""
    mirrored: str = ""
    """Which classes a mirror from left to right exchanges; "" where the training has no such mirror."""
    start_from: tuple[str, ...] = ()
    """What a training takes over from another, a line each; empty where it starts from none."""
    first_training: FirstTraining | None = None
    """What could be trained first; None where that was not asked for, or errors refuse a training."""
    n_good: int = 0
    """Cases without an error."""

    @property
    def exit_code(self) -> int:
        """0: nothing found; 1: warnings only; 2: errors, a training is refused."""
        if errors(self.findings):
            return 2
        return 1 if self.findings else 0


def check(
    target: Config | Path | str,
    *,
    costs: bool | None = None,
    suggest: bool = False,
    given: Collection[str] = (),
    measure: bool = True,
    workers: int | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Check a data set, or the data set and the training of a config.

    Every labelled case is opened once, whatever a training before has remembered, and nothing is written. A data set
    that cannot be listed is one error finding; images that it keeps without labels are not opened. Where it has no
    split of its own, the split of the configured seed is checked.

    Args:
        target: the settings of a training, or the path of a data set.
        costs: estimate what the training costs; None: of settings yes, of a path no.
        suggest: where costs are not estimated, suggest what to train first, and estimate the costs of that.
        given: full names of settings, such as data.split_shares, that what is suggested keeps with their defaults, too.
        measure: take real training steps, in a process of its own, for memory and time of the estimates.
        workers: cases opened at once; None: by cores and memory.
        trust: take network classes from any package in the step.
        progress: called after each step.

    Returns:
        Findings, fingerprint and estimate.

    Raises:
        ConfigError: more GPUs are asked for than the machine has.
    """
    config = target if isinstance(target, Config) else Config(data=DataConfig(dataset_root=str(target)))
    if costs is None:
        costs = isinstance(target, Config)
    try:
        dataset, listing_findings = list_configured(config)
    except DatasetError as error:
        root = Path(config.data.dataset_roots[0])
        return Report(tuple(from_error(part, file=root) for part in error.parts), None, None)
    start = _start(config, dataset, trust=trust)
    cases = check_cases(dataset.cases, dataset, fill_nan=config.data.fill_nan, workers=workers, progress=progress)
    screened = assess(config, dataset, cases, kept=start.intensity)
    seen = start.seen(screened.split) if screened.split else ()
    findings = (*listing_findings, *screened.findings, *start.findings, *seen)
    n_good = len({case.case for case in cases} - {finding.case for finding in errors(findings)})
    fingerprint = take_fingerprint(screened)
    names = dataset.classes.names
    sides = sides_under_a_mirror(config.data, names)
    mirrored = sides.in_words(names) if sides else ""
    estimate, first = None, None
    if costs:
        estimate, of_costs = _estimate_costs(config, screened, measure=measure, trust=trust, progress=progress)
        findings = (*findings, *of_costs)
    elif suggest and config.data.mode == "resize" and not errors(findings):
        first = suggest_training(config, screened, given=given, measure=measure, progress=progress)
    return Report(findings, fingerprint, estimate, mirrored, start.lines, first, n_good)


@dataclass(frozen=True)
class _Start:
    """What a training would take over from another."""

    findings: tuple[Finding, ...] = ()
    lines: tuple[str, ...] = ()
    intensity: IntensityChoice | None = None
    source: Source | None = None

    def seen(self, split: Split) -> tuple[Finding, ...]:
        """Warn of validation and test cases that the weights were trained on."""
        if self.source is None:
            return ()
        expected = "cases to validate and to test with that the weights were not trained on"
        remedy, path = "keep its seed and split, or take others", str(self.source.path)
        found = self.source.seen_in(split)
        return tuple(Finding("warning", "start_from", "", path, expected, one, remedy) for one in found)


def _start(config: Config, dataset: Dataset, *, trust: bool) -> _Start:
    """Take over the weights of training.start_from into a network of the settings, as a training would begin."""
    start_from = config.training.start_from
    if start_from is None:
        return _Start()
    try:
        start = plan_start(refuse_other_network(read_source(start_from), config, trust=trust), config, dataset)
        in_channels, n_classes = len(dataset.channel_names), len(dataset.classes.names)
        network = network_of_settings(config, in_channels=in_channels, n_classes=n_classes, trust=trust)
        started = take_over(start, network, config)
        treatment(started.document, network, config, in_channels=in_channels)
    except (NetworkError, ConfigError) as error:
        expected = "weights that fit the network and the classes"
        found, _, remedy = str(error).rpartition("; ")
        return _Start((Finding("error", "start_from", "", start_from, expected, found, remedy),))
    return _Start((), started.lines, start.intensity, start.source)


def _estimate_costs(
    config: Config, screened: Screened, *, measure: bool, trust: bool, progress: Progress | None
) -> tuple[Estimate, tuple[Finding, ...]]:
    dataset, trial = screened.dataset, None
    counts = {"in_channels": len(dataset.channel_names), "n_classes": len(dataset.classes.names)}
    failed = [] if measure else _refused_network(config, counts, trust=trust)
    if measure:
        with one_step(progress, "taking a trial step"):
            measured = measure_step(config, **counts, trust=trust)
        if isinstance(measured, Finding):
            failed.append(measured)
        else:
            trial = measured
    estimate, shortages = estimate_training(config, screened, trial)
    return estimate, (*failed, *shortages)


def _refused_network(config: Config, counts: Mapping[str, int], *, trust: bool) -> list[Finding]:
    """Why a training would refuse its network, where no trial step says it."""
    try:
        check_settings(config, trust=trust)
        refuse_network(config, **counts, trust=trust)
    except NetworkError as error:
        expected, remedy = "a network that can be trained", "correct the settings"
        return [Finding("error", "network", "", "model.network", expected, str(error), remedy)]
    return []


def to_json(report: Report) -> str:
    """Write the report as a JSON object: exit_code, findings, fingerprint, estimate; undefined numbers are null."""
    document = {"exit_code": report.exit_code, **dataclasses.asdict(report)}
    return json.dumps(null_for_undefined(document), indent=1, ensure_ascii=False)


def to_text(report: Report, width: int | None = None) -> str:
    """Write the report as plain lines: errors, warnings, the data set in tables, the costs, the result, what is next.

    Names in it come from files that anybody may have written: what could steer a terminal is replaced.

    width: columns of the screen that lines must fit; None: any.
    """
    parts: list[Iterable[str]] = [_text_of_findings(report.findings)]
    if report.fingerprint is not None:
        parts.append(_text_of_fingerprint(report.fingerprint, report.mirrored, width))
        if report.first_training is None:
            parts.append(_text_of_estimate(report.estimate))
        if report.start_from:
            parts.append(report.start_from)
    parts.append([_result(report)])
    if next_steps := _text_of_next_steps(report):
        parts.append(next_steps)
    return fitted("\n\n".join("\n".join(printable(line) for line in lines) for lines in parts), width)


_PLAN_INSTEAD = 1.5
"""A size whose voxels are coarser by more than this loses detail that patches keep."""


def _text_of_next_steps(report: Report) -> list[str]:
    """What to type next, and what it will cost."""
    first = report.first_training
    if found := errors(report.findings):
        lines = ["NEXT", "  repair        what is named above, each finding says how; then check again"]
        if report.n_good and all(finding.case for finding in found):  # without a case there is none to leave out
            lines.append("  or leave out  bodyseg train … --skip_bad_cases trains without the cases that have errors")
        return lines
    if first is None:
        return []
    target = first.target
    roots = shlex.join(first.dataset_roots)
    flags = "".join(f" {shlex.quote(word)}" for word in as_flags(first.data_settings))
    size = " ".join(map(str, target.size))
    mm = " × ".join(f"{edge:.3g}" for edge in target.voxel_mm)
    coarser = f"{target.times_coarser:.2g} times coarser than" if target.times_coarser > 1.05 else "no coarser than"
    whole = [
        f"  whole scans, in voxels of {mm} mm, {coarser} the scans' own:",
        f"    bodyseg train --dataset_root {roots} --target_size {size} --exp_name first{flags}",
    ]
    if first.lost:
        whole.insert(1, f"    too coarse for some classes: {first.lost}")
    patches = [
        "  patches, at the scans' median voxel size, or coarser where the time is short; writes plan.yaml:",
        f"    bodyseg plan {roots} --budget 1h{flags}",
    ]
    advised = patches if first.lost or target.times_coarser > _PLAN_INSTEAD else whole
    lines = [
        "NEXT: one of these; the first suits the data better",
        *advised,
        *(whole if advised is patches else patches),
    ]
    if first.has_other_settings:
        lines.append("  Further settings of the data that were given to this check belong to bodyseg train, too.")
    lines += ["", "COST of training on whole scans at that size, on this machine"]
    lines += list(_text_of_estimate(first.estimate, is_rough=True))[1:]
    lines += [f"  missing       {finding.expected}, found {finding.found}" for finding in first.shortages]
    return lines


def _result(report: Report) -> str:
    n_errors = len(errors(report.findings))
    n_warnings = len(report.findings) - n_errors
    advice = {
        0: "Training can start.",
        1: "Training can start; look at the warnings first.",
        2: "Training is refused until the errors are repaired or their cases dropped.",
    }[report.exit_code]
    return f"Result: {counted(n_errors, 'error')}, {counted(n_warnings, 'warning')}. {advice}"


def _text_of_findings(findings: Sequence[Finding]) -> Iterator[str]:
    for severity, title in (("error", "ERRORS"), ("warning", "WARNINGS")):
        of_kind: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            if finding.severity == severity:
                of_kind[finding.kind].append(finding)
        yield f"{title}: {sum(map(len, of_kind.values())) or 'none'}"
        for kind, group in of_kind.items():
            yield ""
            yield f"  {HEADINGS.get(kind, kind)} ({len(group)})"
            yield from _text_of_kind(group)
        if severity == "error":
            yield ""


def _text_of_kind(group: Sequence[Finding]) -> Iterator[str]:
    causes = by_cause(group)
    for findings in causes[:_LISTED_PER_KIND]:
        first = findings[0]
        others = findings[1:]
        names = dict.fromkeys(finding.case or finding.file for finding in others)
        of = f" of {counted(len(names), 'case')}" if first.case and len(names) < len(others) else ""
        also = f" and {len(others)} more{of}: {some_of(names, 5)}" if others else ""
        differ = any(finding.found != first.found for finding in findings)
        yield f"    {f'case {first.case}' if first.case else 'data set'}  {first.file}{also}"
        yield f"      expected  {first.expected}"
        yield f"      found     {first.found}{' (others: other numbers, see --json)' if differ else ''}"
        yield f"      to do     {first.remedy}"
    if len(causes) > _LISTED_PER_KIND:
        left = sum(map(len, causes[_LISTED_PER_KIND:]))
        yield f"    and {left} more of this kind; --json lists all"


def _text_of_fingerprint(found: Fingerprint, mirrored: str, width: int | None) -> Iterator[str]:
    sizes = ", ".join(f"{name} {count}" for name, count in found.splits.items()) or "not divided"
    unlabelled = f"; {found.n_unlabelled} images without label were not opened" if found.n_unlabelled else ""
    cases = f"{counted(found.n_cases, 'case')} of {counted(found.n_subjects, 'subject')}"
    yield f"DATA SET: {cases}, layout {found.layout}{unlabelled}"
    yield from (f"  data set      {words}" for words in found.data_sets)
    yield f"  split         {sizes} ({found.split_source})"
    yield f"  intensities   {found.intensity.in_words}"
    if found.window_use:
        yield f"                {found.window_use}"
    if mirrored:
        yield f"  mirrored      from left to right: {mirrored}"
    yield f"  formats       {_counts(found.formats)}; voxel types {_counts(found.dtypes)}"
    yield f"  orientations  {_counts(found.orientations)}"
    yield f"  size, voxels  {_spread(found.sizes, digits=0)}"
    yield f"  voxel, mm     {_spread(found.spacings_mm, digits=3)}"
    for channel in found.channels:
        inner = ", ".join(f"{percent:g} %: {value:.5g}" for percent, value in channel.percentiles)
        extremes = f"lowest {channel.minimum:.5g}, highest {channel.maximum:.5g}"
        yield f"  channel {channel.name}: {extremes}; medians of the cases' percentiles: {inner}"
    yield ""
    is_partial = any(c.n_annotated < found.classes[0].n_annotated for c in found.classes)
    if is_partial:
        yield "  annotated: cases whose label says where the class is; of these, cases: those in which it is present"
    rows = _class_rows(found, is_partial)
    lines = [f"  {line}" for line in aligned(rows, left=(1,))]
    if width is not None and max(map(len, lines)) > width:
        names_first = [(name, value, *rest) for value, name, *rest in rows]
        lines = in_parts(names_first[0], names_first[1:], width).split("\n")
    yield from lines


def _class_rows(found: Fingerprint, is_partial: bool) -> list[tuple[str, ...]]:
    """A heading and a row for each class."""
    unit, per_ml = volume_unit(c.median_ml for c in found.classes[1:] if c.median_ml is not None)
    rows: list[tuple[str, ...]] = [
        ("value", "class", *(["annotated"] if is_partial else []), *_COUNTED, f"median {unit}")
    ]
    for c in found.classes:
        median = "" if c.median_ml is None else four_digits(c.median_ml * per_ml)
        annotated = [str(c.n_annotated)] if is_partial else []
        counts = (str(n) for n in (c.n_cases, c.n_train, c.n_val, c.n_voxels))
        rows.append((str(c.value), c.name, *annotated, *counts, median))
    if found.ignored_values:
        values = some_of([str(value) for value in found.ignored_values], 3)
        blank = [""] * (4 if is_partial else 3)
        rows.append((values, "(left out of loss and scores)", *blank, str(found.n_ignored_voxels), ""))
    return rows


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts.items()) or "none"


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "unknown"
    rows = (("min", spread.min), ("median", spread.median), ("max", spread.max))
    return "; ".join(f"{name} {' × '.join(f'{value:.{digits}f}' for value in row)}" for name, row in rows)


def _text_of_estimate(estimate: Estimate | None, *, is_rough: bool = False) -> Iterator[str]:
    if estimate is None:
        yield "TRAINING: costs are not estimated; name the settings of a training for that (--config FILE, …)"
        return
    yield "TRAINING as configured, on this machine"
    there = f"{gigabytes(estimate.free_bytes)} free there, {gigabytes(estimate.held_bytes)} in it"
    yield f"  cache         {gigabytes(estimate.cache_bytes)} in {estimate.cache_dir}, {there}"
    trial = estimate.trial
    if trial is None:
        yield "  step          not measured"
        return
    about, how = ("about ", "from steps of other sizes") if is_rough else ("", "measured")
    yield f"  step          {about}{trial.step_s:.2f} s a batch, {how} on {trial.device} in {trial.precision}"
    peak = f"about {gigabytes(estimate.peak_bytes)} at its peak"
    yield f"  memory        {peak}, {gigabytes(estimate.memory_bytes)} there"
    counts = f"{estimate.steps_per_epoch} steps, no validation"
    if estimate.n_val:
        validated = f"{estimate.n_validations} of {estimate.max_epochs}"
        counts = f"{estimate.steps_per_epoch} steps, {estimate.n_val} cases to validate after {validated}"
    yield f"  epoch         {counts}: about {_time(estimate.epoch_s)}, loading not counted"
    yield f"  whole         {estimate.max_epochs} epochs: about {_time(estimate.epoch_s * estimate.max_epochs)}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""The command "plan": choose the settings of a training from the data, the machine and the time at hand."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.checks.findings import Finding
from pipeline.checks.screening import (
    Screened,
    assess,
    list_configured,
    mirrored_sides,
    screen,
    warnings_of_listing,
)
from pipeline.checks.window import LEAST_DEVIATION, WIDEST
from pipeline.compute.devices import choose_devices
from pipeline.compute.memory import available_cores, memory_bytes
from pipeline.compute.other_programs import OtherPrograms
from pipeline.config.files import from_mapping, write_yaml
from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.config.without_effect import unused_scaling
from pipeline.console.progress import Progress, one_step
from pipeline.console.tables import PAGE_WIDTH, wrapped
from pipeline.console.terminal import screen_width
from pipeline.console.text import BYTES_PER_GB, fitted, gigabytes, printable
from pipeline.files.atomic import check_writable, make_folder, write_atomically
from pipeline.planning.choice import MEMORY_SHARE, DataSummary
from pipeline.planning.data_settings import DESCRIBING, described, refuse_chosen
from pipeline.planning.machine import BETWEEN_STEPS_S, GPU_CASE_S, GPU_EPOCH_S, Cost, Machine
from pipeline.planning.network_shape import Triple, target_spacing
from pipeline.planning.plan import SPLIT_SHARES, Plan, make_plan
from pipeline.training.preparing_time import preparing_s
from pipeline.training.step_times import StepRequest, StepTime, measure_steps
from transforms.axes import LEFT_RIGHT
from transforms.left_right import Sides, find_sides

_CHAMBER = re.compile(r"(?<!lateral[ _-])ventric|atri(?:um|a)|(?<![a-z])[lr][va](?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class PlanReport:
    """A plan and where it was written."""

    plan: Plan
    path: Path
    """The config file."""
    seconds: float
    """What planning took."""
    warnings: tuple[str, ...] = ()
    """What to check before a training, a line each."""


def plan(
    dataset: Path | str | Sequence[Path | str],
    budget_s: float,
    output: Path,
    *,
    name: str = "plan",
    memory_gb: float | None = None,
    data: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PlanReport:
    """Check a data set, measure training steps on this machine, and write a config file for a training that fits.

    Args:
        dataset: folder or list file of the data set, or several.
        budget_s: seconds from the start of `bodyseg train --config FILE` to its end.
        output: the config file to write.
        name: experiment.name of the training.
        memory_gb: memory that the training may take; None: what the device has.
        data: settings of the group data that describe the data set, by name, see `DESCRIBING`; these are written, too.
        progress: called while cases are checked and steps are measured.

    Returns:
        The plan, as it was written.

    Raises:
        ConfigError: a budget of less than a minute, a file that exists already, a setting that the plan chooses, or no
            step that could be measured.
        DatasetError: the folder is not a data set, or has bad cases.
        FileError: the file cannot be written.
    """
    began = time.monotonic()
    _check_request(budget_s, memory_gb, output)
    roots = [str(dataset)] if isinstance(dataset, Path | str) else [str(root) for root in dataset]
    given = dict(data or {})
    pairs = given.pop("sided_pairs", None)  # no setting without data.flips, which the plan chooses
    config = _described(roots, given)
    listed = list_configured(config)
    sides = _sides(listed[0].classes.names, pairs)
    screened = screen(config, progress, listed=listed)
    devices = choose_devices(None, None, "16")
    cores = available_cores()
    memory = int(memory_gb * BYTES_PER_GB) if memory_gb else memory_bytes(devices.accelerator)
    summary = _summary(screened, sides)
    # Somewhat coarser than planned, so that voxels are resampled.
    coarser = tuple(1.1 * mm for mm in target_spacing(summary.sizes, summary.spacings_mm))
    prepared = replace(config.data, mode="patch", spacing_mm=coarser)
    with one_step(progress, "preparing a few cases"):
        summary = replace(summary, preparing_s=preparing_s(screened, prepared))

    def measure(
        steps: Sequence[tuple[Triple, int]], strides: Sequence[Triple], kernels: Sequence[Triple], channels: int
    ) -> Cost:
        network = {"strides": [list(s) for s in strides], "kernels": [list(k) for k in kernels]}
        n = cores if devices.accelerator == "cpu" else 1
        request = StepRequest(
            network=network,
            in_channels=summary.n_channels,
            n_classes=len(summary.class_names),
            base_channels=channels,
            precision="16",
            n_gpus=None,
            steps=tuple(steps),
            n_processes=n,
            process_bytes=int(MEMORY_SHARE * memory / n),
        )
        with one_step(progress, "measuring training steps"):
            return cost_of(measure_steps(request), n, accelerator=devices.accelerator)

    machine = Machine(devices.accelerator, cores, memory)
    others = OtherPrograms()
    found = make_plan(summary, machine, budget_s, measure)
    if devices.accelerator == "cpu" and others.disturb():
        found.warnings.append(_disturbed(others.n_cores(), cores))
    found.put("experiment.name", name, "")
    found.put("data.dataset_root", roots[0] if len(roots) == 1 else roots, "")
    _put_given(found, config.data, screened, given)
    _put_pairs(found, pairs)
    planned = from_mapping(found.settings)
    assessed = assess(planned, screened.dataset, screened.cases)
    _put_ct_scaling(found, assessed)
    text = to_yaml(found, budget_s)
    make_folder(output.parent)
    write_atomically(output, lambda file: file.write(text.encode()))
    warnings = _warnings(found, planned.data, assessed, warnings_of_listing(listed[1], screened.skipped))
    return PlanReport(found, output, time.monotonic() - began, warnings)


def cost_of(measured: Sequence[StepTime], n_cores: int, *, accelerator: str = "cpu") -> Cost:
    """Say what any step takes from two or three measured ones: of the smallest patch, of more of these, of the largest.

    For one process with all threads, or for one thread a process where that is faster (it was not measured where the
    memory does not hold as many processes, or where one of them ended). Raises ConfigError where fewer than two steps
    could be measured.
    """
    if len(measured) < 2:
        raise ConfigError(
            "no training step could be measured on this machine, as where memory ends; write the settings by hand "
            "(bodyseg train --help) with a smaller --target_size"
        )
    small, large = measured[0], measured[-1]
    each_s = large.in_processes[0] if large.in_processes else math.inf
    in_processes = each_s / n_cores < large.all_threads[0]

    def seconds(one: StepTime) -> tuple[float, float]:
        return one.in_processes if in_processes and one.in_processes else one.all_threads

    (small_s, _), (large_s, validation_s) = seconds(small), seconds(large)
    small_voxels, large_voxels = (math.prod(one.patch) * one.batch for one in (small, large))
    voxel_s = max(1e-12, (large_s - small_s) / (large_voxels - small_voxels))
    sample_s = 0.0
    for more in measured[1:-1]:
        one_more_s = (seconds(more)[0] - small_s) / (more.batch - small.batch)
        sample_s = max(0.0, one_more_s - voxel_s * math.prod(small.patch))
    voxel_bytes = max(0.0, (large.peak_bytes - small.peak_bytes) / (large_voxels - small_voxels))
    patch = "×".join(map(str, large.patch)) + (f"×{large.batch}" if large.batch > 1 else "")
    together = f"{each_s:.2g} s in each of {n_cores} processes of one thread, and " if large.in_processes else ""
    lacks = f"; {n_cores} could not be measured, as where memory ends" if n_cores > 1 and not large.in_processes else ""
    return Cost(
        fixed_s=max(0.0, small_s - voxel_s * small_voxels - sample_s * small.batch) + BETWEEN_STEPS_S[accelerator],
        voxel_s=voxel_s,
        fixed_bytes=max(0.0, small.peak_bytes - voxel_bytes * small_voxels),
        voxel_bytes=voxel_bytes,
        validation_voxel_s=validation_s / math.prod(large.patch),
        n_processes=n_cores if in_processes else 1,
        why_processes=f"a step of {patch} voxels takes {together}{large.all_threads[0]:.2g} s in one process{lacks}",
        sample_s=sample_s,
        epoch_s=GPU_EPOCH_S if accelerator == "gpu" else 0.0,
        case_s=GPU_CASE_S if accelerator == "gpu" else 0.0,
    )


def _sides(class_names: Sequence[str], pairs: Sequence[Sequence[str]] | None) -> Sides:
    """Which classes have a side. Raises ConfigError for pairs of other names."""
    try:
        return find_sides(class_names, pairs)
    except ValueError as error:
        raise ConfigError(f"data.sided_pairs: {error}; name classes of the data set, or leave it out") from None


def _summary(screened: Screened, sides: Sides) -> DataSummary:
    assert screened.split is not None  # a data set that cannot be split was refused
    names = screened.dataset.classes.names
    images = [case.images[0] for case in screened.cases if case.images]
    few = len(names) <= 4
    return DataSummary(
        sizes=tuple(image.world_size for image in images),
        spacings_mm=tuple(image.world_spacing_mm for image in images),
        n_train=len(screened.split.train),
        n_val=len(screened.split.val),
        is_split=screened.dataset.split is not None or screened.folds is not None,
        n_channels=len(screened.dataset.channel_names),
        class_names=names,
        # The chambers of a heart are no mirror images of each other.
        mirrors=few and not sides.without_partner and not any(map(_CHAMBER.search, names)),
    )


def _check_request(budget_s: float, memory_gb: float | None, output: Path) -> None:
    """Raise ConfigError or FileError for what cannot be planned, before minutes of measuring."""
    if not 60 <= budget_s < math.inf:
        raise ConfigError(f"--budget: expected a minute at least, found {budget_s:g} s; say 30min or 8h")
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise ConfigError(f"--memory: expected a number of GB above 0, found {memory_gb:g}")
    if output.exists():
        raise ConfigError(f"--output {output}: expected a new file, found one; name another, or remove it")
    if output.suffix == ".json":
        raise ConfigError(f"--output {output}: a plan is YAML, with comments; name it {output.with_suffix('.yaml')}")
    check_writable(output.parent)


def _described(roots: Sequence[str], given: Mapping[str, Any]) -> Config:
    """The settings that data sets are planned by: what describes them, and the plan's own division."""
    refuse_chosen(f"data.{name}" for name in given)
    shares = {} if given.get("folds") else {"split_shares": SPLIT_SHARES}
    return from_mapping({"data": {"dataset_root": roots, **shares, **given}})


def _put_given(plan: Plan, data: DataConfig, screened: Screened, said: Collection[str]) -> None:
    """Write down what was said about the data, and how the training scales MR where that was left open.

    said: names of the settings that were given.
    """
    given = described(data)
    given.pop("split_shares", None)  # where it was not said, the plan's own or the default
    if "split_shares" in said and "split_shares" in plan.settings["data"]:
        given["split_shares"] = list(data.split_shares)
    elif "split_shares" in said:
        what = "data.folds divide" if data.folds else "the data set's own split divides"
        plan.warnings.append(f"data.split_shares is left out: {what} the cases")
    unused = unused_scaling(data, screened.intensity.by_channel)
    for name, value in ({"cache_dir": data.cache_dir} | given).items():
        if name in unused:
            plan.warnings.append(f"data.{name} is left out: intensities are scaled as {screened.intensity.in_words}")
        else:
            plan.put(f"data.{name}", value, "")
    ways = set(screened.intensity.by_channel)
    if "mr" in ways <= {"mr", "zscore"} and "intensity" not in given and "percentiles" not in said:
        plan.put("data.intensity", "zscore", "mean 0 and deviation 1, as nnU-Net scales MR")


def _put_pairs(plan: Plan, pairs: Sequence[Sequence[str]] | None) -> None:
    """Write down which classes a mirror exchanges, where the training has one."""
    if pairs is not None and LEFT_RIGHT in plan.settings["data"]["flips"]:
        plan.put("data.sided_pairs", [list(pair) for pair in pairs], "")
    elif pairs is not None:
        plan.warnings.append("data.sided_pairs is left out: the plan mirrors nothing from left to right (data.flips)")


def _put_ct_scaling(plan: Plan, screened: Screened) -> None:
    """Write down how the training scales CT: the numbers that it would find, too."""
    if "ct" not in screened.intensity.by_channel:
        return
    scaling, given = screened.scaling, plan.settings["data"]
    if "window" not in given:
        held = "HU that hold 99 % of the training cases' labelled voxels"
        because = "no voxel of a CT is labelled" if scaling.window == WIDEST else held
        plan.put("data.window", list(scaling.window), because)
    if scaling.mean_std and "mean_std" not in given:
        because = "their mean and deviation, as nnU-Net scales CT"
        if scaling.mean_std[1] == round(LEAST_DEVIATION, 2):
            because = "their mean, and the least deviation that is taken"
        plan.put("data.mean_std", list(scaling.mean_std), because)


def _warnings(plan: Plan, data: DataConfig, screened: Screened, of_listing: Sequence[Finding]) -> tuple[str, ...]:
    """What `bodyseg check` warns of with these settings: in full what follows from them, of the data how many."""
    findings = (*of_listing, *screened.findings)
    of_plan = [finding for finding in findings if finding.kind == "class_lost"]
    lines = [*plan.warnings, *map(str, of_plan)]
    if len(findings) > len(of_plan):
        lines.append(f"the data gives {len(findings) - len(of_plan)} warnings, which bodyseg check explains")
    return (*lines, *map(str, mirrored_sides(data, screened.dataset)))


def _disturbed(n_busy: float, n_cores: int) -> str:
    return (
        f"other programs kept {n_busy:.1f} of {n_cores} cores busy while training steps were measured: on an idle "
        "machine a training with these settings ends sooner, and a plan made there holds more steps or finer voxels; "
        "plan again once they have ended"
    )


def to_yaml(plan: Plan, budget_s: float) -> str:
    """Write the plan as a config file with the reason behind every number."""
    lines = [f"# bodyseg plan: a training of about {_minutes(budget_s)}. Edit what you like."]
    for group in ("experiment", "data", "model", "training"):
        lines.append(f"{group}:")
        reasons = {key: plan.because[f"{group}.{key}"] for key in plan.settings[group]}
        for key, because in sorted(reasons.items(), key=lambda item: item[1] != ""):
            value = plan.settings[group][key]
            text = json.dumps(value, ensure_ascii=False)
            if isinstance(value, dict) or key in ("dataset_root", "name", *DESCRIBING):
                text = write_yaml(value, in_one_line=True).strip()
                text = text.removesuffix("...").strip()
            lines.append(f"  {key}: {text}" + (f"  # {because}" if because else ""))
    return "\n".join(lines) + "\n"


def to_text(report: PlanReport, budget_s: float) -> str:
    """Write the plan as a table of setting, value and reason, with what it will take."""
    rows = []
    for name, because in report.plan.because.items():
        group, key = name.split(".")
        rows.append((name, json.dumps(report.plan.settings[group][key], ensure_ascii=False), because))
    width = screen_width()
    path = printable(str(report.path))
    lines = [
        f"expected: {_minutes(report.plan.preparing_s)} of preparing cases that are not in the cache and "
        f"{_minutes(report.plan.expected_s)} of training in a budget of {_minutes(budget_s)}, "
        f"{gigabytes(report.plan.expected_bytes, 1)} of memory; planning took {report.seconds:.0f} s",
        f"written to {path}; next:",
        f"  bodyseg train --config {printable(shlex.quote(str(report.path)))}",
    ]
    table = wrapped(("setting", "value", "because"), rows, width or PAGE_WIDTH)
    return "\n".join([table, "", fitted("\n".join(lines), width)])


def to_json(report: PlanReport) -> str:
    """Write the plan as JSON."""
    document: dict[str, Any] = {
        "config": str(report.path),
        "settings": report.plan.settings,
        "because": report.plan.because,
        "expected_s": report.plan.expected_s,
        "preparing_s": report.plan.preparing_s,
        "expected_bytes": report.plan.expected_bytes,
        "planning_s": report.seconds,
        "warnings": list(report.warnings),
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def _minutes(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.3g} minutes" if seconds < 7200 else f"{seconds / 3600:.3g} hours"

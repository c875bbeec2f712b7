"""The verb "check": opens every case of a data set once and reports what is wrong, what is unusual and what it costs.

The judgements are `inspection`'s (one case), `screening`'s (the data set) and `estimate`'s (the machine); what a person
reads is `check_report`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.check_report import Report, to_json, to_text
from pipeline.config import Config, DataConfig
from pipeline.dataset import DatasetError
from pipeline.estimate import estimate_training
from pipeline.findings import from_dataset_error
from pipeline.fingerprint import take_fingerprint
from pipeline.inspection import inspect_cases
from pipeline.screening import judge, list_configured

__all__ = ["Report", "check", "to_json", "to_text"]

Progress = Callable[[str, int, int], None]


def check(
    target: Config | Path | str,
    *,
    measure: bool = True,
    workers: int | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Check a data set, or the data set and the training of a config.

    Every labelled case is opened once, in threads (reading is gzip, which lets go of the interpreter), whatever a
    training before has remembered, and nothing is written. A data set that cannot be listed is one error finding;
    images that it keeps without labels are not opened. Where it has no split of its own, the split of the configured
    seed is judged.

    Args:
        target: the settings of a training, or the path of a data set (then there is no estimate).
        measure: take one real training step, in a process of its own, for memory and time of the estimate.
        workers: cases looked at at once; None: by cores and memory.
        trust: take network classes from any package in the step.
        progress: called with (what, done, total).

    Returns:
        Findings, fingerprint and estimate. `exit_code` is 0 if nothing was found, 1 for warnings only, 2 for errors.
    """
    config = target if isinstance(target, Config) else Config(data=DataConfig(dataset_root=str(target)))
    report = progress or (lambda what, done, total: None)
    try:
        dataset, listing_findings = list_configured(config)
    except DatasetError as error:
        root = Path(config.data.dataset_root)
        return Report(tuple(from_dataset_error(DatasetError(line), root=root) for line in error.lines), None, None)
    facts = inspect_cases(dataset.cases, dataset, workers=workers, progress=progress)
    judged = judge(config, dataset, facts)
    findings = (*listing_findings, *judged.findings)
    fingerprint = take_fingerprint(facts, dataset, split=judged.split, intensity=judged.intensity)
    if not isinstance(target, Config):
        return Report(findings, fingerprint, None)
    estimate, costs = estimate_training(config, dataset, judged.split, measure=measure, trust=trust, progress=report)
    return Report((*findings, *costs), fingerprint, estimate)

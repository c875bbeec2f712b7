"""The verb "check": opens every case of a data set once and reports what is wrong, what is unusual and what it costs.

The judgements are `inspection`'s (one case), `dataset_findings`' (between cases) and `estimate`'s (the machine); what a
person reads is `check_report`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.cases import Dataset, DatasetError, Split, list_cases, split_by_subject
from pipeline.check_report import Report, to_json, to_text
from pipeline.config import Config, DataConfig
from pipeline.data import choose_intensity
from pipeline.dataset_findings import judge_dataset
from pipeline.estimate import estimate_training
from pipeline.findings import Finding, from_dataset_error
from pipeline.fingerprint import take_fingerprint
from pipeline.inspection import CaseFacts, inspect_cases

__all__ = ["Report", "check", "to_json", "to_text"]

Progress = Callable[[str, int, int], None]


def check(
    target: Config | Path | str,
    *,
    measure: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a data set, or the data set and the training of a config.

    Every labelled case is opened once, in threads (reading is gzip, which lets go of the interpreter). A data set that
    cannot be listed is one error finding; images that it keeps without labels are not opened. Where it has no split of
    its own, the split of the configured seed is judged, by the classes in the label files.

    Args:
        target: the settings of a training, or the path of a data set (then there is no estimate).
        measure: take one real training step, in a process of its own, for memory and time of the estimate.
        workers: cases looked at at once; None: by cores and memory.
        progress: called with (what, done, total).

    Returns:
        Findings, fingerprint and estimate. `exit_code` is 0 if nothing was found, 1 for warnings only, 2 for errors.
    """
    config = target if isinstance(target, Config) else Config(data=DataConfig(dataset_root=str(target)))
    data, root = config.data, Path(config.data.dataset_root)
    report = progress or (lambda what, done, total: None)
    try:
        dataset = list_cases(
            root, data.layout, fold=data.fold, class_names=data.class_names or None, label_remap=data.label_remap
        )
    except DatasetError as error:
        return Report((from_dataset_error(error, root=root),), None, None)
    facts = inspect_cases(dataset.cases, dataset, workers=workers, progress=progress)
    findings = [finding for case in facts for finding in case.findings]
    split = _split(dataset, facts, config.training.seed, findings)
    _judge_class_count(dataset, config.model.n_classes, findings)
    intensity = _intensity(dataset, facts, data.intensity)
    findings += judge_dataset(facts, dataset, split=split, intensity=intensity.get("intensity"))
    fingerprint = take_fingerprint(facts, dataset, split=split, intensity=intensity)
    if not isinstance(target, Config):
        return Report(tuple(findings), fingerprint, None)
    estimate, costs = estimate_training(config, dataset, split, measure=measure, progress=report)
    return Report((*findings, *costs), fingerprint, estimate)


def _split(dataset: Dataset, facts: Sequence[CaseFacts], seed: int, findings: list[Finding]) -> Split | None:
    if dataset.split is not None:
        return dataset.split
    classes_of = {f.case: np.flatnonzero(f.label.class_voxels).tolist() for f in facts if f.label is not None}
    try:
        return split_by_subject(dataset.cases, seed=seed, classes_of=classes_of)
    except DatasetError as error:
        findings.append(from_dataset_error(error, root=dataset.root))
        return None


def _judge_class_count(dataset: Dataset, n_classes: int | None, findings: list[Finding]) -> None:
    found = len(dataset.class_names)
    if n_classes not in (None, found):
        findings.append(Finding(
            "error", "dataset", "", str(dataset.root), f"{n_classes} classes with the background (model.n_classes)",
            f"{found} in the data set", f"set model.n_classes to {found} or leave it out",
        ))  # fmt: skip


def _intensity(dataset: Dataset, facts: Sequence[CaseFacts], wanted: str) -> dict[str, str]:
    """Choose as training will, among the cases that can be read."""
    read = {image.path for case in facts for image in case.images}
    cases = tuple(case for case in dataset.cases if case.image[0] in read)
    if not cases:
        return {"intensity": "unknown", "because": "no image could be read"}
    intensity, reason = choose_intensity(replace(dataset, cases=cases), wanted)
    return {"intensity": intensity, "because": reason}

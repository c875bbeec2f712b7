"""Begin the labels.json of a data set without class names: the values that its label files hold, to be named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipeline.checks.case_check import BYTES_A_CASE
from pipeline.checks.screening import list_configured
from pipeline.compute.memory import workers_that_fit
from pipeline.config.settings import Config
from pipeline.console.progress import Progress
from pipeline.datasets.dataset import Case
from pipeline.datasets.errors import DatasetError
from pipeline.files.atomic import write_atomically
from transforms.io.errors import VolumeError
from transforms.io.label_values import count_values
from transforms.io.load import read_volume

_MOST_VALUES = 1000
"""Values of one label map; parcellations of a brain have hundreds, images thousands."""


def draft_labels(config: Config, progress: Progress | None = None) -> tuple[Path, dict[str, int]]:
    """Write labels.json beside a data set whose classes have no names yet; return its path and content.

    A class is called class_VALUE. Labels that cannot be read are passed over: a check of the data names them.

    Raises:
        DatasetError: no data set; classes that have names already; labels without any value beside 0, or with values
            that no class can have. An existing file is never written over.
        FileError: the disk refuses.
    """
    roots = config.data.dataset_roots
    root = Path(roots[0])
    if len(roots) > 1:
        found, remedy = f"{len(roots)} of them", "write the labels.json of one after the other"
        raise DatasetError("dataset", root, "one data set, since --write_labels is given", found, remedy)
    try:
        list_configured(config)
    except DatasetError as error:
        if error.kind != "no_class_names":
            raise
    else:
        found, remedy = "names for all of them", "leave --write_labels out"
        raise DatasetError("dataset", root, "classes without names, since --write_labels is given", found, remedy)
    path = (root if root.is_dir() else root.parent) / "labels.json"
    if path.exists():
        raise DatasetError("dataset", path, "no such file yet", "one", "move it away; it is not written over")
    any_names = replace(config.data, class_names=("background", "class"), label_remap=None)
    dataset, _ = list_configured(replace(config, data=any_names))
    values: set[int] = set()
    # Threads: unpacking gzip, which takes the time, does not hold the interpreter's lock.
    with ThreadPoolExecutor(workers_that_fit(BYTES_A_CASE)) as pool:
        for done, of_case in enumerate(pool.map(_values, dataset.cases), start=1):
            values |= of_case
            if progress:
                progress(done, len(dataset.cases), "reading labels")
    if not values - {0}:
        found, remedy = "none that could be read", "look at the labels: bodyseg check names those that cannot be read"
        raise DatasetError("dataset", root, "label values above 0", found, remedy)
    labels = {"background": 0} | {f"class_{value}": value for value in sorted(values - {0})}
    text = json.dumps(labels, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path, labels


def _values(case: Case) -> set[int]:
    """The values in a case's label map; none where it cannot be read. Raises DatasetError for those of an image."""
    if not isinstance(case.label, Path):
        return set()
    try:
        values = set(count_values(read_volume(case.label).array, str(case.label)))
    except VolumeError:
        return set()
    if len(values) > _MOST_VALUES or min(values, default=0) < 0:
        raise DatasetError(
            "label_unknown_values", case.label, f"at most {_MOST_VALUES} values, none below 0",
            f"{len(values)} from {min(values)} to {max(values)}", "check whether it is an image instead of a label",
            case.id,
        )  # fmt: skip
    return values

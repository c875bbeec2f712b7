"""What the keys of an entry, or the columns of a table, that name a case's files are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.datasets.errors import DatasetError

KEYS = ("case", "image", "label", "split", "subject", "fold", "labelled")
"""The names that lists of cases have here."""

_OTHERS = {
    "case": ("case_id", "id", "image_id", "name"),
    "image": ("images", "img", "image_path", "img_path", "image_file", "scan", "volume"),
    "label": ("labels", "seg", "segmentation", "mask", "label_path", "seg_path", "mask_path", "label_file", "gt"),
    "split": ("set", "subset"),
    "subject": ("subject_id", "patient", "patient_id", "patientid"),
}
"""What other lists call them; taken where only one of the names is there."""


def with_usual_keys(entry: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return an entry whose keys for case, image, label, split and subject are called so; others stay as they are.

    Raises:
        DatasetError: two keys that may both mean one of these.

    >>> with_usual_keys({"img": "a.nii", "mask": "b.nii", "age": 60}, Path("cases.csv"))
    {'age': 60, 'image': 'a.nii', 'label': 'b.nii'}
    """
    usual = dict(entry)
    spelled = {str(key).strip().lower(): key for key in entry}
    for key in KEYS:
        if key in entry:
            continue
        found = [spelled[name] for name in (key, *_OTHERS.get(key, ())) if name in spelled]
        if len(found) > 1:
            expected, remedy = f"one key that names the {key}", f"rename the right one to {key} and remove the other"
            raise DatasetError("dataset", source, expected, " and ".join(map(str, found)), remedy)
        if found:
            usual[key] = usual.pop(found[0])
    return usual

"""The smallest cross-validation: two folds of four phantoms."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny_training import tiny_training


def study_command(work: Path, name: str = "study", *more: str, **settings: str) -> list[str]:
    """The command line of a study of its own settings in a folder that holds data and cache."""
    command, _ = tiny_training(work, name, **({"max_epochs": 2, "data.folds": "2"} | settings))  # type: ignore[arg-type]
    return ["cross-validate", *command[1:], *more]


def study_data(work: Path) -> None:
    """Write the data of the study into a folder, with three structures: scoring seventy takes longer than training."""
    import json

    import nibabel as nib
    import numpy as np

    tiny_training(work, "data", max_epochs=1)
    description = json.loads((work / "data" / "dataset.json").read_text())
    names = ["background", "liver", "brain", "heart"]
    values = {description["labels"][name]: new for new, name in enumerate(names)}
    for path in (work / "data" / "labelsTr").iterdir():
        image = nib.load(path)
        label = np.asarray(image.dataobj)
        kept = np.zeros(label.shape, np.uint8)
        for old, new in values.items():
            kept[label == old] = new
        nib.save(nib.Nifti1Image(kept, image.affine), path)
    description["labels"] = {name: number for number, name in enumerate(names)}
    (work / "data" / "dataset.json").write_text(json.dumps(description))

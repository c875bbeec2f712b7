"""What labels that annotate a part of the classes are worth: four trainings on the same phantoms, from the same seed.

Half of the training cases annotate one half of the structures, the other half the others. The first training is given
all structures in all cases, the second what is annotated and the list of it, the third the same labels and no list, so
that it takes what is not annotated for background. The validation cases annotate everything.

The first has twice the labels of the second. As many, of each structure in as many cases and seen as often, has the
fourth: all structures in half of the cases, for the same number of epochs (and half as many steps). It is what the
labels of the second are worth where nothing is lost.

    python -m benchmarks.partly_labelled FOLDER --n_train 96 --epochs 60 --output \
        benchmarks/results/partly_labelled.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich.console import Console

from pipeline.config.files import from_mapping
from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.train import train

HALVES = (("liver", "lung_lower_lobe_left", "brain"), ("heart", "lung_lower_lobe_right", "gluteus_maximus_left"))
"""What the first and the second half of the training cases annotate."""

N_VAL = 8
TRAININGS = (
    "everything annotated",
    "halves, each known to be one",
    "halves, the rest taken for background",
    "everything annotated, in half of the cases",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train four times, print IoU by structure on the validation cases, and write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partly_labelled", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="For phantoms, cache and runs.")
    parser.add_argument("--n_train", type=int, default=24, metavar="N", help="Cases to train on. (default: 24)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[45], metavar="N", help="One training each of these.")
    parser.add_argument("--only", type=int, default=None, metavar="N", help="Only the N-th training, from 0 on.")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="JSON file to add the results to.")
    given = parser.parse_args(arguments)
    lists = write_lists(given.folder, given.n_train)
    chosen = [entry for n, entry in enumerate(lists.items()) if given.only in (None, n)]
    results = [
        {"n_train": given.n_train, "seed": given.seed, **_trained(given.folder, name, path, n, given.seed)}
        for n in given.epochs
        for name, path in chosen
    ]
    if given.output is not None:
        document = json.loads(given.output.read_text()) if given.output.exists() else {"n_val": N_VAL, "trainings": []}
        document["trainings"] = merged(document["trainings"], results)
        given.output.write_text(json.dumps(document, indent=1) + "\n")
    names = [*HALVES[0], *HALVES[1]]
    print(f"{'validation IoU':42}  epochs{'mean':>7}  " + " ".join(f"{name:>21}" for name in names))
    for result in results:
        by_class = " ".join(f"{result['iou'][name]:21.3f}" for name in names)
        print(f"{result['training']:42}{result['epochs']:8}{result['mean_iou']:7.3f}  {by_class}")
    return 0


def merged(earlier: Iterable[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The earlier trainings and the new ones; a new one takes the place of the same training done before."""
    same = ("training", "n_train", "epochs", "seed")
    return list({tuple(result[key] for key in same): result for result in (*earlier, *results)}.values())


def write_lists(folder: Path, n_train: int) -> dict[str, Path]:
    """Write phantoms, their labels in whole and in halves, and a list of cases for each training."""
    data = folder / "data"
    write_dataset(data, n_cases=n_train + N_VAL, seed=0, voxel_mm=8.0)
    labels = {name: index + 1 for index, name in enumerate(name for half in HALVES for name in half)}
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAININGS}
    for number in range(n_train + N_VAL):
        case = f"body_{number:03d}"
        half = HALVES[number % 2] if number < n_train else tuple(labels)
        whole, part = data / "whole" / f"{case}.nii.gz", data / "part" / f"{case}.nii.gz"
        _write_label(data / "labelsTr" / f"{case}.nii.gz", whole, labels)
        _write_label(data / "labelsTr" / f"{case}.nii.gz", part, {name: labels[name] for name in half})
        entry = {"case": case, "image": f"imagesTr/{case}_0000.nii.gz", "split": "train" if number < n_train else "val"}
        everything, known, taken, fewer = lists.values()
        everything.append(entry | {"label": f"whole/{whole.name}"})
        known.append(entry | {"label": f"part/{part.name}", "labelled": list(half)})
        taken.append(entry | {"label": f"part/{part.name}"})
        if number % 2 or number >= n_train:
            fewer.append(everything[-1])
    paths = {}
    for number, (name, cases) in enumerate(lists.items()):
        paths[name] = data / f"list_{number}.json"
        content = {"cases": cases, "labels": {"background": 0, **labels}, "channel_names": ["CT"]}
        paths[name].write_text(json.dumps(content))
    return paths


def _write_label(source: Path, target: Path, values: Mapping[str, int]) -> None:
    """Write the label map of some structures; the others become background."""
    target.parent.mkdir(exist_ok=True)
    label = nib.Nifti1Image.from_filename(source)
    kept = np.zeros(len(CLASS_NAMES), np.uint8)
    for name, value in values.items():
        kept[CLASS_NAMES.index(name)] = value
    nib.Nifti1Image(kept[np.asarray(label.dataobj).astype(np.int64)], label.affine).to_filename(target)


def _trained(folder: Path, name: str, cases: Path, epochs: int, seed: int) -> dict[str, Any]:
    config = from_mapping(
        {
            "experiment": {"name": cases.stem, "log_dir": str(folder / "logs")},
            "data": {
                "dataset_root": str(cases), "cache_dir": str(folder / "cache"), "target_size": [24, 16, 40],
                "batch_size": 2, "num_workers": 0, "window": [-200, 300],
            },
            "model": {"base_channels": 8},
            "training": {
                "max_epochs": epochs, "warmup_epochs": 1, "lr": 4e-3, "n_gpus": 0, "precision": "32", "seed": seed,
                "validate_every": epochs, "overlay_every": 0,
            },
        }
    )  # fmt: skip
    began = time.perf_counter()
    run = train(config, overwrite=True, say=lambda line: None, console=Console(quiet=True))
    log = json.loads((run / "training_log.json").read_text())
    by_class = log["per_class_iou"]
    mean = log["training_history"]["val_mIoU"][-1]
    seconds = round(time.perf_counter() - began, 1)
    print(f"{name}: {seconds} s", file=sys.stderr)
    return {"training": name, "epochs": epochs, "mean_iou": mean, "iou": by_class, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())

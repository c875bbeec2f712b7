"""What it is worth to begin with the weights of another network: trainings of equal length, by number of cases.

Every fifth case of a data set in the nnU-Net raw layout is held out. Half of the others train two networks: one all
structures, the other the first structure alone. From the other half 5, 15 and all train networks of all structures,
each time from scratch, from the one structure's weights and from the weights of the other cases. Equally long
trainings take the same steps with the same settings, as many at once as --at_once says, each on one thread; their
seconds are the processor time of the whole command. The held-out cases are scored on their own grids.

    python -m benchmarks.fine_tuning DATASET FOLDER --output benchmarks/results/fine_tuning.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

from benchmarks import deadline

SCRATCH, ONE_STRUCTURE, OTHER_CASES = "from scratch", "from one structure", "from other cases"

SETTINGS: dict[str, Any] = {
    "data": {
        "mode": "patch", "spacing_mm": [1.0, 1.0, 1.0], "target_size": [40, 56, 40], "batch_size": 2,
        "intensity": "zscore", "data_aug": True, "flips": [0], "num_workers": 0,
        "split_shares": [100, 0, 0],
    },
    "model": {
        "base_channels": 16,
        "network": {"_target_": "networks.body_net.BodyNet", "strides": [[2, 2, 2]] * 3, "kernels": [[3, 3, 3]] * 4},
    },
    "training": {"max_epochs": 20, "warmup_epochs": 2, "lr": 2e-3, "weight_decay": 0.1, "n_gpus": 0},
}  # fmt: skip
"""What `bodyseg plan` writes for the hippocampus, the length of the training aside."""

GROWTH = ([16, 24, 16, 10, 6], [24, 32, 24, 6, 5], [32, 48, 32, 2, 5])
"""Patch, batch and epochs of the stages before the last."""


@dataclass(frozen=True)
class Training:
    """One network."""

    name: str
    cases: tuple[str, ...]
    only: str | None
    """The structure that it learns; None: all."""
    n_steps: int
    """Steps of each of its epochs."""
    start: str
    start_run: Path | None
    """Whose weights it begins with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all networks, score them, print a table and write a JSON file."""
    given = _parser().parse_args(arguments)
    dataset, folder = given.dataset.resolve(), given.folder.resolve()
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    held_out, sources, targets = divide(deadline.cases_of(dataset, ending))
    study = Study(dataset, folder, ending, held_out, given.seed)
    (first, *_) = study.structures
    with ThreadPoolExecutor(given.at_once) as threads:
        begins = {ONE_STRUCTURE: "one_structure", OTHER_CASES: "other_cases"}
        only = {ONE_STRUCTURE: first, OTHER_CASES: None}
        runs = threads.map(
            study.trained,
            [Training(name, sources, only[start], given.source_steps, start, None) for start, name in begins.items()],
        )
        begun = {SCRATCH: None, **dict(zip(begins, runs, strict=True))}
        trainings = [
            Training(
                f"{number}_{start}_{n_steps}".replace(" ", "_"), spread(targets, number), None, n_steps, start, run
            )
            for n_steps in given.steps
            for number in sorted({min(n, len(targets)) for n in given.n_cases})
            for start, run in begun.items()
        ]
        results = list(threads.map(study.result, trainings))
    document = {
        "held_out": len(held_out), "source_cases": len(sources), "at_once": given.at_once, "seed": given.seed,
        "one_structure": first, "trainings": results,
    }  # fmt: skip
    if given.output is not None:
        given.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(results))
    return 0


def divide(cases: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Divide sorted cases into those held out, those of the networks to begin with, and those to train on."""
    others, held_out = deadline.divide(cases)
    return tuple(held_out), tuple(others[::2]), tuple(others[1::2])


def spread(cases: Sequence[str], number: int) -> tuple[str, ...]:
    """So many of the cases, from the first to the last.

    >>> spread("abcdef", 3)
    ('a', 'c', 'e')
    """
    return tuple(cases[round(index * len(cases) / number)] for index in range(number))


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Mean Dice, a line for each length and number of cases, a column for each beginning."""
    rows: dict[tuple[int, int], dict[str, Mapping[str, Any]]] = {}
    for result in results:
        rows.setdefault((result["n_steps"], result["n_cases"]), {})[result["start"]] = result
    lines = ["minutes  cases  " + "  ".join(f"{start:>18}" for start in (SCRATCH, ONE_STRUCTURE, OTHER_CASES))]
    for (_, n_cases), of_start in rows.items():
        minutes = np.mean([result["seconds"] for result in of_start.values()]) / 60
        dice = "  ".join(f"{of_start[start]['dice']['mean']:18.3f}" for start in (SCRATCH, ONE_STRUCTURE, OTHER_CASES))
        lines.append(f"{minutes:7.1f}  {n_cases:5}  {dice}")
    return "\n".join(lines)


class Study:
    """The data set, and where runs and scores lie."""

    def __init__(self, dataset: Path, folder: Path, ending: str, held_out: Sequence[str], seed: int) -> None:
        self.dataset, self.folder, self.ending, self.held_out, self.seed = dataset, folder, ending, held_out, seed
        description = json.loads((dataset / "dataset.json").read_text())
        self.values: dict[str, int] = {name: n for name, n in description["labels"].items() if n}
        self.channels = list(description["channel_names"].values())
        for part in ("lists", "labels", "settings", "output"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    @property
    def structures(self) -> list[str]:
        """Their names."""
        return list(self.values)

    def trained(self, training: Training) -> Path:
        """Train a network that is no result, and return its run."""
        return self._train(training)[0]

    def result(self, training: Training) -> dict[str, Any]:
        """Train a network and score it on the held-out cases."""
        run, seconds = self._train(training)
        scores = self.folder / "output" / training.name
        self._bodyseg(training.name, "evaluate", run, "--split", "test", "--surface", "none", "--output", scores)
        summary = json.loads((scores / "metrics.json").read_text())["summary"]["left_out"]["classes"]
        dice = {name: summary[name]["dice"]["mean"] for name in self.values}
        result = {
            "start": training.start, "n_cases": len(training.cases), "n_steps": training.n_steps, "seconds": seconds,
            "dice": dice | {"mean": sum(dice.values()) / len(dice)},
        }  # fmt: skip
        print(f"{training.name}: {seconds:.0f} s, Dice {result['dice']['mean']:.4f}", file=sys.stderr, flush=True)
        return result

    def _train(self, training: Training) -> tuple[Path, float]:
        settings = json.loads(json.dumps(SETTINGS))
        n_patches = training.n_steps * SETTINGS["data"]["batch_size"]
        settings["experiment"] = {"name": training.name, "log_dir": str(self.folder / "logs")}
        settings["data"] |= {
            "dataset_root": str(self.case_list(training)), "cache_dir": str(self.folder / "cache"),
            "patch_growth": list(GROWTH), "patches_per_case": n_patches / len(training.cases),
        }  # fmt: skip
        settings["training"] |= {"seed": self.seed, "overlay_every": 0}
        if training.start_run is not None:
            settings["training"]["start_from"] = str(training.start_run)
        path = self.folder / "settings" / f"{training.name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        seconds = self._bodyseg(training.name, "train", "--config", path, "--overwrite")
        (run,) = (self.folder / "logs").glob(f"{training.name}_bs*")
        return run, seconds

    def case_list(self, training: Training) -> Path:
        """Write the list of the training's cases, and of those that are held out."""
        names = [training.only] if training.only else self.structures
        cases = [
            {
                "case": case,
                "image": [str(path) for path in deadline.images_of(self.dataset, case, self.ending)],
                "label": str(self._label(case, training.only)),
                **({"split": "test"} if case in self.held_out else {}),
            }
            for case in (*training.cases, *self.held_out)
        ]
        labels = {"background": 0, **{name: self.values[name] for name in names}}
        path = self.folder / "lists" / f"{training.name}.json"
        path.write_text(json.dumps({"cases": cases, "labels": labels, "channel_names": self.channels}))
        return path

    def _label(self, case: str, only: str | None) -> Path:
        """The case's label map, or one of a structure alone."""
        whole = self.dataset / "labelsTr" / f"{case}{self.ending}"
        if only is None:
            return whole
        part = self.folder / "labels" / f"{case}{self.ending}"
        label = nib.Nifti1Image.from_filename(whole)
        values = np.asarray(label.dataobj)
        nib.Nifti1Image(np.where(values == self.values[only], values, 0), label.affine).to_filename(part)
        return part

    def _bodyseg(self, name: str, *arguments: str | Path) -> float:
        """Run a command of this program on one thread, and return its seconds of processor time."""
        here = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        with (self.folder / "output" / f"{name}.log").open("a") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=here, stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return round(used.ru_utime + used.ru_stime, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fine_tuning", allow_abbrev=False)
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="Data set in the nnU-Net raw layout.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="For lists, cache, runs and scores.")
    parser.add_argument("--n_cases", type=int, nargs="+", default=[5, 15, 60], metavar="N", help="(default: 5 15 60)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 40], metavar="N", help="Of an epoch, 20 epochs.")
    parser.add_argument("--source_steps", type=int, default=60, metavar="N", help="Where training begins with others'.")
    parser.add_argument("--at_once", type=int, default=2, metavar="N", help="Trainings at once. (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="JSON file to write.")
    return parser


if __name__ == "__main__":
    sys.exit(main())

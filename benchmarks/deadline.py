"""How good is a network after so many minutes? The commands that a newcomer types, on cases that are held out.

Every fifth case of a data set in the nnU-Net raw layout is held out. For each budget and seed `bodyseg plan`, `train`
and `predict --tta` run as processes of their own, and `bodyseg evaluate` scores the held-out cases on their own grids.
With --config, other settings are trained with on the same cases, too, as they are.
With --nnunet, nnU-Net (its `nnUNetv2_…` commands, in an environment of its own) trains on the same cases for a number
of iterations, its whole schedule within them, predicts with its eight mirrored passes and is scored alike.
nnU-Net's closing validation, of the cases that it was trained on, is left out.
Run it on an idle machine: what is reported counts from the start of a command to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

EVERY, FIRST = 5, 2
"""Which of the sorted cases are held out: the third and every fifth after it."""

MANY = 10
"""Structures from which on the console shows their means alone."""

TRAINER = '''
import os
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class {name}(nnUNetTrainer):
    """The default trainer, with its whole schedule in fewer iterations."""
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = {epochs}, {each}, 1

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: it scores the cases that were trained on, and changes nothing."""
'''


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, print a table and write a JSON file; 0, or 1 where a command failed."""
    given = _parser().parse_args(arguments)
    work = given.work.resolve()
    train, test = hold_out(given.dataset, work)
    results: list[dict[str, Any]] = []

    def add(result: dict[str, Any], folder: Path) -> None:
        results.append(result | scores(folder, test, given.small_ml))
        _say(results[-1])

    try:
        for seed in given.seeds.split(","):
            for budget in given.budgets.split(",") if given.budgets else []:
                folder = _emptied(work / f"ours-{budget}-{seed}")
                plan_s = _bodyseg(folder, "plan", train, "--budget", budget, "--output", "plan.yaml")
                result = _ours(folder, train, test, seed, folder / "plan.yaml")
                result["seconds"] = {"plan": plan_s, **result["seconds"]}
                add({"budget": budget, **result}, folder)
            for path in given.config:
                folder = _emptied(work / f"{path.stem}-{seed}")
                add(_ours(folder, train, test, seed, path.resolve()), folder)
        for iterations in given.iterations.split(",") if given.nnunet else []:
            folder = _emptied(work / f"nnunet-{iterations}")
            add(_nnunet(folder, train, test, given.nnunet, int(iterations)), folder)
    except subprocess.CalledProcessError as error:
        print(f"benchmarks.deadline: {error}; what it printed: {work}/*/commands.log", file=sys.stderr)
        return 1
    finally:
        given.output.write_text(json.dumps({"held_out": len(list(test.glob("labelsTr/*"))), "runs": results}, indent=1))
    return 0


def hold_out(dataset: Path, work: Path) -> tuple[Path, Path]:
    """Copy the cases to train on and the others into two data sets of the same layout, and return their folders."""
    description = json.loads((dataset / "dataset.json").read_text())
    ending = description["file_ending"]
    parts = dict(zip(("train", "test"), divide(cases_of(dataset, ending)), strict=True))
    for part, names in parts.items():
        shutil.rmtree(work / part, ignore_errors=True)
        for case in names:
            for path in [*images_of(dataset, case, ending), dataset / "labelsTr" / f"{case}{ending}"]:
                target = work / part / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        kept = {key: description[key] for key in ("channel_names", "labels", "file_ending")}
        (work / part / "dataset.json").write_text(json.dumps(kept | {"numTraining": len(names)}))
    return work / "train", work / "test"


def cases_of(dataset: Path, ending: str) -> list[str]:
    """The sorted names of the cases that have a label."""
    return sorted(path.name.removesuffix(ending) for path in dataset.glob(f"labelsTr/*{ending}"))


def divide(cases: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide sorted cases into those to train on and those that are held out."""
    return [case for number, case in enumerate(cases) if number % EVERY != FIRST], list(cases[FIRST::EVERY])


def images_of(dataset: Path, case: str, ending: str) -> list[Path]:
    """The image files of a case, by channel."""
    numbered = dataset.glob(f"imagesTr/{case}_[0-9][0-9][0-9][0-9]{ending}")
    return sorted([*numbered, *dataset.glob(f"imagesTr/{case}{ending}")])


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _ours(folder: Path, train: Path, test: Path, seed: str, config: Path) -> dict[str, Any]:
    settings = ("--config", config, "--dataset_root", train, "--data.cache_dir", "cache", "--training.seed", seed)
    seconds = {"train": _bodyseg(folder, "train", *settings)}
    (run,) = (folder / "logs").iterdir()
    seconds["predict"] = _bodyseg(folder, "predict", run, test, "--tta", "--output", "predictions")
    training = json.loads((run / "training_config.json").read_text())["training"]
    optimiser = {"adamw": "AdamW", "muon": "Muon", "sgd": "SGD"}[training["optimizer"]]
    found = {"method": "bodyseg", "config": config.name, "seed": int(seed), "seconds": seconds}
    return found | {"optimiser": optimiser, "lr": training["lr"]}


def _nnunet(folder: Path, train: Path, test: Path, commands: Path, iterations: int) -> dict[str, Any]:
    names = {f"nnUNet_{what}": folder / what for what in ("raw", "preprocessed", "results")}
    for path in names.values():
        path.mkdir(parents=True)
    there = os.environ | {name: str(path) for name, path in names.items()}
    there |= {"nnUNet_compile": "f", "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    shutil.copytree(train, folder / "raw" / "Dataset004_Deadline")
    python = [commands / "python", "-c", "import nnunetv2; print(nnunetv2.__path__[0])"]
    package = Path(subprocess.run(python, check=True, capture_output=True, text=True).stdout.strip())
    trainer, epochs = f"nnUNetTrainer_{iterations}iterations", max(1, iterations // 10)
    source = TRAINER.format(name=trainer, epochs=epochs, each=max(1, iterations // epochs))
    (package / "training/nnUNetTrainer/variants/training_length" / f"{trainer}.py").write_text(source)
    use = ["-d", "4", "-c", "3d_fullres", "-f", "all", "-tr", trainer, "-device", "cpu"]
    images = folder / "images"
    shutil.copytree(test / "imagesTr", images)
    seconds = {
        "plan": _timed(["nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "2"], folder, there),
        "train": _timed(["nnUNetv2_train", "4", "3d_fullres", "all", "-tr", trainer, "-device", "cpu"], folder, there),
        "predict": _timed(
            ["nnUNetv2_predict", *use, "-npp", "1", "-nps", "1", "-i", images, "-o", folder / "predictions"],
            folder,
            there,
        ),
    }
    return {"method": "nnU-Net", "iterations": iterations, "seconds": seconds}


def scores(folder: Path, test: Path, small_ml: float) -> dict[str, dict[str, float]]:
    """Mean Dice and volume of each structure over the held-out cases, with the mean Dice of all, and of small ones."""
    files = ("--predictions", "predictions", "--labels", test, "--output", ".")
    _bodyseg(folder, "evaluate", *files, "--surface", "none")
    classes = json.loads((folder / "metrics.json").read_text())["summary"]["left_out"]["classes"]
    found = {name: classes[name]["dice"]["mean"] for name in classes}
    volumes_ml = {name: classes[name]["reference_ml"]["mean"] for name in classes}
    small = [found[name] for name in found if volumes_ml[name] < small_ml]
    means = {"mean": fmean(found.values())}
    if 0 < len(small) < len(found):
        means[f"mean below {small_ml:g} ml"] = fmean(small)
    return {"dice": found | means, "reference_ml": volumes_ml}


def _bodyseg(folder: Path, *arguments: str | Path) -> float:
    """Run a command of this program, and return its seconds."""
    here = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return _timed([sys.executable, "-m", "pipeline", *arguments], folder, here)


def _timed(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> float:
    """Run a command and return its seconds; what it prints is added to commands.log."""
    start = time.perf_counter()
    with (folder / "commands.log").open("a") as log:
        subprocess.run(list(map(str, command)), cwd=folder, env=dict(environment), stdout=log, stderr=log, check=True)
    return round(time.perf_counter() - start, 1)


def _say(result: Mapping[str, Any]) -> None:
    what = result.get("budget") or result.get("config") or f"{result['iterations']} iterations"
    seconds = "  ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    shown = result["dice"] if len(result["dice"]) < MANY else {n: v for n, v in result["dice"].items() if "mean" in n}
    dice = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
    print(f"{result['method']:<8} {what:<16} {seconds}   Dice {dice}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deadline", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", type=Path, help="Data set in the nnU-Net raw layout.")
    parser.add_argument("--budgets", default="2min,5min", help="Of `bodyseg plan`. (default: %(default)s)")
    parser.add_argument(
        "--config", type=Path, nargs="+", default=[], metavar="FILE", help="Settings to train with, too."
    )
    parser.add_argument("--seeds", default="42", help="One training each. (default: %(default)s)")
    parser.add_argument("--nnunet", type=Path, metavar="DIR", help="bin folder of an environment with nnunetv2.")
    parser.add_argument("--iterations", default="40,110", help="Of nnU-Net's trainings. (default: %(default)s)")
    parser.add_argument(
        "--small_ml", type=float, default=5.0, metavar="ML", help="Mean of structures below it. (default: %(default)s)"
    )
    parser.add_argument("--work", type=Path, default=Path("deadline"), help="Folder for it all. (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "deadline.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())

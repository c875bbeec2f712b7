"""What is compared, at which sizes, and which goals must be met. Imports nothing that computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runner import Comparison, Goal, Job, Row

FULL, REDUCED, TOY = "full", "reduced", "toy"
SIZES = {FULL: [160, 160, 256], REDUCED: [80, 80, 128], TOY: [16, 16, 32]}
"""Voxels of a prepared volume: the documented size, an eighth of it for a look in minutes, and one for the tests."""
SOURCES = {FULL: [512, 512, 300], REDUCED: [256, 256, 150], TOY: [24, 24, 30]}
"""Voxels of a scan's file."""
LARGE_SCANS = {FULL: [512, 512, 800], REDUCED: [96, 96, 150], TOY: [24, 22, 30]}
"""Voxels of a large scan, onto whose grid a prediction comes back."""
NETWORK_GRIDS = {FULL: SIZES[FULL], REDUCED: [32, 32, 48], TOY: SIZES[TOY]}
"""Where it comes from. At the reduced scale both are small: of 118 classes MONAI holds every voxel several times."""
SMALLER = ([160, 160, 224], [160, 160, 192], [144, 144, 192], [128, 128, 192], [128, 128, 128])
"""Where the documented size does not fit the plain way."""

NO_DATA = "no data set: give --hippocampus DIR (Medical Segmentation Decathlon, Task04, in the nnU-Net raw layout)"


@dataclass(frozen=True)
class Places:
    """What is not here: a data set, and other programs."""

    hippocampus: str | None = None
    """Folder of the hippocampus data set."""
    nnunet: str | None = None
    """bin folder of an environment with nnunetv2."""


def losses(scale: str, places: Places) -> Row:
    """Loss + head at few and at many classes."""
    counts = (2, 5) if scale == TOY else (2, 16, 71, 118)
    repeated = {"n": _n(scale, 3, 3)}
    return Row(
        "loss + head, forward and backward (32 features)",
        [
            Comparison(
                f"{count} classes",
                {
                    "conv + DiceCELoss": Job("losses.plain"),
                    "conv + DiceCELoss, memory kept": Job("losses.in_kept_memory", {"method": "plain", **repeated}),
                    "slabs, memory kept": Job("losses.in_kept_memory", {"method": "ours", **repeated}),
                    "slabs, half of the classes annotated": Job("losses.partly"),
                    "slabs": Job("losses.ours"),
                },
                [{"size": SIZES[scale], "n_classes": count, "n": _n(scale, 1, 3)}],
                repeats=_n(scale, 3, 2),
                same_value=("conv + DiceCELoss", "slabs"),
                # The plain method sums six million voxels in float32; tests/losses/test_dice_ce.py holds 1e-5 on fewer.
                tolerance=1e-3 if scale == FULL else 1e-4,
                goal=Goal(faster=5, memory=0.2) if scale == FULL and count == 71 else Goal(),
            )
            for count in counts
        ],
        flat_method="slabs",
    )


def metric(scale: str, places: Places) -> Row:
    """Dice of two label maps."""
    return Row(
        f"Dice of label maps, 71 classes, {_times(SIZES[scale])}",
        [
            Comparison(
                "Dice",
                {"DiceMetric": Job("label_maps.plain_dice"), "joint histogram": Job("label_maps.our_dice")},
                [{"n": _n(scale, 2, 2)}],
                prepare=Job("inputs.write_label_pair", {"size": SIZES[scale]}),
                folder=True,
                repeats=_n(scale, 3, 2),
                same_value=("DiceMetric", "joint histogram"),
                tolerance=1e-6,
                goal=Goal(faster=100) if scale == FULL else Goal(),
            )
        ],
    )


def surfaces(scale: str, places: Places) -> Row:
    """HD95 and surface Dice of two label maps."""
    return Row(
        f"HD95 + surface Dice, 70 classes, {_times(SIZES[scale])}",
        [
            Comparison(
                "surfaces",
                {"MONAI": Job("label_maps.plain_surfaces"), "one pass": Job("label_maps.our_surfaces")},
                prepare=Job("inputs.write_label_pair", {"size": SIZES[scale]}),
                folder=True,
                repeats=_n(scale, 2, 2),
                same_value=("MONAI", "one pass"),
                tolerance=1e-5,
                goal=Goal(faster=20) if scale == FULL else Goal(),
            )
        ],
    )


def way_back(scale: str, places: Places) -> Row:
    """From features to a label map on the scan's grid."""
    few, many = (3, 5) if scale == TOY else (71, 118)
    kinds = {f"{few} classes": (few, False), f"{many} classes": (many, False), f"{few} classes, noise": (few, True)}
    sizes = {"source_size": LARGE_SCANS[scale], "size": NETWORK_GRIDS[scale]}
    return Row(
        f"way back from {_times(NETWORK_GRIDS[scale])} onto a scan of {_times(LARGE_SCANS[scale])}",
        [
            Comparison(
                name,
                {"conv + Invertd": Job("way_back.plain"), "slab by slab": Job("way_back.ours")},
                [{**sizes, "n_classes": count, "noise": noise}],
                repeats=_n(scale, 1, 2),
                memory="peak",
                same_value=("conv + Invertd", "slab by slab"),
                tolerance=1e-3,  # shares of voxels and centroids: rounding decides where two logits are equal
                goal=Goal(peak_gb=2.5) if scale == FULL else Goal(),
            )
            for name, (count, noise) in kinds.items()
        ],
        flat_method="slab by slab",
    )


def window(scale: str, places: Places) -> Row:
    """A long scan through a sliding window, at two class counts and at twice the length."""
    grids = {
        FULL: ([512, 512, 800], [320, 320, 512], [128, 128, 128]),  # 0.98 × 0.98 × 1 mm, taken to 1.6 mm
        REDUCED: ([128, 128, 200], [80, 80, 128], [32, 32, 32]),
        TOY: ([24, 22, 40], [12, 12, 24], [8, 8, 8]),
    }
    source_size, size, of_window = grids[scale]
    few, many = (3, 5) if scale == TOY else (71, 118)
    ours = {"features, slices": Job("window.ours")}
    both = {"MONAI, logits": Job("window.plain")} | ours
    overlap = 0.25 if scale == FULL else 0.5  # two fifths of the windows, in as much memory
    others = ours if scale == FULL else both  # MONAI's takes minutes, and memory for every class and slice
    cases = {
        f"{few} classes": (few, 1, both),
        f"{many} classes": (many, 1, others),
        f"{few} classes, twice as long": (few, 2, others),
    }
    return Row(
        f"window of {_times(of_window)} over a scan of {_times(source_size)}",
        [
            Comparison(
                name,
                methods,
                [
                    {
                        "source_size": [*source_size[:2], source_size[2] * length],
                        "size": [*size[:2], size[2] * length],
                        "window": of_window,
                        "n_classes": n_classes,
                        "overlap": overlap,
                    }
                ],
                repeats=1,
                memory="peak",
                same_value=tuple(methods),
                tolerance=1e-3,  # shares of voxels and centroids: rounding decides where two logits are equal
            )
            for name, (n_classes, length, methods) in cases.items()
        ],
        flat_method="features, slices",
    )


def prediction(scale: str, places: Places) -> Row:
    """A scan from file to file through the same network, by each program's own inference code."""
    source_size, window, network = {
        FULL: ([256, 256, 200], [128, 128, 128], {}),
        REDUCED: ([128, 128, 100], [64, 64, 64], {"base_channels": 8, "n_levels": 4}),
        TOY: ([32, 32, 25], [16, 16, 16], {"base_channels": 4, "n_levels": 3}),
    }[scale]
    settings = {"source_size": source_size, "window": window}
    methods = {"MONAI": Job("prediction.plain")}
    if places.nnunet:
        methods["nnU-Net"] = Job("nnunet_prediction.predict", python=str(Path(places.nnunet, "python")))
    methods |= {"ours, bfloat16": Job("prediction.ours", {"precision": "bf16"}), "ours": Job("prediction.ours")}
    return Row(
        f"a scan of {_times(source_size)} from file to file, 71 classes, windows of {_times(window)}",
        [
            Comparison(
                "prediction",
                methods,
                [settings],
                prepare=Job("prediction.prepare", settings | network),
                folder=True,
                repeats=1,
                memory="peak",
                same_value=tuple(methods),
                # The programs resample differently, and a network with random weights changes its mind at little.
                tolerance=0.8 if scale == TOY else 0.35,
            )
        ],
    )


def large_scan(scale: str, places: Places) -> Row:
    """A large scan from file to file, through BodyNet as a training on whole scans leaves it."""
    settings = {"source_size": LARGE_SCANS[scale], "size": SIZES[scale]}
    network = {"base_channels": 4} if scale == TOY else {}
    return Row(
        f"a scan of {_times(LARGE_SCANS[scale])} from file to file, 71 classes",
        [
            Comparison(
                "bodyseg predict",
                {"BodyNet, ours": Job("prediction.ours")},
                [settings],
                prepare=Job("prediction.prepare_whole", settings | network),
                folder=True,
                repeats=1,
                memory="peak",
            )
        ],
    )


def patches(scale: str, places: Places) -> Row:
    """Patches of a large case from the cache, on one core."""
    cases = {
        FULL: {"512×512×800 at 1.5 mm": [333, 333, 533], "512×512×800 at 0.8 mm": [625, 625, 1000]},  # of 0.98 mm
        REDUCED: {"an eighth of 1.5 mm": [168, 168, 264], "an eighth of 0.8 mm": [312, 312, 496]},
        TOY: {"toy": [24, 24, 32]},
    }
    patch = [8, 8, 8] if scale == TOY else [128, 128, 128]
    n, steps = {"n": _n(scale, 40, 20)}, {"n_steps": 1 + _n(scale, 5, 2), "base_channels": 2 if scale == TOY else 32}
    return Row(
        f"a patch of {_times(patch)} from a large case in the cache, on one core",
        [
            Comparison(
                f"{name}, {_times(size)}",
                {
                    "as it is": Job("patches.ours", {"augment": False, **n}),
                    "augmented": Job("patches.ours", {"augment": True, **n}),
                    "augmented, and a step with it on all cores": Job("patches.training", steps),
                },
                [{"patch": patch}],
                prepare=Job("patches.prepare", {"size": size}),
                folder=True,
                repeats=1,
            )
            for name, size in cases[scale].items()
        ],
    )


def step(scale: str, places: Places) -> Row:
    """Full training steps."""
    width = {"base_channels": 4, "n_classes": 5} if scale == TOY else {}
    # Ten steps, over the first of which the memory that is kept grows; three of the plain ones, which take minutes.
    size = {"size": SIZES[scale], "n_steps": _n(scale, 10, 3), **width}
    full = scale == FULL
    smaller = [{**size, "size": s} for s in SMALLER] if full else []
    plain_unet, plain_body = ({"network": name, "n_steps": _n(scale, 3, 3)} for name in ("unet", "body_net"))
    our_unet, our_body = ({"network": name} | _step_precision(scale) for name in ("unet", "body_net"))
    # bfloat16 against float32, in whole networks or in logits alone
    common: dict[str, Any] = {"repeats": _n(scale, 1, 2), "memory": "peak", "tolerance": 0.02}
    same_network = {"BodyNet, plain": Job("steps.plain", plain_body), "BodyNet, ours": Job("steps.ours", our_body)}
    other_network = {
        "UNet, plain": Job("steps.plain", plain_unet),
        "UNet, our step": Job("steps.ours", our_unet),
        "BodyNet, ours": Job("steps.ours", our_body),
    }
    batches = {
        "UNet, plain": Job("steps.plain", plain_unet | {"batch": 2}),
        "BodyNet, ours": Job("steps.ours", our_body | {"batch": 2}),
    }
    goals = [Goal(faster=3, memory=0.5), Goal(faster=1, memory=0.5), Goal(peak_gb=16)] if full else [Goal()] * 3
    return Row(
        "training step, 71 classes, AdamW included",
        [
            Comparison(
                "the same network, batch 1",
                same_network,
                [size, *smaller],
                same_value=tuple(same_network),
                goal=goals[0],
                **common,
            ),
            Comparison(
                "MONAI's UNet, batch 1",
                other_network,
                [size],
                same_value=("UNet, plain", "UNet, our step"),
                goal=goals[1],
                **common,
            ),
            Comparison("MONAI's UNet, batch 2", batches, [size], repeats=1, memory="peak", goal=goals[2]),
            *(_compiled_step(network) for network in ("body_net", "unet") if full),
        ],
    )


def step_loss(scale: str, places: Places) -> Row:
    """Full training steps that differ in their loss alone."""
    width = {"base_channels": 4, "n_classes": 5} if scale == TOY else {}
    settings = {"size": SIZES[scale], "network": "body_net"} | width | _step_precision(scale)
    methods = {
        "BodyNet, DiceCELoss": Job("steps.ours", {"loss": "full logits"}),
        "BodyNet, ours": Job("steps.ours"),
    }
    return Row(
        "training step, 71 classes, AdamW included: all alike but the loss",
        [
            Comparison(
                f"batch {batch}",
                methods,
                [settings | {"batch": batch, "n_steps": _n(scale, n_steps, 3)}],
                repeats=1,
                memory="peak",
                same_value=tuple(methods),
                tolerance=0.02,  # bfloat16 in the logits
            )
            for batch, n_steps in ((1, 10), (2, 3))
        ],
    )


def _step_precision(scale: str) -> dict[str, str]:
    """oneDNN's bfloat16 weight gradient is wrong where the first axis has shrunk to 2 voxels (torch 2.13, CPU)."""
    return {"precision": "32-true"} if scale == TOY else {}


def _compiled_step(network: str) -> Comparison:
    """What torch.compile gains; at an eighth of the size, since the gain is the same and compiling takes a minute."""
    methods = {
        compiled: Job("steps.ours", {"network": network, "compiled": compiled == "compiled"})
        for compiled in ("as it is", "compiled")
    }
    return Comparison(
        f"torch.compile of {network}", methods, [{"size": SIZES[REDUCED], "n_steps": 4}], repeats=1, memory="peak"
    )


def loading(scale: str, places: Places) -> Row:
    """One case, from its files or from the cache."""
    return Row(
        f"one case from gzip NIfTI, {_times(SOURCES[scale])} with its label",
        [
            Comparison(
                "loading",
                {
                    "our chain": Job("loading.uncached", {"n": 1}),
                    "MONAI's chain": Job("loading.plain", {"n": 1}),
                    "hash, check and our chain": Job("loading.first_start", {"n": 1}),
                    "cached": Job("loading.second_epoch", {"n": 20}),
                },
                [{"size": SIZES[scale]}],
                prepare=Job("loading.prepare", {"source_size": SOURCES[scale], "size": SIZES[scale]}),
                folder=True,
                repeats=_n(scale, 3, 3),
                same_value=("our chain", "cached"),
                tolerance=1e-4,
                goal=Goal(faster=100) if scale == FULL else Goal(),
            )
        ],
    )


def augmentation(scale: str, places: Places) -> Row:
    """Random variation of one prepared case."""
    kinds = {"default probabilities": (0.75, 0.2), "every operation every time": (1.0, 1.0)}
    return Row(
        "augmentation of one case with its label on one core",
        [
            Comparison(
                name,
                {"MONAI's chain": Job("augmentation.plain"), "ours": Job("augmentation.ours")},
                [{"size": SIZES[scale], "spatial": spatial, "intensity": intensity, "n": _n(scale, 16, 16)}],
                repeats=_n(scale, 3, 2),
            )
            for name, (spatial, intensity) in kinds.items()
        ],
    )


def epoch(scale: str, places: Places) -> Row:
    """A whole epoch on real scans."""
    title = "whole epoch on the hippocampus data set, validation included"
    if places.hippocampus is None:
        return Row(title, [], skipped=NO_DATA)
    methods = {"MONAI + PyTorch loop": Job("epoch.plain"), "bodyseg train": Job("epoch.ours")}
    settings = {"dataset_root": places.hippocampus, "n_epochs": _n(scale, 5, 3)}
    return Row(title, [Comparison("epoch", methods, [settings], folder=True, repeats=_n(scale, 2, 1), memory="peak")])


def startup(scale: str, places: Places) -> Row:
    """Waiting for help, and for a command to begin."""
    methods = {
        "import monai": Job("startup.plain"),
        "bodyseg train --help": Job("startup.ours"),
        **{f"bodyseg {name}, imports": Job("startup.command", {"name": name}) for name in ("predict", "check")},
    }
    return Row("start-up", [Comparison("whole process", methods, [{"n": _n(scale, 3, 3)}], repeats=1, memory=None)])


def make_train(scale: str, places: Places) -> Row:
    """What somebody waits for who tries it, once things are installed."""
    methods = {"bodyseg sample, train and plot": Job("make_train.ours")}
    return Row("make train", [Comparison("make train", methods, folder=True, repeats=1, memory="peak")])


def scale_of_starts(scale: str, places: Places) -> Row:
    """What a start costs by the number of cases."""
    # Of 10,000 cases a few masks alone: a million files would take an hour to write and to prepare.
    starts = {FULL: {10: 117, 100: 117, 1000: 117, 10_000: 3}, REDUCED: {10: 117, 100: 117}, TOY: {4: 3, 6: 3}}[scale]
    scored = {FULL: {1000: 71, 10_000: 118}, REDUCED: {100: 71, 1000: 71}, TOY: {4: 5, 6: 5}}[scale]
    folders = {FULL: (10, 100, 1000, 10_000), REDUCED: (10, 100), TOY: (4, 6)}[scale]
    methods = {
        "a start of a training that finds nothing changed": {
            f"{n:,} cases of {n_masks} masks": Job("scale.second_start", {"n_cases": n, "n_masks": n_masks})
            for n, n_masks in starts.items()
        },
        "scans listed for a prediction": {f"{n:,} scans": Job("scale.listing", {"n_scans": n}) for n in folders},
        "scores summed up": {
            f"{n:,} cases of {n_classes} classes": Job("scale.summing_up", {"n_cases": n, "n_classes": n_classes})
            for n, n_classes in scored.items()
        },
    }
    return Row(
        "what grows with the number of cases",
        [Comparison(name, jobs, folder=True, repeats=1, memory=None) for name, jobs in methods.items()],
    )


def growth(scale: str, places: Places) -> Row:
    """Memory that is not given back."""
    settings = {"n": 4 if scale == TOY else 200}
    return Row(
        "resident memory in the course of 200",
        [
            Comparison(name, {"bodyseg": Job(job)}, [settings], folder=True, repeats=1, memory="peak")
            for name, job in (("epochs", "growth.epochs"), ("predictions", "growth.predictions"))
        ],
    )


def curve(scale: str, places: Places) -> Row:
    """The same training with either loss."""
    # Where a level of the network is left with a voxel or two, normalising them turns rounding into noise: BodyNet,
    # of six levels, needs more than 64 voxels each way, and a toy a network of fewer levels.
    shallow = {"_target_": "SegResNet", "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
    settings: dict[str, Any] = {"size": [80, 80, 96], "n_classes": 71}
    if scale == TOY:
        settings = {"size": [16, 16, 32], "n_classes": 5, "network": shallow}
    return Row(
        "loss curve of 20 steps, same seed, float32",
        [
            Comparison(
                "curve",
                {"DiceCELoss": Job("losses.plain_curve"), "slabs": Job("losses.our_curve")},
                [settings],
                repeats=1,
                same_value=("DiceCELoss", "slabs"),
                tolerance=1e-3,
            )
        ],
    )


def gpu(scale: str, places: Places) -> Row:
    """A GPU, where there is one; nnU-Net's step where it is installed beside us."""
    size = SIZES[REDUCED if scale == REDUCED else FULL]
    source = SOURCES[REDUCED if scale == REDUCED else FULL]
    methods = {
        "BodyNet, DiceCELoss": Job("gpu.ours", {"loss": "full logits"}),
        "BodyNet, ours": Job("gpu.ours"),
        "BodyNet, ours, batch 2": Job("gpu.ours", {"batch": 2}),
        "BodyNet, ours, batch 4": Job("gpu.ours", {"batch": 4}),
        "MONAI's UNet, DiceCELoss": Job("gpu.plain", {"network": "unet"}),
    }
    if importlib.util.find_spec("nnunetv2"):
        methods["nnU-Net"] = Job("gpu.nnunet")
    return Row(
        "on a GPU in half precision, 71 classes",
        [
            Comparison(
                "steps",
                methods,
                [{"size": size}],
                prepare=Job("gpu.prepare_if_gpu", {"source_size": SOURCES[REDUCED], "size": size}),
                folder=True,
                repeats=1,
                memory="peak",
            ),
            Comparison(
                f"a scan of {_times(source)} from file to file",
                {"BodyNet, ours": Job("prediction.ours", {"device": "cuda"})},
                [{"source_size": source, "size": size}],
                prepare=Job("prediction.prepare_whole", {"source_size": source, "size": size}),
                folder=True,
                repeats=1,
                memory="peak",
            ),
        ],
    )


def _n(scale: str, full: int, reduced: int) -> int:
    """How often something is repeated."""
    return {FULL: full, REDUCED: reduced, TOY: 1}[scale]


def _times(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


ROWS: dict[str, Callable[[str, Places], Row]] = {
    "losses": losses,
    "metric": metric,
    "surfaces": surfaces,
    "restore": way_back,
    "window": window,
    "prediction": prediction,
    "large_scan": large_scan,
    "step": step,
    "step_loss": step_loss,
    "loading": loading,
    "patches": patches,
    "augmentation": augmentation,
    "epoch": epoch,
    "startup": startup,
    "make_train": make_train,
    "scale": scale_of_starts,
    "growth": growth,
    "curve": curve,
    "gpu": gpu,
}
"""Every row by name: called with the scale and what is not here."""

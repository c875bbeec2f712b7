"""nnU-Net's own inference: its preprocessing, sliding window and export, on a model folder that is written here.

`predict` runs in an environment of nnU-Net's own, which lacks what this program needs: imports at the top are those
that both have.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_result import held_against_first
from benchmarks.measurement import Measurement

CONFIGURATION, CHECKPOINT = "3d_fullres", "checkpoint_final.pth"
RESAMPLING = {
    f"resampling_fn_{what}{rest}": value
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    for rest, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
    )
}
"""What nnU-Net's planner writes."""


def write_model(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    arguments: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    window: Sequence[int],
    spacing_mm: float,
    intensity: Mapping[str, float],
) -> None:
    """Write plans.json, dataset.json and a checkpoint of `plain_unet.PlainUNet`, as a training of nnU-Net leaves them.

    Args:
        folder: it is made.
        weights: of the network.
        arguments: of the network's constructor, without classes.
        class_names: background first.
        window: the patch size.
        spacing_mm: along all axes.
        intensity: where a CT is clipped and how it is scaled, by nnU-Net's names.
    """
    configuration = {
        "data_identifier": CONFIGURATION, "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(window), "spacing": [spacing_mm] * 3, "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False], "batch_dice": False, **RESAMPLING,
        "architecture": {
            "network_class_name": "benchmarks.plain_unet.PlainUNet", "_kw_requires_import": [],
            "arch_kwargs": {name: value for name, value in arguments.items() if name != "input_channels"},
        },
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset001_Phantom", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 1, 0], "transpose_backward": [2, 1, 0], "label_manager": "LabelManager",
        "configurations": {CONFIGURATION: configuration}, "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {"0": dict(intensity)},
    }  # fmt: skip
    dataset = {
        "channel_names": {"0": "CT"}, "labels": {name: value for value, name in enumerate(class_names)},
        "numTraining": 1, "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "fold_0").mkdir(parents=True)
    for name, content in (("plans", plans), ("dataset", dataset)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    checkpoint = {
        "network_weights": dict(weights), "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION}, "inference_allowed_mirroring_axes": None,
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / CHECKPOINT)


def predict(folder: str, source_size: Sequence[int], window: Sequence[int]) -> Measurement:
    """Predict without mirrored passes and without further processes, which for one scan would only copy its logits."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["nnUNet_def_n_proc"] = str(cores)  # noqa: SIM112  # that is its name
    from nnunetv2.inference import predict_from_raw_data as code
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    predictor = code.nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(Path(folder, "nnunet")), (0,), CHECKPOINT)
    found = Measurement([], facts={"nnunetv2": importlib.metadata.version("nnunetv2")})
    for owner, name, step in (
        (DefaultPreprocessor, "run_case", "read"),
        (predictor, "predict_logits_from_preprocessed_data", "network"),
        (code, "export_prediction_from_logits", "export"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), found.facts, f"{step}_s"))
    output = Path(folder, "nnunet_out")
    output.mkdir()
    start = time.perf_counter()
    predictor.predict_from_files_sequential(str(Path(folder, "scans")), str(output))
    found.seconds = [time.perf_counter() - start]
    unit = 1 if sys.platform == "darwin" else 1024
    found.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held_against_first(found, folder, next(output.glob("*.nii.gz")))


def _timed(function: Callable[..., Any], facts: dict[str, Any], name: str) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        facts[name] = time.perf_counter() - start
        return result

    return run

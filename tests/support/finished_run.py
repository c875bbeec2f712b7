"""The documented settings, and a run folder as a finished training leaves it."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.files import from_mapping, settings_of
from pipeline.config.settings import Config
from pipeline.files.atomic import write_atomically
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder, run_name


def append(log: TrainingLog, miou: float | None, **values) -> bool:
    epoch = len(log)
    defaults = {
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 1.5,
        "learning_rate": 1e-4 * min(epoch + 1, 5) / 5,
    }
    return log.append_epoch(epoch, val_mIoU=miou, **defaults | values)


def documented_config(**changes) -> dict:
    """The specification's example, with "group.key" settings changed."""
    config = {
        "experiment": {"name": "body_unet", "start_time": "2024-01-15 10:30:00", "log_dir": "logs"},
        "data": {
            "dataset_root": "merged_data",
            "target_size": (160, 160, 256),
            "batch_size": 2,
            "num_workers": 4,
            "data_aug": True,
        },
        "model": {"n_classes": 71, "base_channels": 32, "use_light_model": False, "total_parameters": 20458391},
        "training": {
            "lr": 1e-4,
            "weight_decay": 0.0,
            "max_epochs": 6,
            "warmup_epochs": 5,
            "n_gpus": 2,
            "precision": "16",
            "seed": 42,
        },
        "loss": {
            "use_class_weights": True,
            "weight_alpha": 0.5,
            "class_weights_stats": {"min": 0.1, "max": 5.6, "mean": 1.2, "std": 0.9},
        },
        "system": {"pytorch_version": "2.13.0", "cuda_available": True, "cuda_version": "12.7"},
    }
    for key, value in changes.items():
        group, _, name = key.partition(".")
        config[group][name] = value
    return config


def settings_in(config: dict) -> Config:
    """The settings in a training_config.json."""
    return from_mapping(settings_of(config, Path("training_config.json")))


def finished_run(log_dir: Path, config: dict, scores=(0.1, 0.2, None, 0.5, 0.5, 0.3)) -> RunFolder:
    folder = RunFolder(log_dir, run_name(settings_in(config)))
    start(folder)
    folder.write_config(config)
    log = TrainingLog()
    for score in scores:
        if append(log, score):
            write_atomically(folder.best_checkpoint, lambda stream: stream.write(b"weights"))
        write_atomically(folder.resume_checkpoint, lambda stream: stream.write(b"state"))
        folder.write_log(log)
    folder.write_summary("completed", log)
    events = folder.path / "version_0" / "events.out.tfevents.1"
    events.parent.mkdir()
    events.touch()
    return folder


def start(folder: RunFolder, **how: bool) -> bool:
    """What a training does before its first file."""
    continues = folder.may_start(**how)
    folder.make_ready(keep=continues)
    return continues

"""The settings that reach Lightning, and the advice of Lightning that is silenced."""

from __future__ import annotations

import logging
import threading
import warnings

from rich.console import Console

from pipeline.compute.devices import choose_devices
from pipeline.config.settings import Config, DataConfig, TrainingConfig
from pipeline.runs.run_folder import RunFolder
from pipeline.training.recorder import RunRecorder
from pipeline.training.trainer import build_trainer, quiet_lightning
from tests.support.tiny_training import description


def recorder_of(tmp_path, **training):
    settings = Config(data=DataConfig("."), training=TrainingConfig(**training))
    return RunRecorder(RunFolder(tmp_path, "run"), description("run"), settings)


def test_lightning_writes_no_checkpoint_of_its_own_and_takes_the_settings(tmp_path):
    devices = choose_devices(0, None, "32")
    recorder = recorder_of(tmp_path, max_epochs=7, accumulate=3, gradient_clip=0.5)
    trainer = build_trainer(recorder, devices, Console())
    assert (trainer.max_epochs, trainer.accumulate_grad_batches, trainer.gradient_clip_val) == (7, 3, 0.5)
    assert trainer.checkpoint_callbacks == []
    assert recorder in trainer.callbacks
    assert trainer.precision == "32-true"
    assert not list(tmp_path.iterdir())
    unclipped = build_trainer(recorder_of(tmp_path, gradient_clip=0.0), devices, Console())
    assert unclipped.gradient_clip_val is None


def test_one_process_in_a_job_of_several_tasks_is_one_process(tmp_path, monkeypatch):
    """`#SBATCH --ntasks=4` and no srun: the command runs once."""
    for name, value in (("NTASKS", "4"), ("PROCID", "0"), ("LOCALID", "0"), ("NODEID", "0"), ("JOB_NAME", "train")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer = build_trainer(recorder_of(tmp_path), choose_devices(0, None, "32"), Console())
    assert trainer.world_size == 1


def test_advice_is_silenced_and_everything_is_as_before_afterwards():
    level, hook = logging.getLogger("pytorch_lightning").level, threading.excepthook
    with warnings.catch_warnings(record=True, action="always") as caught, quiet_lightning():
        warnings.warn("The dataloader does not have many workers which may be a bottleneck", stacklevel=1)
        warnings.warn("Grad strides do not match bucket view strides. This may indicate grad was not", stacklevel=1)
        warnings.warn("a warning of somebody else", stacklevel=1)
        assert not logging.getLogger("pytorch_lightning").isEnabledFor(logging.INFO)
    assert [str(warning.message) for warning in caught] == ["a warning of somebody else"]
    assert (logging.getLogger("pytorch_lightning").level, threading.excepthook) == (level, hook)

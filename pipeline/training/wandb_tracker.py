"""Follow a training in Weights & Biases: one run of a project, by default offline in files beside the run folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from pipeline.config.trackers import WandbOptions
from pipeline.console.text import printable
from pipeline.training.tracked_run import Ending, Remembered, TrackedRun, distinct

PATIENCE_S = 30.0
"""Seconds that a training waits for the server when the run is opened, and again when it ends."""

LONGEST_PROJECT = 128
"""Characters of a project's name."""


class WandbTracker:
    """A run in Weights & Biases, written by Lightning's WandbLogger."""

    def __init__(self, options: WandbOptions, run: TrackedRun) -> None:
        self._project = re.sub(r"[/\\#?%:]", "-", options.project or run.experiment)[:LONGEST_PROJECT]
        owner = f"{options.entity}/" if options.entity else ""
        self._is_offline = options.mode == "offline"
        folder = run.log_dir / "wandb"
        self.place = f"{folder} (offline)" if self._is_offline else f"the server, project {owner}{self._project}"
        self.remedy = f"see whether {folder} can be written to"
        if not self._is_offline:
            self.remedy = "log in with `wandb login`, see whether the server can be reached, or take its mode offline"
        self.run_id: str | None = None
        self._options = options
        self._logger: WandbLogger | None = None
        self._names: dict[str, str] = {}

    def open(self, run: TrackedRun, settings: Mapping[str, Any], before: Remembered | None, n_epochs: int) -> int:
        """Open the run of `before`, or a new one, with the settings as its config.

        Offline, the files of a resumed training are of the same run, and `wandb sync` joins them.
        """
        if self._is_offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # optional, and takes seconds: imported by those who asked for it

        if (
            not self._is_offline and wandb.run is None and not wandb.login(prompt=False)
        ):  # at a terminal, init would ask and wait
            raise PermissionError("no login is known here")
        self._names = distinct(run.metric_names, printable)
        run.log_dir.mkdir(parents=True, exist_ok=True)
        same = before if before is not None and before.place == self.place else None
        options = self._options
        opened = wandb.init(
            project=self._project,
            entity=options.entity or None,
            group=options.group or None,
            name=options.name or run.folder.name,
            tags=list(options.tags),
            dir=run.log_dir,
            id=same.run if same else None,
            resume="allow",
            mode=options.mode,
            reinit="create_new",  # a run that the user's own program has open is not ours
            settings=wandb.Settings(
                silent=True,
                console="off",  # else it takes over the output of this process
                disable_git=True,
                disable_code=True,
                init_timeout=PATIENCE_S,
                login_timeout=PATIENCE_S,
                finish_timeout=PATIENCE_S,
            ),
        )
        self.run_id = str(opened.id)
        opened.define_metric("trainer/global_step")
        opened.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._logger = WandbLogger(experiment=opened)
        self._logger.log_hyperparams(dict(settings))
        if same is None:
            return 0
        # Offline, a killed process leaves what did not fit into its last block unwritten: all epochs are written again.
        # A server says itself how many it has: each epoch is a step.
        n_written = same.epochs if same.is_closed else 0 if self._is_offline else int(opened.step)
        return min(n_written, same.epochs, n_epochs)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an epoch; Lightning calls its number trainer/global_step."""
        assert self._logger is not None
        self._logger.log_metrics(
            {"epoch": epoch} | {self._names[name]: value for name, value in numbers.items()}, epoch
        )

    def close(self, ending: Ending) -> None:
        """End the run, as failed unless the training has completed."""
        assert self._logger is not None
        self._logger.experiment.finish(exit_code=0 if ending == "completed" else 1)

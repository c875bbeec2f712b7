"""Follow a training in MLflow: one run of an experiment, by default in a database file beside the run folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger

from pipeline.config.trackers import MlflowOptions
from pipeline.training.tracked_run import Ending, Remembered, TrackedRun, distinct

LONGEST_NAME = 200
"""Characters of a metric's name; MLflow takes 250."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own patience, 7 repeats of 2 minutes, would hold up a training for as long.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
"""Set before MLflow is imported, unless the user has set them."""

_TALKATIVE = ("mlflow", "alembic", "sqlalchemy", "pytorch_lightning.loggers.mlflow")
"""Loggers that write a dozen lines for a new database, and tracebacks of errors that they raise as well."""

_STATUS = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """A run in MLflow, written by Lightning's MLFlowLogger."""

    def __init__(self, options: MlflowOptions, run: TrackedRun) -> None:
        database = (run.log_dir / "mlflow.db").absolute()
        self.place = options.tracking_uri or f"sqlite:///{database}"
        self.remedy = f"see whether {self.place} can be reached and written to"
        self.run_id: str | None = None
        self._options = options
        self._logger: MLFlowLogger | None = None
        self._names: dict[str, str] = {}

    def open(self, run: TrackedRun, settings: Mapping[str, Any], before: Remembered | None, n_epochs: int) -> int:
        """Open the run of `before`, or a new one where it is no longer there, with the settings as its parameters."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow  # noqa: F401  optional, and takes seconds: imported by those who asked for it

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if not self._options.tracking_uri:
            run.log_dir.mkdir(parents=True, exist_ok=True)
        self._names = distinct(run.metric_names, _metric_name)
        self._logger = self._continued(run, before) if before else None
        n_there = 0
        if self._logger is None:
            self._logger = self._begun(run)
        else:
            n_there = self._n_epochs(n_epochs)
        self.run_id = str(self._logger.run_id)
        client = self._logger.experiment
        known = client.get_run(self.run_id).data.params  # MLflow refuses a parameter that is given another value
        self._logger.log_hyperparams({name: value for name, value in settings.items() if name not in known})
        client.update_run(self.run_id, status="RUNNING")
        return n_there

    def _begun(self, run: TrackedRun) -> MLFlowLogger:
        options = self._options
        return MLFlowLogger(
            experiment_name=options.experiment_name or run.experiment,
            run_name=options.run_name or run.folder.name,
            tracking_uri=self.place,
            tags=dict(options.tags),
        )

    def _continued(self, run: TrackedRun, before: Remembered) -> MLFlowLogger | None:
        """The logger of an earlier run; None where it is not there (any more), as in another database."""
        from mlflow.exceptions import MlflowException

        logger = MLFlowLogger(tracking_uri=self.place, run_id=before.run)
        try:
            found = logger.experiment.get_run(before.run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return logger if found.info.lifecycle_stage == "active" else None

    def _n_epochs(self, most: int) -> int:
        """How many epochs the run has: one may have come after a kill, or after a server was no longer waited for."""
        assert self._logger is not None
        known = self._logger.experiment.get_metric_history(self._logger.run_id, self._names["learning_rate"])
        return min(most, 1 + max((metric.step for metric in known), default=-1))

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an epoch as metrics, the epoch as their step."""
        assert self._logger is not None
        self._logger.log_metrics({self._names[name]: value for name, value in numbers.items()}, epoch)

    def close(self, ending: Ending) -> None:
        """Set the run's status."""
        assert self._logger is not None
        self._logger.finalize(_STATUS[ending])


def _metric_name(name: str) -> str:
    """Replace what MLflow does not take: other letters than ASCII's, and a class that reads as a part of a path."""
    head, slash, last = name.partition("/")
    last = re.sub(r"[^A-Za-z0-9_. -]", "_", last)
    if slash and not last.strip("."):
        last = "_"
    return f"{head}{slash}{last}"[:LONGEST_NAME]

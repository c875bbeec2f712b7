"""Trackers by name or with options, as config files and flags give them."""

from __future__ import annotations

import re

import pytest

from pipeline.config.files import to_yaml
from pipeline.config.settings import ConfigError, ExperimentConfig
from pipeline.config.trackers import CsvOptions, MlflowOptions, WandbOptions, read_trackers
from tests.support.settings import settings

IN_YAML = """
data: {dataset_root: d}
experiment:
  logger: [csv, {mlflow: {tracking_uri: "http://host:5000", tags: {site: north}}}, wandb: {project: spine, tags: [a]}]
"""


def test_flags_and_files_name_trackers_with_their_options_and_read_back_the_same(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(IN_YAML)
    config = settings("--config", str(path))
    assert read_trackers(config.experiment.logger) == {
        "csv": CsvOptions(),
        "mlflow": MlflowOptions(tracking_uri="http://host:5000", tags={"site": "north"}),
        "wandb": WandbOptions(project="spine", tags=["a"]),
    }
    path.write_text(to_yaml(config))
    assert settings("--config", str(path)) == config
    options = '{"mlflow": {"tracking_uri": "http://host:5000"}}'
    flags = settings("--dataset_root", "d", "--experiment.logger", "csv", options)
    assert list(read_trackers(flags.experiment.logger).values()) == [
        CsvOptions(),
        MlflowOptions(tracking_uri="http://host:5000"),
    ]
    assert settings("--dataset_root", "d").experiment.logger == ()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["csv", "csv"], "csv is named twice"),
        ([{"comet": {}}], "unknown tracker 'comet'; known are csv, mlflow, wandb"),
        ([{"csv": {"path": "x"}}], "csv: unknown option 'path'; known are none"),
        ([{"mlflow": {"uri": "x"}}], "mlflow: unknown option 'uri'; known are tracking_uri, experiment_name"),
        ([{"mlflow": {"tags": ["a"]}}], "mlflow: tags: expected a mapping of texts to texts, found ['a']"),
        ([{"mlflow": "here"}], "mlflow: expected options as in {name: value}, found 'here'"),
        ([{"wandb": {"mode": "dryrun"}}], "wandb: mode: expected one of offline, online, found 'dryrun'"),
        ([{"wandb": {"project": 5}}], "wandb: project: expected a text, found 5"),
        ([{"wandb": {"tags": "a"}}], "wandb: tags: expected a list of texts, found 'a'"),
        ([{"csv": None, "mlflow": None}], "expected a tracker's name, or its name and its options"),
        ([{"mlflow": {"tracking_uri": "https://me:secret@host"}}], "MLFLOW_TRACKING_PASSWORD in the environment"),
    ],
)
def test_a_wrong_entry_is_named_in_one_line(entries, words):
    with pytest.raises(ConfigError, match=rf"^experiment\.logger: .*{re.escape(words)}") as error:
        ExperimentConfig(logger=tuple(entries))
    assert "secret" not in str(error.value)


def test_an_unknown_name_gets_the_list_of_the_known_ones():
    with pytest.raises(ConfigError, match=r"expected one of csv, mlflow, wandb, found 'tensorbord'"):
        settings("--dataset_root", "d", "--experiment.logger", "tensorbord")

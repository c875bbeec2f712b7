"""Every fold that is kept and scored was trained with the settings of the study, whoever trained it."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline import cross_validate as command
from pipeline.cli.main import main
from tests.support.tiny_study import study_command, study_data
from tests.support.tiny_training import strict_json


@pytest.mark.fault(
    "a finished fold of other settings in a cross-validation: copied from another one, or study.json lost since",
    "refused before anything is trained or scored: the fold and every setting that differs, exit 2",
)
def test_finished_folds_of_other_settings_are_refused_by_name(tmp_path, capsys, monkeypatch):
    study_data(tmp_path)
    ours = {"max_epochs": "1"}
    assert main(study_command(tmp_path, **ours)) == 0
    study = tmp_path / "logs" / "study"
    capsys.readouterr()

    (study / "study.json").unlink()
    assert main(study_command(tmp_path, "study", **ours, weight_decay="0.1")) == 2
    (run_0, run_1) = sorted(study.glob("fold_*"))
    words = "bodyseg: fold {} in {} was trained with other settings: training.weight_decay {}, now {};"
    assert words.format(0, run_0, "0.0", "0.1") in capsys.readouterr().err
    assert not (study / "study.json").exists(), "the right settings are welcome"
    elsewhere = {"data.cache_dir": str(tmp_path / "other"), "n_gpus": "null", "num_workers": "1"}
    assert main(study_command(tmp_path, "study", "--json", **ours, **elsewhere)) == 0  # as on another machine
    assert json.loads(capsys.readouterr().out)["is_finished"]

    other = shutil.copytree(run_1, tmp_path / "other_study" / run_1.name)
    document = strict_json(other / "training_config.json")
    document["training"]["weight_decay"] = 0.1
    (other / "training_config.json").write_text(json.dumps(document))
    scored = (study / "metrics.json").stat().st_mtime_ns
    for brought in ("before", "meanwhile"):
        shutil.rmtree(run_1)
        if brought == "before":
            shutil.copytree(other, run_1)
        else:
            monkeypatch.setattr(command, "train", lambda *_, folder, **__: shutil.copytree(other, folder.path))
        assert main(study_command(tmp_path, **ours)) == 2
        assert words.format(1, run_1, "0.1", "0.0") in capsys.readouterr().err
        assert (study / "metrics.json").stat().st_mtime_ns == scored

"""The figure that the README promises for `make train`, held by training that very configuration."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.train import train
from tests.support.paths import ROOT
from tests.support.settings import settings as settings_from


def test_the_sample_configuration_reaches_the_promised_miou(tmp_path):
    promised = float(re.search(r"expect above\s+(0\.\d+)", (ROOT / "README.md").read_text(encoding="utf-8"))[1])
    write_dataset(tmp_path / "sample")
    shipped = settings_from("--config", str(ROOT / "configs" / "sample.yaml"))
    config = replace(
        shipped,
        experiment=replace(shipped.experiment, log_dir=str(tmp_path)),
        data=replace(shipped.data, dataset_root=str(tmp_path / "sample"), cache_dir=str(tmp_path / "cache")),
        training=replace(shipped.training, overlay_every=0),  # pictures change nothing, and take seconds
    )
    log = json.loads((train(config) / "training_log.json").read_text())
    assert log["best_metrics"]["best_val_mIoU"] > promised > 0.1

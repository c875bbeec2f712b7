"""Settings: frozen and checked."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.config.files import to_yaml
from tests.support.settings import settings


def test_a_config_cannot_be_changed_after_it_was_made():
    config = settings("--dataset_root", "d")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.lr = 1.0


def test_a_window_is_two_numbers_or_the_word_auto(tmp_path):
    assert settings("--dataset_root", "d").data.window == "auto"
    assert settings("--dataset_root", "d", "--data.window", "auto").data.window == "auto"
    assert settings("--dataset_root", "d", "--data.window", "-160", "240").data.window == (-160.0, 240.0)
    path = tmp_path / "c.yaml"
    for text, window in (("auto", "auto"), ("[-160, 240]", (-160.0, 240.0))):
        path.write_text(f"data: {{dataset_root: d, window: {text}}}")
        assert settings("--config", str(path)).data.window == window
        path.write_text(to_yaml(settings("--config", str(path))))
        assert settings("--config", str(path)).data.window == window
        assert settings("--config", str(path), "--data.window", "0", "80").data.window == (0.0, 80.0)

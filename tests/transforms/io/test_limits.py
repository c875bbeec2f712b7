"""Limits are the same for the settings and for the readers, and cost no import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.config.settings import ConfigError, DataConfig
from tests.support.paths import ROOT
from transforms.io.errors import VolumeError
from transforms.io.grid import check_shape
from transforms.io.limits import MAX_VOXELS


def test_settings_and_readers_refuse_the_same_size():
    side = round(MAX_VOXELS ** (1 / 3)) + 1
    with pytest.raises(ConfigError, match=str(MAX_VOXELS)):
        DataConfig(target_size=(side, side, side))
    with pytest.raises(VolumeError):
        check_shape((side, side, side), "x")


def test_the_settings_are_known_before_numpy_is_imported():
    code = "import sys, pipeline.config.settings\nassert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

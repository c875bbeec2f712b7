"""A run that all files here predict with."""

from __future__ import annotations

import pytest

from tests.support.tiny_prediction import run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("logs") / "run")

"""The workspace that tests of bad input spoil: made once, copied for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.hostile import make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a scan and a run; nobody changes it."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, as the working folder."""
    shutil.copytree(template, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"

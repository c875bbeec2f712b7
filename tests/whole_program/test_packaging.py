"""What an installation holds: every package, and the shipped configs."""

import tomllib
from pathlib import Path

from setuptools import find_packages

from tests.support.paths import ROOT

TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_installed():
    found = set(find_packages(str(ROOT), **TOOLS["packages"]["find"]))
    folders = {
        path.parent for top in ("pipeline", "transforms", "networks", "pasco") for path in (ROOT / top).rglob("*.py")
    }
    assert found == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_every_top_package_says_that_it_is_typed():
    assert "py.typed" in TOOLS["package-data"]["*"]
    for path in ROOT.glob("*/__init__.py"):
        if path.parent.name in {"pipeline", "transforms", "networks", "pasco"}:
            assert (path.parent / "py.typed").is_file()


def test_every_shipped_config_is_installed():
    installed = {
        path for patterns in TOOLS["data-files"].values() for pattern in patterns for path in ROOT.glob(pattern)
    }
    assert installed == set((ROOT / "configs").rglob("*.yaml"))


def test_no_package_is_hidden_from_git():
    ignored = [line.strip() for line in (ROOT / ".gitignore").read_text().splitlines()]
    assert not {f"{path.name}/" for path in Path(ROOT / "pipeline").iterdir()} & set(ignored)

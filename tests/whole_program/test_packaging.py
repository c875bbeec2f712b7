"""What an installation holds: every package, and the shipped configs."""

import shutil
import subprocess
import sys
import tomllib
import zipfile

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


def test_an_editable_installation_is_a_path_that_type_checkers_can_follow(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pipeline", "transforms", "networks", "pasco", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_editable; print(build_editable('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        assert wheel.read(path).decode().strip() == str(tmp_path)  # and no import hook, which mypy does not run


def test_every_shipped_config_is_installed():
    installed = {
        path for patterns in TOOLS["data-files"].values() for pattern in patterns for path in ROOT.glob(pattern)
    }
    assert installed == set((ROOT / "configs").rglob("*.yaml"))


def test_no_package_is_hidden_from_git():
    ignored = [line.strip() for line in (ROOT / ".gitignore").read_text().splitlines()]
    assert not {f"{path.parent.name}/" for path in ROOT.glob("pipeline/*/__init__.py")} & set(ignored)

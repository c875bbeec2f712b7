"""The command line: commands, one-line errors, exit codes, and a help that needs no torch."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import warnings

import pydicom
import pytest

from pipeline.cli.main import COMMANDS, main
from tests.support.paths import ROOT
from tests.support.small_disk import small_disk
from tests.support.volumes import write_series
from transforms.io.load import read_geometry


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_torch_and_explains_every_command(command):
    code = (
        "import sys\nfrom pipeline.cli.main import main\n"
        f"try:\n    main([{command!r}, '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert (COMMANDS[command].__doc__ or "").splitlines()[0] in " ".join(result.stdout.split())


def test_the_documented_script_and_the_module_are_the_same_command():
    outputs = [
        subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for command in (["train_body.py"], ["-m", "pipeline", "train"])
    ]
    assert outputs[0] == outputs[1]
    assert "--lr" in outputs[0]
    assert "Learning rate after warm-up" in outputs[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "unknown command 'trian'; did you mean train? known are train, check,"),
        (["train"], "--dataset_root DIR"),
        (["train", "--dataset_root", "nowhere"], "nowhere"),
        (["train", "--dataset_root", "x", "--lr", "fast"], "training.lr"),
        (["train", "--config", "missing.yaml"], "missing.yaml: there is no such file"),
        (["train", "--dataset_root", "x", "--exp_name", "../out"], "../out"),
        (["plot", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["plot", "l\udce4ufe"], "RUN: expected a name in the encoding utf-8, found bytes that are none; rename"),
        (["evaluate"], "--predictions DIR and --labels DIR"),
        (["predict", "nowhere", "scan.nii.gz", "--output", "out"], "nowhere"),
        (["sample"], "expected FOLDER; bodyseg sample --help"),
        (["predict"], "expected RUN INPUT and --output; bodyseg predict --help explains"),
        (["cache"], "expected info|prune"),
        (["cache", "prune"], "expected --max_gb GB, how much to keep; --max_gb 0 empties the folder"),
        (["cache", "prune", "--max_gb", "-1"], "--max_gb: expected a number of 0 or more, found -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bodyseg: ")]
    assert len(complaint) == 1
    assert words in complaint[0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("given", ["--version", "-V", "train --version", "predict --version", "cache prune --version"])
def test_the_version_is_that_of_the_package(given, capsys):
    assert main(given.split()) == 0
    assert capsys.readouterr().out == f"bodyseg {importlib.metadata.version('bodyseg')}\n"


@pytest.mark.fault(
    "a user without a passwd entry, as `docker run --user 12345` makes",
    "commands work",
)
def test_a_user_without_a_passwd_entry_can_run_what_needs_monai():
    """As that user where this one may become it and it may read Python and this folder; else getpwuid knows nobody."""
    user = {"user": 12345, "group": 12345, "extra_groups": []}
    code = (
        "import os, pwd\nfrom pipeline.cli.main import main\n"
        "def nobody(uid):\n    raise KeyError(f'getpwuid(): uid not found: {uid}')\n"
        "pwd.getpwuid = pwd.getpwuid if os.getuid() == 12345 else nobody\n"
        "assert main(['check', 'nowhere']) == 2\nimport matplotlib.font_manager, monai\n"
    )
    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"HOME": "/proc/nowhere"}
    how = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment}
    try:
        able = subprocess.run([sys.executable, "-c", "import pipeline"], check=False, **how, **user).returncode == 0
    except PermissionError:
        able = False
    done = subprocess.run([sys.executable, "-c", code], check=False, **how, **(user if able else {}))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # also not of where Matplotlib keeps its fonts


@pytest.mark.fault(
    "a full disk under `sample`, or under the temporary files of `check-geometry`", "one line, exit code 2"
)
def test_a_full_disk_is_said_in_one_line_by_every_command(tmp_path, monkeypatch, capsys):
    with small_disk(tmp_path / "disk", "16k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        for command in (["sample", str(disk / "sample")], ["check-geometry"]):
            assert main(command) == 2
            assert "cannot be written (No space left on device); free space" in capsys.readouterr().err


def test_a_path_without_permission_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/locked/scans")

    monkeypatch.setattr("pipeline.phantoms.sample_dataset.write_dataset", refuse)
    assert main(["sample", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said == "bodyseg: /locked/scans: cannot be accessed (Permission denied); check its permissions"


def test_every_error_of_ours_is_said_in_one_line_without_traceback():
    modules = [
        importlib.import_module(module.name)
        for package in map(importlib.import_module, ("pipeline", "transforms", "networks"))
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]
    errors = {
        cls
        for module in modules
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if name.endswith("Error") and cls.__module__.partition(".")[0] in ("pipeline", "transforms", "networks")
    }
    assert len(errors) > 12
    assert [cls.__qualname__ for cls in errors if not getattr(cls, "is_input_error", False)] == []


def test_an_error_that_nobody_expected_keeps_its_traceback(monkeypatch):
    def broken(arguments):
        raise ValueError("a fault of the program")

    monkeypatch.setitem(COMMANDS, "plot", broken)
    with pytest.raises(ValueError, match="a fault of the program"):
        main(["plot"])


def test_printed_settings_are_a_config(tmp_path, capsys):
    assert main(["train", "--dataset_root", "somewhere", "--lr", "3e-4", "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "c.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


def test_the_sample_command_writes_the_data_set_once(tmp_path, capsys):
    arguments = ["sample", str(tmp_path / "s"), "--n_cases", "2", "--voxel_mm", "20"]
    assert main(arguments) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*.gz")}
    assert len(before) == 4
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*.gz")} == before
    assert main(["check", str(tmp_path / "s"), "--no_measure"]) in (0, 1)
    assert "DATA SET: 2 cases" in capsys.readouterr().out


def test_waiting_threads_sleep_where_other_programs_keep_the_cores_busy():
    """OpenMP itself says what it understood when torch loads it."""
    code = (
        "import os\nos.getloadavg = lambda: (99.0 * os.cpu_count(),) * 3\n"
        "from pipeline.cli.main import main\nmain(['--version'])\nimport torch\n"
    )
    for given, understood in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")):
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"OMP_DISPLAY_ENV": "true"} | given,
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert f"OMP_WAIT_POLICY = '{understood}'" in result.stderr


def test_on_an_idle_machine_threads_wait_as_openmp_has_it(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert main(["--version"]) == 0
    assert "OMP_WAIT_POLICY" not in os.environ


def test_pydicom_does_not_speak_once_for_every_slice(tmp_path, capfd):
    """A series whose files name an unknown character set: 14 slices made 14 warnings and more."""
    write_series(tmp_path / "series", [0, 3, 6])
    for path in (tmp_path / "series").iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path)
            header.SpecificCharacterSet = "nonsense"
            header.save_as(path)
    main(["--version"])  # sets the log up
    read_geometry(tmp_path / "series")
    assert "pydicom" not in capfd.readouterr().err


@pytest.mark.fault("Ctrl-C while the program is still imported", "it ends at once, without a traceback")
@pytest.mark.parametrize("command", [["-m", "pipeline"], ["train_body.py"]])
def test_ctrl_c_during_the_first_imports_ends_without_a_traceback(tmp_path, command):
    (tmp_path / "jsonargparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, *command, "--help"], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == -signal.SIGINT
    assert result.stdout + result.stderr == ""

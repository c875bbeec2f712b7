"""What every test shares: one thread a worker, a fixed seed, where the real scans lie (if they do), and the gathering
of faults that tests injected."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

from tests.support import fault_table
from tests.support.fault_table import Fault
from tests.support.paths import ROOT, SHARED

# Without a GPU, kernels for one are run by Triton's interpreter; Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The shapes in these modules' annotations are executed by the tests of their packages: one that nothing checks becomes
# false in silence. Elsewhere they would take a third of the time.
_PURE = ("slabs", "warp", "separable", "resize", "restore", "intensity", "left_right", "patches")
# But for kernels: Triton would compile what checks their shapes.
_MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("pipeline/losses", "pipeline/metrics", "networks")
    for path in ROOT.joinpath(package).glob("*.py")
    if not path.stem.endswith("_gpu")
]
install_import_hook([*_MODULES, *(f"transforms.{module}" for module in _PURE)], "beartype.beartype")
_CHECKED = tuple(ROOT / "tests" / package for package in ("losses", "metrics", "networks", "transforms"))

pytest_plugins = ["pytester"]  # sessions inside a test: tests/whole_program/test_fault_table.py

RELIABILITY = ROOT / "docs" / "reliability.md"


# The last bits of a sum depend on the number of threads; several test processes share the machine.
torch.set_num_threads(1)
# Started by nohup or in the background of a script, this process ignores hangups or Ctrl-C, and so would every process
# that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _shapes_are_checked_where_they_are_tested(request):
    jaxtyping_config.update("jaxtyping_disable", not any(map(request.path.is_relative_to, _CHECKED)))


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test():
    """Python would wait at its end for one that a failed test has left standing still."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans, see its README; tests that need it skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"real scans are absent: {data} does not exist")
    return data


@pytest.fixture(scope="session")
def shared_spec() -> Path:
    """The folder of the run-folder contract and its checker."""
    spec = SHARED / "spec"
    if not spec.is_dir():
        pytest.skip(f"the run-folder contract is absent: {spec} does not exist")
    return spec


# What the tests marked as faults showed becomes the table of docs/reliability.md, and the table is held against them.
_FAULTS: list[Fault] = []
_DISAGREEMENTS: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-faults", action="store_true", help="Write the table of docs/reliability.md again.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_sample.py")  # by far the longest: the others run beside it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("fault"):
        injected, happened = mark.args
        # Properties travel with the report from an xdist worker to the process that sums up.
        item.user_properties.append(("fault", (injected, happened)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    file, line, _ = report.location
    for name, value in report.user_properties:
        if name == "fault":
            injected, happened = value
            _FAULTS.append(Fault(file, line or 0, str(injected), str(happened), report.outcome))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workerinput") or exitstatus != 0:
        return
    if session.config.getoption("--write-faults"):
        table = fault_table.replaced(RELIABILITY.read_text(encoding="utf-8"), _FAULTS)
        RELIABILITY.write_text(table, encoding="utf-8")
    elif _is_whole_suite(session.config):
        _DISAGREEMENTS.extend(fault_table.disagreements(RELIABILITY.read_text(encoding="utf-8"), _FAULTS))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if _DISAGREEMENTS else exitstatus


def _is_whole_suite(config: pytest.Config) -> bool:
    narrowed = any(config.getoption(name) for name in ("keyword", "markexpr", "deselect", "collectonly"))
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not narrowed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _DISAGREEMENTS:
        terminalreporter.section("The table of docs/reliability.md")
        for sentence in _DISAGREEMENTS:
            terminalreporter.write_line(sentence)

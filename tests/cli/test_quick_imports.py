"""Start-up of the commands: what MONAI imports without need is not imported, and still can be."""

import gc
import subprocess
import sys

import monai  # noqa: F401

from pipeline.cli.quick_imports import NOT_USED, quick_imports

COMMANDS = """
import gc, importlib, sys
from pipeline.cli.quick_imports import NOT_USED, quick_imports
with quick_imports():
    import pipeline.check, pipeline.predict, pipeline.report_page.report, pipeline.cache.folder
found = [name for name in NOT_USED if name in sys.modules]
assert not found, found
assert gc.isenabled() and gc.get_freeze_count() > 100_000
from monai.networks.nets import DynUNet, SwinUNETR
for name in {installed}:
    importlib.import_module(name)
"""


def test_commands_start_without_packages_that_they_do_not_use_and_that_can_be_imported_later():
    installed = [name for name in NOT_USED if name in ("matplotlib.pyplot", "scipy.signal", "torch.utils.tensorboard")]
    assert len(installed) == 3
    subprocess.run([sys.executable, "-c", COMMANDS.format(installed=installed)], check=True, timeout=300)


def test_where_monai_is_imported_already_nothing_is_changed():
    before = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before

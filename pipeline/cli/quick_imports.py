"""Import what a command computes with in half the time: without what MONAI merely looks for, and without collecting."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NOT_USED = ("jsonschema", "matplotlib.pyplot", "pandas", "scipy.signal", "skimage", "torch.utils.tensorboard")
"""Packages that MONAI imports where it finds them, for parts that no command calls: bundles, profiler, pictures,
ultrasound. They take longer than the rest of it (1.1 of 2.0 s). What of ours needs one imports it afterwards."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import MONAI as if `NOT_USED` were not installed, then whatever the block imports, with the collector off.

    Imports make half a million objects that all stay; the collector would go through them again and again meanwhile (a
    quarter of the time) and once more when the process ends, so it is told to leave them alone. Only for processes of
    the command line: who imports our packages gets MONAI as it is; where MONAI is imported already, nothing is done.
    """
    if "monai" in sys.modules:
        yield
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        _import_monai()
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def _import_monai() -> None:
    hidden = [name for name in NOT_USED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own word for what cannot be imported
    try:
        import monai.data
        import monai.transforms  # noqa: F401
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                del sys.modules[name]

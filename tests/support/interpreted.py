"""GPU kernels of ours, run on a CPU by Triton's interpreter."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch


def interpreted(name: str) -> ModuleType:
    """Import a module of kernels, which `conftest.py` has Triton's interpreter run. Skips the test where there is no
    Triton, or a GPU: there `test_cuda.py` runs the kernels themselves."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: test_cuda.py runs the kernels")
    return importlib.import_module(name)

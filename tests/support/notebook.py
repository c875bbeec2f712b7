"""What a program finds that runs in a cell of a notebook."""

from __future__ import annotations

import builtins

import pytest


class ZMQInteractiveShell:
    """By the name of its class, rich and others know Jupyter's shell."""


def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like the kernel of a notebook to libraries that ask."""
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)

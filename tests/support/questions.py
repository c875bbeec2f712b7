"""Count what the system is asked: on a network disk each question takes a millisecond, whatever its answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

QUESTIONS = ("stat", "lstat", "scandir", "listdir", "open")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count calls of the module os by name while the block runs."""
    asked: Counter[str] = Counter()

    def counting(name: str) -> Any:
        original = getattr(os, name)
        return lambda *arguments, **options: (asked.update([name]), original(*arguments, **options))[1]

    with pytest.MonkeyPatch.context() as patched:
        for name in QUESTIONS:
            patched.setattr(os, name, counting(name))
        yield asked

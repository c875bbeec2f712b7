"""What a person sees while something takes long: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

import rich.progress
from rich.console import Console

from pipeline.console.terminal import standard_error
from pipeline.console.text import printable

_LINES_EVERY_S = 10.0
"""Seconds between two plain lines: enough to see that it lives, few enough for a log file."""


class Progress(Protocol):
    """What a function calls that takes long, from its own thread, each time that one more step is done.

    `Bar.update` is one; so is any function with these parameters.
    """

    def __call__(self, done: int, total: int, what: str = "", note: str = "") -> None:
        """Report that `done` of `total` steps of `what` ("hashing sources") are done; `note` is about the last one."""


@contextmanager
def one_step(progress: Progress | None, what: str) -> Iterator[None]:
    """Report what is done in a single step before and after it; an error inside leaves it unfinished."""
    if progress:
        progress(0, 1, what)
    yield
    if progress:
        progress(1, 1, what)


class Bar:
    """Count steps of one long thing; use as a context manager.

    Args:
        title: what is being done.
        console: where to; a terminal gets a bar, anything else a line now and then.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or standard_error()
        self._bar: rich.progress.Progress | None = None
        self._last_line = time.monotonic()
        self._count = ""
        self._lock = threading.Lock()

    def __enter__(self) -> Bar:
        if self.console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(bar_width=10),  # narrow: the note must fit beside it into 80 columns
                rich.progress.TextColumn("{task.fields[count]}", markup=False),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
            )
            self._bar.start()
            self._bar.add_task(self.title, total=None, note="", count="")
        return self

    def update(self, done: int, total: int, what: str = "", note: str = "") -> None:
        """Show that `done` of `total` steps are finished; a `Progress`. `what` replaces the title from now on."""
        self.title = printable(what) or self.title
        note = printable(note)
        self._count = f"{done}/{total}"
        if self._bar is not None:
            task = self._bar.tasks[0].id
            self._bar.update(task, completed=done, total=total, description=self.title, note=note, count=self._count)
        else:
            self._line(note, now=done == total)

    def update_part(self, what: str, share: float) -> None:
        """Show how much of the step in progress is done: its name, and 0 to 1; a second bar below the first.

        May be called from several threads; of one step the largest share counts.
        """
        what = printable(what)
        with self._lock:
            if self._bar is None:
                self._line(f"{what}: {share:.0%}")
                return
            if len(self._bar.tasks) < 2:
                self._bar.add_task(what, total=1.0, note="", count="")
            part = self._bar.tasks[1]
            if part.description != what or share > part.completed:
                self._bar.update(part.id, completed=share, description=what, count=f"{share:.0%}")

    def _line(self, note: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._last_line > _LINES_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(f"{self.title}: {self._count} {note}".rstrip(), highlight=False, markup=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C or another signal: how far it came is for the last line
            error.add_note(f"{self.title}: {self._count or 'nothing'} done")
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


CaseProgress = Callable[[str, float], None]
"""Called with a case's id and how much of it is done, 0 to 1; from several threads."""

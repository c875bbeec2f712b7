"""console.log of a run folder: what a training printed, as plain text, for whoever looks after the terminal is gone."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.console.terminal import PlainFormatter
from pipeline.console.text import one_line, printable
from pipeline.files.atomic import FileError, write_atomically
from pipeline.files.json_files import now

MOST_BYTES = 1_000_000
"""Where the file grows beyond it, its older half is left out: 8000 epochs fit."""

_LEFT_OUT = "(earlier lines were left out)\n"


class ConsoleLog:
    """Lines of one training, kept in memory until its folder is ready, then appended to the file one by one.

    What the disk refuses is lost: no training ends for the sake of this file.

    Args:
        path: the file; None: nothing is kept, as in all but the first process of a training.
        most_bytes: largest size of the file.
    """

    def __init__(self, path: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self._waiting: list[str] | None = []
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Keep a line; a logging message of several lines stays one message."""
        text = "".join(f"{printable(part)}\n" for part in text.split("\n"))
        if self.path is None:
            return
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(text)
            else:
                self._append(text)

    def beside(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """A function that says a line and keeps it."""

        def both(line: str) -> None:
            say(line)
            self.line(line)

        return both

    def begin(self) -> None:
        """Write what was kept so far below what an earlier start of the run left; the folder is there."""
        with self._lock:
            if self.path is None or self._waiting is None:
                return
            waiting, self._waiting = self._waiting, None
            self._append(f"{now()}\n{''.join(waiting)}")

    def _append(self, text: str) -> None:
        assert self.path is not None
        with contextlib.suppress(OSError, FileError), self.path.open("a+b") as file:
            size = file.seek(0, 2)
            if size:
                file.seek(-1, 2)
                text = text if file.read() == b"\n" else f"\n{text}"  # a kill left half a line
            new = text.encode("utf-8", errors="replace")
            if size + len(new) <= self.most_bytes:
                file.write(new)
                return
            file.seek(max(0, size - self.most_bytes // 2))
            _, _, kept = (file.read() + new)[-self.most_bytes // 2 :].partition(b"\n")
            write_atomically(self.path, lambda whole: whole.write(_LEFT_OUT.encode() + kept))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep warnings and errors that modules log inside, and the reason for which the training ends early."""
        handler = _Handler(self)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        except BaseException as error:
            self.line(f"The training ended early: {one_line(error) or type(error).__name__}")
            raise
        finally:
            root.removeHandler(handler)


class _Handler(logging.Handler):
    """Gives what is logged to a ConsoleLog, as it is printed on standard error."""

    def __init__(self, log: ConsoleLog) -> None:
        super().__init__(logging.WARNING)
        self.log = log
        self.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.log.line(self.format(record))

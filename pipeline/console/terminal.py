"""One way to the terminal: output that cannot be written, or not in the stream's encoding, never ends the program."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from rich.console import Console

from pipeline.console.text import printable


class _Nowhere(io.TextIOBase):
    """What is written here goes nowhere."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


class LastingStream:
    """A text stream that goes quiet where its file, pipe or terminal is gone, and remembers why in `error`.

    What the encoding cannot say is written as an escape. A stream of None, as of a closed descriptor, is quiet from the
    beginning.
    """

    def __init__(self, stream: TextIO | None, *, plain: bool = False) -> None:
        """`plain` replaces what could steer a terminal: for text that never holds colours or bars."""
        self.stream: Any = _Nowhere() if stream is None else stream
        self.plain = plain
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, and say that all was written, whatever became of it."""
        shown = "\n".join(map(printable, text.split("\n"))) if self.plain else text
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = shown.encode(encoding, errors="backslashreplace").decode(encoding)
        with self._lasting():
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Flush, where there still is something to flush to."""
        with self._lasting():
            self.stream.flush()

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            if self.error is not None:
                return
            self.error = error if isinstance(error, OSError) else OSError(str(error))
            # what the interpreter still flushes at its end goes nowhere, too
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


def lasting(stream: TextIO | None) -> TextIO:
    """Return the stream as a `LastingStream`, once."""
    if isinstance(stream, LastingStream):
        return cast(TextIO, stream)
    return cast(TextIO, LastingStream(stream))


@contextlib.contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """Let standard output (without control characters) and standard error last; gives standard output."""
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    out = LastingStream(sys.stdout, plain=True)
    sys.stdout, sys.stderr = cast(TextIO, out), lasting(sys.stderr)
    try:
        yield out
        out.flush()
    finally:
        sys.stdout, sys.stderr = before


def _fill_closed_descriptors() -> None:
    """Open what `<&-`, `>&-` or `2>&-` closed, else the next file would get its number and what is written to it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def screen_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that a stream (None: standard output) goes to; None where it goes elsewhere."""
    stream = sys.stdout if stream is None else stream
    try:
        if not stream.isatty():
            return None
        wished = os.environ.get("COLUMNS", "")
        return (
            int(wished) if wished.isdecimal() and int(wished) else os.get_terminal_size(stream.fileno()).columns or None
        )
    except (AttributeError, OSError, ValueError):  # no stream at all, a closed one, or one that says no width
        return None


def standard_error() -> Console:
    """A rich console on standard error that lasts; no terminal in a notebook, whose cells keep every state of a bar."""
    console = Console(file=lasting(sys.stderr))
    if console.is_jupyter:
        return Console(file=lasting(sys.stderr), force_jupyter=False, force_terminal=False)
    return console


class PlainFormatter(logging.Formatter):
    """A log line without what could steer a terminal; names in it come from files."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record; its own line breaks, as of a traceback, stay."""
        return "\n".join(map(printable, super().format(record).split("\n")))

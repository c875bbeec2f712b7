"""Mutate bytes and JSON documents at random, and run what reads them within limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from pipeline.cli.main import is_input_error

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,  # the timer below ends what hangs
    phases=[Phase.generate] if not EXAMPLES else [Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
SECONDS = 20.0
GIGABYTES = 2


class Hang(BaseException):
    """More than SECONDS of computing for one small file."""


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Run with a limit on the time of this process's cores and with 2 GB of address space beyond what is in use."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, ring)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


ODD_WORDS = st.sampled_from(
    [
        b"0",
        b"-1",
        b"nan",
        b"inf",
        b"1e400",
        b"99999999999",
        b"2147483648",
        b"",
        b" ",
        b"\n",
        b"..",
        b"/etc/passwd",
        b"%d",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes, header: int) -> bytes:
    """Bytes changed, put in, taken out or replaced by odd words, mostly in the first `header` bytes."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(header, len(content)) - 1)))
        kind = draw(st.sampled_from(["change", "change", "insert", "remove", "word", "cut"]))
        if kind == "change":
            content[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 16))]
        elif kind == "word":
            content[at : at + draw(st.integers(0, 6))] = draw(ODD_WORDS)
        else:
            del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["..", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "__import__('os')", "🫀"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document in which one or two values, somewhere, are others or gone."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        holder, key = document, None
        while isinstance(holder, dict | list) and holder:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
            if not isinstance(holder[key], dict | list) or not holder[key] or draw(st.integers(0, 3)) == 0:
                break
            holder = holder[key]
        if key is None:
            return draw(VALUES)
        if draw(st.integers(0, 4)) == 0:
            del holder[key]
        else:
            holder[key] = draw(VALUES)
    return document


def expected_or(act: Callable[[], object]) -> None:
    """Run; an error that the command line does not expect is a fault."""
    with within_limits():
        try:
            act()
        except Exception as error:
            if not is_input_error(error):
                raise

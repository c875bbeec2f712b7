"""The terminal: it may be full, gone, closed or unable to say a character, and the work goes on."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pipeline.cli.arguments import complain, say
from pipeline.cli.main import main
from pipeline.console.progress import Bar
from pipeline.console.terminal import (
    LastingStream,
    PlainFormatter,
    lasting,
    lasting_output,
    screen_width,
    standard_error,
)
from tests.support.notebook import in_a_notebook
from tests.support.paths import ROOT


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def closed_terminal():
    master, slave = pty.openpty()
    os.close(master)
    return os.fdopen(slave, "w")


def full_disk():
    return Path("/dev/full").open("w")


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("broken", [closed_pipe, closed_terminal, closed_stream, full_disk])
def test_a_stream_that_breaks_goes_quiet_and_says_why(broken):
    stream = LastingStream(broken())
    for _ in range(3):
        assert stream.write("a line\n") == 7
        stream.flush()
    assert isinstance(stream.error, OSError)
    stream.close()


def test_no_stream_at_all_is_quiet_from_the_beginning():
    stream = lasting(None)
    print("a line", file=stream, flush=True)
    assert not stream.isatty()
    assert lasting(stream) is stream


def test_what_an_encoding_cannot_say_is_written_as_an_escape():
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding="ascii"))
    print("größte 肝臓 \udcff", file=stream, flush=True)
    assert raw.getvalue() == b"gr\\xf6\\xdfte \\u809d\\u81d3 \\udcff\n"


def test_plain_output_keeps_its_lines_and_nothing_that_steers(capsys):
    with lasting_output():
        print("a\x1b[2J\nb\u202ec")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[2J\nb\N{REPLACEMENT CHARACTER}c\n"


def test_a_bar_goes_on_without_its_terminal(monkeypatch):
    terminal = closed_terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bar("Working", standard_error()) as bar:
        for done in range(1, 4):
            bar.update(done, 3)
    terminal.close()


def test_progress_in_a_notebook_is_plain_lines(monkeypatch, capsys):
    in_a_notebook(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # as a kernel's standard error says
    with Bar("Working", standard_error()) as bar:
        bar.update(3, 3)
    assert capsys.readouterr().err == "Working: 3/3\n"


@contextlib.contextmanager
def narrow_terminal(monkeypatch):
    """Standard output and error on a terminal of 60 columns; gives a function that says what it received."""
    monkeypatch.delenv("COLUMNS", raising=False)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    stream = os.fdopen(slave, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)

    def shown(n_lines):
        stream.flush()
        received = b""
        while received.count(b"\n") < n_lines:
            received += os.read(master, 65536)
        return received.decode().replace("\r\n", "\n").splitlines()

    try:
        yield shown
    finally:
        monkeypatch.undo()
        stream.close()
        os.close(master)


def test_what_is_said_on_a_terminal_goes_on_between_words(monkeypatch):
    line = "Warning: of class adrenal_gland_left, which 6 cases hold, nothing is left; raise --target_size"
    with narrow_terminal(monkeypatch) as shown:
        width = screen_width()
        say(line)
        complain(line)
        first, second, third, fourth = shown(4)
    assert width == 60
    assert f"{first} {second}" == line
    assert f"{third} {fourth}" == f"bodyseg: {line}"
    assert max(map(len, (first, second, third, fourth))) <= 60


def test_no_stream_and_a_file_have_no_width(tmp_path, monkeypatch):
    with (tmp_path / "file").open("w") as file:
        assert screen_width(file) is None
    assert screen_width(file) is None  # closed
    monkeypatch.setattr(sys, "stdout", None)
    assert screen_width() is None


def test_log_lines_steer_nothing():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "class %s", ("a\x1b[31m",), None)
    assert PlainFormatter("%(message)s").format(record) == "class a\N{REPLACEMENT CHARACTER}[31m"


def run(arguments: str, **options) -> subprocess.CompletedProcess:
    command = f"exec {sys.executable} -m pipeline {arguments}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, **options)


@pytest.mark.fault(
    "standard output or error that is full or closed",
    "commands end as they would, without a traceback; lost results are said, exit 2",
)
@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">/dev/full", 2, "bodyseg: standard output cannot be written (No space left on device); redirect it"),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>&1", 2, ""),
        (">/dev/full 2>&-", 2, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_a_command_whose_output_is_lost_says_so_and_has_no_traceback(redirection, code, words):
    done = run(f"train --dataset_root x --print_config {redirection}")
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_help_that_is_lost_is_said(monkeypatch, capsys):
    full = full_disk()
    monkeypatch.setattr(sys, "stdout", full)
    assert main(["compare", "--help"]) == 2
    assert "standard output cannot be written (No space left on device)" in capsys.readouterr().err
    full.close()


@pytest.mark.fault(
    "names that the encoding of the output cannot write",
    "written as escapes; exit 0",
)
def test_a_name_that_the_encoding_lacks_ends_nothing(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run(f"train --dataset_root größte --print_config --log_dir {tmp_path}", env=environment)
    assert done.returncode == 0
    assert "gr\\xf6\\xdfte" in done.stdout


@pytest.mark.fault(
    "control characters and marks that reorder text, in what is printed",
    "replaced: nothing steers the terminal",
)
def test_a_path_in_an_error_steers_nothing(capsys):
    assert main(["compare", "no\x1b[2Jwhere\u202e"]) == 2
    error = capsys.readouterr().err
    assert "no\N{REPLACEMENT CHARACTER}[2Jwhere\N{REPLACEMENT CHARACTER}" in error
    assert "\x1b" not in error

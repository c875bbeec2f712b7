"""A process that is killed while it writes a file."""

from __future__ import annotations

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.files.atomic import write_atomically
def die(stream):
    stream.write(b"half of the new weig")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), die)
"""
"""Its program; the argument is the file's path."""

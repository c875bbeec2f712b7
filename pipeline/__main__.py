"""`python -m pipeline COMMAND …` is `bodyseg COMMAND …`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Import the command line and run a command; until it is imported, Ctrl-C ends the process without a traceback.

    Args:
        arguments: command and flags; None: the process's own.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.cli.main import main as run  # a third of a second

    signal.signal(signal.SIGINT, handler)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())

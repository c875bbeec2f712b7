"""The error that every module of this package raises for what a user can mend."""

from __future__ import annotations


class NetworkError(ValueError):
    """A network's name, arguments, outputs or checkpoint are wrong; one line: where, expected, found, what to do."""

    is_input_error = True

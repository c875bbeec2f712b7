"""The error that a data set which cannot be used is refused with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pipeline.console.text import first_lines
from transforms.io.errors import InputError

_LINES = 20
"""Faults that are written out, before the rest is only counted."""


class DatasetError(InputError):
    """A data set that cannot be used as it lies: kind, where, expected, found, remedy, case, as `InputError` has them.

    `lines` has one line a fault; `parts` an error a fault, several where `all_of` joined them.
    """

    def __init__(self, kind: str, where: object, expected: str, found: str, remedy: str, case: str = "") -> None:
        super().__init__(kind, where, expected, found, remedy, case)
        self.parts: tuple[DatasetError, ...] = (self,)

    @classmethod
    def all_of(cls, errors: Sequence[DatasetError]) -> Self:
        """Return one error for all of these (at least one), in their order."""
        parts = tuple(part for error in errors for part in error.parts)
        joined = cls(*parts[0].args)
        joined.parts = parts
        return joined

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each fault, not more than fill a screen, and how many others there are."""
        lines = [InputError.__str__(part) for part in self.parts]
        return tuple(first_lines(lines, "and {} more; bodyseg check --json lists all", _LINES))

    def __str__(self) -> str:
        """All lines."""
        return "\n".join(self.lines)

"""Errors about a user's files that carry what was expected, what was found and what to do as fields.

The program decides by `kind`, never by the words of a message.
"""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used. `str(error)` writes the fields as one line.

    Attributes:
        kind: one word for programs, the same for the same fault ("no_orientation", "missing_file", …).
        where: the file, folder or setting.
        expected: what it should have been or held.
        found: what it is or holds instead.
        remedy: what to do.
        case: the id of the case; empty where no single case is concerned.

    Example:
        >>> error = InputError("not_3d", "scan.nii", "one volume", "4 frames", "save each by itself", "liver_07")
        >>> print(error)
        case liver_07: scan.nii: expected one volume, found 4 frames; save each by itself
    """

    is_input_error = True

    def __init__(self, kind: str, where: object, expected: str, found: str, remedy: str, case: str = "") -> None:
        super().__init__(kind, str(where), expected, found, remedy, case)  # all of them, so that the error pickles
        self.kind = kind
        self.where = str(where)
        self.expected = expected
        self.found = found
        self.remedy = remedy
        self.case = case

    def __str__(self) -> str:
        """The error as one line."""
        return sentence(self.case, self.where, self.expected, self.found, self.remedy)


def sentence(case: str, where: str, expected: str, found: str, remedy: str) -> str:
    """Write "case CASE: WHERE: expected EXPECTED, found FOUND; REMEDY"; an empty case or place is left out."""
    place = ": ".join(part for part in (case and f"case {case}", where) if part)
    return f"{place + ': ' if place else ''}expected {expected}, found {found}; {remedy}"


class VolumeError(InputError):
    """A volume that cannot be used: a file that cannot be read, a header that cannot be true, values that cannot be."""

    def of_case(self, case: str) -> VolumeError:
        """Return the same error with the case named."""
        return VolumeError(self.kind, self.where, self.expected, self.found, self.remedy, case)

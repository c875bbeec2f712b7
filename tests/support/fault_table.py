"""The table "fault injected, what happened" of docs/reliability.md: drawn from tests, and held against them.

A test carries `@pytest.mark.fault(INJECTED, HAPPENED)`; `conftest.py` gathers how those tests went. Knows no pytest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

START = "<!-- faults: written by `make faults` from the tests that passed; do not edit -->"
END = "<!-- end of faults -->"
_HEAD = ("| fault injected | what happened | shown by |", "| --- | --- | --- |")


@dataclass(frozen=True, order=True)
class Fault:
    """One run of one test: where it stands, what it injected, what it proves to happen, and how it ended.

    `outcome` is "passed", "failed" or "skipped".
    """

    file: str
    line: int
    injected: str
    happened: str
    outcome: str

    @property
    def row(self) -> str:
        """Its line in the table."""
        cells = (self.injected, self.happened, f"`{self.file}`")
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows(faults: Iterable[Fault]) -> list[str]:
    """Return one line a fault, in the order of the test files, where a run of its tests passed and none failed."""
    faults = sorted(faults)
    failed = {fault.row for fault in faults if fault.outcome == "failed"}
    return list(dict.fromkeys(f.row for f in faults if f.outcome == "passed" and f.row not in failed))


def table(faults: Iterable[Fault]) -> str:
    """Return the table with its two marks."""
    return "\n".join((START, "", *_HEAD, *rows(faults), "", END))


def replaced(readme: str, faults: Iterable[Fault]) -> str:
    """Return the page's text with a new table. Raises ValueError where its two marks are missing."""
    before, after = _around(readme)
    return before + table(faults) + after


def disagreements(readme: str, faults: Iterable[Fault]) -> list[str]:
    """Return a sentence for every claim without a passing test, and for every passing test without a claim.

    A claim whose tests were skipped on this machine stands.
    """
    faults = list(faults)
    before, after = _around(readme)
    said = readme[len(before) : len(readme) - len(after)].splitlines()
    claims = [line for line in said if line.startswith("| ") and line not in _HEAD]
    shown, skipped = rows(faults), {fault.row for fault in faults if fault.outcome == "skipped"}
    unproved = [row for row in claims if row not in shown and row not in skipped]
    unsaid = [row for row in shown if row not in claims]
    return [f"The table claims what no passing test shows: {row}" for row in unproved] + [
        f"The table lacks what a test shows (run `make faults`): {row}" for row in unsaid
    ]


def _around(readme: str) -> tuple[str, str]:
    """Return what stands before and after the table."""
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise ValueError(f"expected the lines {START!r} and {END!r} once each in the page")
    return readme[: readme.index(START)], readme[readme.index(END) + len(END) :]

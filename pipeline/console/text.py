"""Text for people: numbers, sizes, short lists and tables; nothing in it can steer a terminal."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

BYTES_PER_GB = 10**9
"""One GB wherever a size is printed or asked for (`--max_gb`, data.cache_limit_gb), as disks and `df -H` count."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that reorder text (Unicode Annex 9), line separators and halves of surrogate pairs."""


def one_line(text: object, most: int | None = None) -> str:
    """Write a text, or what an error says, in one line of at most so many characters.

    >>> one_line("no space\\n   left on device", most=13)
    'no space left'
    """
    return " ".join(str(text).split())[:most]


def words(text: str) -> list[str]:
    """Words between commas; none for an empty text.

    >>> words("liver, spleen,")
    ['liver', 'spleen']
    """
    return [word.strip() for word in text.split(",") if word.strip()]


def number(value: float, digits: int = 4) -> str:
    """Write a number for a table, nothing for NaN.

    >>> number(0.75), number(float("nan"))
    ('0.7500', '')
    """
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def decimals(values: Iterable[float]) -> int:
    """How many decimals give the largest of some numbers three digits: at least 2, at most 6.

    >>> decimals([12.5, 0.3]), decimals([0.0042, float("nan")])
    (2, 5)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(2, 2 - math.floor(math.log10(largest)))) if largest > 0 else 2


def four_digits(value: float) -> str:
    """Write a number with four digits, or all of its whole ones, never as a power of ten.

    >>> four_digits(14238.4), four_digits(3.14159), four_digits(0.00012)
    ('14238', '3.142', '0.00012')
    """
    if not math.isfinite(value) or not value:
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def volume_unit(volumes_ml: Iterable[float]) -> tuple[str, float]:
    """The unit in which some volumes are best read, and how many of it are a ml; a µl is a mm³.

    >>> volume_unit([1534.2, 0.3]), volume_unit([0.45, 0.0004])
    (('ml', 1.0), ('µl', 1000.0))
    """
    largest = max((abs(volume) for volume in volumes_ml if math.isfinite(volume)), default=0.0)
    return ("µl", 1000.0) if 0 < largest < 1 else ("ml", 1.0)


def gigabytes(n_bytes: float, digits: int = 2) -> str:
    """Write a size in GB of 10**9 bytes, a small one in MB.

    >>> gigabytes(1_234_000_000), gigabytes(1_234_000)
    ('1.23 GB', '1.2 MB')
    """
    if 0 < n_bytes < BYTES_PER_GB / 100:
        return f"{n_bytes / 10**6:.1f} MB"
    return f"{n_bytes / BYTES_PER_GB:.{digits}f} GB"


def some_of(names: Iterable[object], most: int = 12) -> str:
    """Write the first `most` names and how many are left.

    >>> some_of(["liver", "spleen", "aorta", "heart"], most=2)
    'liver, spleen and 2 more'
    """
    texts = [str(name) for name in names]
    left = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {left} more" if left > 0 else "")


def shortened(name: str, most: int) -> str:
    """Cut a longer name in its middle: names differ in their beginnings and in their ends.

    >>> shortened("lung_upper_lobe_left", 10)
    'lung…_left'
    """
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def shortened_apart(texts: Sequence[str], most: int) -> list[str]:
    """Cut longer texts in their middle; where that makes different ones alike, show them around their first difference.

    Texts that even so would look the same stay whole.

    >>> shortened_apart(["/scans/2019/labels", "/scans/2021/labels", "/masks"], 10)
    ['…s/2019/l…', '…s/2021/l…', '/masks']
    """
    cut = {text: shortened(text, most) for text in texts}
    alike: dict[str, list[str]] = {}
    for text, short in cut.items():
        alike.setdefault(short, []).append(text)
    for group in alike.values():
        group.sort()  # so that the longest beginning that a text shares with any is shared with a neighbour
        shared = [_n_shared(*pair) for pair in pairwise(group)]
        differs_at = map(max, [0, *shared], [*shared, 0])
        cut |= {text: _around(text, at, most) for text, at in zip(group, differs_at, strict=True) if shared}
    return [cut[text] if len(set(cut.values())) == len(cut) else text for text in texts]


def _n_shared(one: str, other: str) -> int:
    """Characters at the beginning in which two texts agree."""
    different = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(different, min(len(one), len(other)))


def _around(text: str, position: int, most: int) -> str:
    """The part of a text around a position, in at most so many characters."""
    if len(text) <= most:
        return text
    start = position - (most - 2) // 2
    if start <= 1:
        return f"{text[: most - 1]}…"
    return f"…{text[start : start + most - 2]}…" if start + most - 1 < len(text) else f"…{text[1 - most :]}"


def counted(number: int, what: str) -> str:
    """Write how many of something there are.

    >>> counted(1, "error"), counted(0, "error")
    ('1 error', '0 errors')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def first_lines(lines: Sequence[str], more: str, most: int = 10) -> list[str]:
    """Give the first `most` lines and, where there are others, a last one: `more` with their number in place of {}.

    >>> first_lines(["case a: …", "case b: …", "case c: …"], "and {} more cases", most=1)
    ['case a: …', 'and 2 more cases']
    """
    left = len(lines) - most
    return [*lines[:most], more.format(left)] if left > 0 else list(lines)


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Write rows of cells as lines of a table: the columns `left` are padded on the right, the others on the left.

    >>> aligned([("case", "dice"), ("liver_07", "0.91")])
    ['case      dice', 'liver_07  0.91']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def fitted(text: str, width: int | None) -> str:
    """Let lines that are wider than a screen go on in the next one, between two words and below their last column.

    A word that is wider than the screen, as a path may be, stays whole, and so does a line that is a command to copy;
    width None changes nothing.

    >>> print(fitted("  split   train 8, val 1 by subject", 24))
      split   train 8, val 1
              by subject
    """
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        label = re.match(r" *(- |\S+( \S+)*  +)?", line)
        indent = label.end() if label and label.end() <= width // 2 else 0
        stays = len(line) <= width or not line.strip() or line.lstrip().startswith("bodyseg ")
        lines += [line] if stays else _wrapped(line, width, indent)
    return "\n".join(lines)


def _wrapped(line: str, width: int, indent: int) -> list[str]:
    """The first `indent` characters, spaces included, stay as they are."""
    parts = textwrap.wrap(line[indent:], width - indent, break_long_words=False, break_on_hyphens=False)
    return [(line[:indent] if number == 0 else " " * indent) + part for number, part in enumerate(parts)]


def printable(text: str) -> str:
    r"""Replace every character that could steer a terminal or cannot be encoded by U+FFFD, line breaks included.

    Names of cases, classes and runs come from files that anybody may have written.

    >>> printable("liver\x1b[2J")
    'liver�[2J'
    """
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def spreadsheet_text(text: str) -> str:
    """Make a text safe for a cell of a CSV file: printable, and never a formula when a spreadsheet opens it.

    A cell that begins like a formula gets an apostrophe before it, as OWASP advises against CSV injection.

    >>> spreadsheet_text("=HYPERLINK(0)"), spreadsheet_text("liver")
    ("'=HYPERLINK(0)", 'liver')
    """
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text

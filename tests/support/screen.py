"""What stands on a terminal, scrolled lines included, after it has received a text."""

from __future__ import annotations

import re

_STEERING = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


def shown_at_the_end(text: str) -> list[str]:
    """Follow the cursor through what rich writes: lines, returns, up, erase a line; colours are left out."""
    lines: list[str] = [""]
    row = column = 0
    position = 0
    while position < len(text):
        steering = _STEERING.match(text, position)
        if steering:
            number, what = steering.groups()
            if what == "A":
                row -= int(number or 1)
            elif what == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            position = steering.end()
            continue
        character = text[position]
        position += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]

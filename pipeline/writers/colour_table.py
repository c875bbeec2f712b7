"""Write class names and colours as a colour table of 3D Slicer (.ctbl), for the label maps of a folder.

The format is Slicer's ("Color table file"): value, name without blanks, red, green, blue, opacity, all 0…255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files.atomic import write_atomically
from pipeline.visualisation.overlay import class_colours
from pipeline.writers.segmentation import file_names


def write_colour_table(class_names: Sequence[str], path: Path) -> None:
    """Write the table; the background is transparent. Raises FileError if the disk refuses."""
    text = colour_table(class_names)
    write_atomically(path, lambda stream: stream.write(text.encode()))


def colour_table(class_names: Sequence[str]) -> str:
    """The table's text: a line a class, `class_names[0]` the background."""
    names = file_names(class_names)  # one word each, and no two alike
    colours = class_colours(len(names)).tolist()
    lines = [
        f"{value} {name} {red} {green} {blue} {255 if value else 0}"
        for value, (name, (red, green, blue)) in enumerate(zip(names, colours, strict=True))
    ]
    return "\n".join([f"# Color table of {len(names)} classes: value name red green blue opacity", *lines, ""])

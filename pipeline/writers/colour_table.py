"""Class names and colours as a colour table of 3D Slicer (.ctbl), for the label maps of a folder.

The format is Slicer's ("Color table file"): value, name without blanks, red, green, blue, opacity, all 0…255.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.visualisation.class_colours import class_colours
from pipeline.writers.segmentation import file_names, values_of


def colour_table(class_names: Sequence[str], label_values: Sequence[int] = ()) -> str:
    """The table's text: a line a class, the background first and transparent.

    Args:
        class_names: `class_names[0]` is the background.
        label_values: value of each class in the label maps; () for the class indices.
    """
    names = file_names(class_names)  # one word each, and no two alike
    values = values_of(class_names, label_values).tolist()
    colours = class_colours(class_names).tolist()
    lines = [f"# Color table of {len(names)} classes: value name red green blue opacity"]
    for index, (value, name, (red, green, blue)) in enumerate(zip(values, names, colours, strict=True)):
        lines.append(f"{value} {name} {red} {green} {blue} {255 if index else 0}")
    return "\n".join([*lines, ""])

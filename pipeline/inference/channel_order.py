"""Bring the images of a data set's cases into the order in which a network takes its channels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import are_named

log = logging.getLogger(__name__)


def channel_order(found: Sequence[str], expected: Sequence[str], source: Path) -> tuple[int, ...]:
    """Return the positions of the network's channels among those of a data set, matched by name.

    Where only one channel is expected, where the numbers of channels differ (which refuses each case by itself), and
    where the data set has no names of its own, the order stays as it is.

    Args:
        found: the data set's channel names, in the order of its image files.
        expected: those of the training, in the network's order.
        source: the data set.

    Raises:
        DatasetError: the names differ by more than their order and upper and lower case.

    >>> channel_order(["flair", "t2"], ["T2", "FLAIR"], Path("scans"))
    (1, 0)
    """
    as_found = tuple(range(len(found)))
    names, wanted = [name.strip().lower() for name in found], [name.strip().lower() for name in expected]
    if len(expected) < 2 or len(found) != len(expected) or names == wanted or not are_named(found):
        return as_found
    if not are_named(expected):
        log.warning(
            "%s: its channels are taken in its own order (%s), since the run's training data did not name theirs",
            source, ", ".join(found),
        )  # fmt: skip
        return as_found
    if sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        raise DatasetError(
            "dataset", source, f"the run's image channels, {', '.join(expected)}", ", ".join(found),
            "if these are the same images, list them in a cases.csv without channel names, in the run's order (case, "
            "image: first.nii.gz|second.nii.gz); else predict with a run that was trained on such scans",
        )  # fmt: skip
    return tuple(names.index(name) for name in wanted)

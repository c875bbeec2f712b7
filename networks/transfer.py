"""Bring trained weights into a network with other classes or other image channels.

Pure: weights, names and shapes in; weights and a record out. What has an entry for each class or channel is taken entry
by entry. The entries of a new channel are zero, so that the network predicts at first what the old one does (but for
VNet, which adds its input's channels to what its first convolution gives), and those of a new class stay as they were
drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from networks.growing_axes import Axis, Growing, Kind

Sources = Mapping[Kind, Sequence[int | None]]
"""For each class and each channel of the new network, which one it was in the old network; None: it is new."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """The weights of a network after a transfer, and what became of each; all by the names of its state_dict."""

    weights: Mapping[str, Tensor]
    """Every weight of the new network, in its own dtype."""
    taken: tuple[str, ...]
    """Those that hold the old network's numbers alone."""
    in_part: tuple[str, ...]
    """Those that hold some of the old network's numbers: there are new classes or channels."""
    initialised: tuple[str, ...]
    """Those that are newly initialised: they stay as they were drawn."""
    dropped: tuple[str, ...]
    """Weights of the old network that found no place."""


@dataclass(frozen=True)
class Fit:
    """How much of two networks is the same, apart from weights that depend on classes and channels."""

    of_old: float
    """Share of the old network's numbers that fit into the new one."""
    of_new: float
    """Share of the new network's numbers that the old one has."""


def named_alike(old: Mapping[str, Tensor], growing: Growing) -> dict[str, Tensor]:
    """Take off what stands before all names of the old weights, such as the "module." of DataParallel.

    What is taken off is what leaves most names that the network has.

    >>> growing = Growing({"head.weight": (1,)}, {}, frozenset())
    >>> list(named_alike({"module.head.weight": torch.zeros(1)}, growing))
    ['head.weight']
    """
    prefixes: Counter[str] = Counter({"": sum(name in growing.shapes for name in old)})
    for name in old:
        parts = name.split(".")
        for n in range(1, len(parts)):
            if ".".join(parts[n:]) in growing.shapes:
                prefixes[".".join(parts[:n]) + "."] += 1
    prefix = max(prefixes, key=lambda candidate: (prefixes[candidate], -len(candidate)))
    return {name.removeprefix(prefix): value for name, value in old.items()}


def fit(old: Mapping[str, Tensor], growing: Growing) -> Fit:
    """Compare the shapes of two networks' weights by name."""
    depends = growing.axes.keys() | growing.otherwise
    fixed = growing.fixed
    shapes = {name: tuple(value.shape) for name, value in old.items() if name not in depends}
    same = sum(math.prod(shape) for name, shape in shapes.items() if fixed.get(name) == shape)
    n_old, n_new = (sum(map(math.prod, each.values())) for each in (shapes, fixed))
    return Fit(same / n_old if n_old else 0.0, same / n_new if n_new else 0.0)


def count_of(old: Mapping[str, Tensor], growing: Growing, kind: Kind) -> int | None:
    """How many classes or channels weights were trained for; None where none of them says."""
    for name, axes in growing.axes.items():
        for axis in axes:
            if axis.kind == kind and name in old and old[name].ndim == len(growing.shapes[name]):
                return old[name].shape[axis.number]
    return None


def transfer(fresh: Mapping[str, Tensor], old: Mapping[str, Tensor], growing: Growing, sources: Sources) -> Transfer:
    """Take over all of the old weights that fit.

    Args:
        fresh: The new network's weights as they were drawn; left alone.
        old: The old network's, by the same names.
        growing: How the new network's weights depend on classes and channels.
        sources: Where the new network's classes and channels come from.
    """
    counts: dict[Kind, int | None] = {kind: count_of(old, growing, kind) for kind in ("class", "channel")}
    unchanged = all(list(source) == list(range(counts[kind] or 0)) for kind, source in sources.items())
    weights: dict[str, Tensor] = {}
    became: dict[str, list[str]] = {"taken": [], "in_part": [], "initialised": []}
    for name, value in fresh.items():
        how, weights[name] = "initialised", value
        axes = growing.axes.get(name, ())
        if (
            name in old
            and old[name].shape == _old_shape(value, axes, counts)
            and (unchanged or name not in growing.otherwise)
        ):
            how, weights[name] = _mapped(value, old[name].to(value), axes, sources)
        became[how].append(name)
    unused = {*became["initialised"]}
    dropped = tuple(name for name in old if name not in fresh or name in unused)
    taken, in_part, initialised = (tuple(became[how]) for how in ("taken", "in_part", "initialised"))
    return Transfer(weights, taken, in_part, initialised, dropped)


def _old_shape(fresh: Tensor, axes: Sequence[Axis], counts: Mapping[Kind, int | None]) -> tuple[int, ...]:
    shape = list(fresh.shape)
    for axis in axes:
        shape[axis.number] = counts[axis.kind] or 0
    return tuple(shape)


def _mapped(fresh: Tensor, old: Tensor, axes: Sequence[Axis], sources: Sources) -> tuple[str, Tensor]:
    """Return what became of one weight, and its new values."""
    kept_all = True
    # Inputs first: their gaps are zero in what is taken, while a new output keeps all of its own numbers
    for axis in sorted(axes, key=lambda axis: not axis.is_input):
        pairs = [(now, before) for now, before in enumerate(sources[axis.kind]) if before is not None]
        if not pairs:
            return "initialised", fresh
        kept_all &= len(pairs) == len(sources[axis.kind])
        now, before = (torch.tensor(each, device=old.device) for each in zip(*pairs, strict=True))
        shape = list(old.shape)
        shape[axis.number] = fresh.shape[axis.number]
        gaps = old.new_zeros(shape) if axis.is_input else fresh.clone()
        old = gaps.index_copy_(axis.number, now, old.index_select(axis.number, before))
    return "taken" if kept_all else "in_part", old.clone()

"""Find out which axes of a network's weights have one entry for each class or for each image channel.

The network is built once more for another number of classes, and of channels: an axis that grows with that number is
one of theirs. This holds for any network, however many heads and first convolutions it has, and whatever it calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from networks.errors import NetworkError
from networks.parameter_limit import ParameterLimitError
from networks.registry import IN_CHANNELS, N_CLASSES, Specification, call_constructor

Kind = Literal["class", "channel"]


MOST_NUMBERS = 10**11
"""Numbers of a network on the meta device: where it costs no memory, it may be any network."""


class Axis(NamedTuple):
    """An axis of a weight that has one entry for each class or channel."""

    number: int
    """Which axis of the weight."""
    kind: Kind
    """What has the entries."""
    is_input: bool
    """Whether its entries take what comes in; else they make what goes out."""


@dataclass(frozen=True)
class Growing:
    """The weights of a network by how their shapes depend on the numbers of classes and channels."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every weight, by name, in the state_dict's order."""
    axes: Mapping[str, tuple[Axis, ...]]
    """Axes of classes and channels, of the weights that have some."""
    otherwise: frozenset[str]
    """Weights whose shape depends on these numbers in another way."""

    @property
    def fixed(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that are the same for any number of classes and channels."""
        return {name: shape for name, shape in self.shapes.items() if name not in self.axes.keys() | self.otherwise}


def growing_axes(specification: Specification, most_parameters: int | None = None) -> Growing:
    """Build a network several times, on torch's "meta" device where it can be, and compare the shapes of its weights.

    >>> from networks.registry import read_specification
    >>> body_net = read_specification({"_target_": "BodyNet", "n_classes": 3, "base_channels": 4})
    >>> growing_axes(body_net).axes["head.bias"]
    (Axis(number=0, kind='class', is_input=False),)

    Args:
        specification: With complete arguments, the size of the images included where the network asks for it.
        most_parameters: Numbers that a network may have which must be built for real; None: any.

    Raises:
        ParameterLimitError: If it has far more than `most_parameters`.
        NetworkError: If the network cannot be built.
    """
    network = _built(specification, most_parameters)
    shapes = _shapes(network)
    axes: dict[str, tuple[Axis, ...]] = {}
    otherwise: set[str] = set()
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (("class", N_CLASSES), ("channel", IN_CHANNELS))
    for kind, names in kinds:
        for count, other, twin in _twins(specification, names, most_parameters):
            for name, shape in _shapes(twin).items():
                before = shapes.get(name, ())
                if before == shape:
                    continue
                differing = [axis for axis, n in enumerate(shape) if len(before) == len(shape) and n != before[axis]]
                if not differing or any((before[axis], shape[axis]) != (count, other) for axis in differing):
                    otherwise.add(name)
                    continue
                found = tuple(Axis(axis, kind, axis == _input_axis(network, name)) for axis in differing)
                axes[name] = axes.get(name, ()) + found
    return Growing(shapes, {name: found for name, found in axes.items() if name not in otherwise}, frozenset(otherwise))


def _twins(
    specification: Specification, names: tuple[str, ...], most_parameters: int | None
) -> Iterator[tuple[int, int, nn.Module]]:
    """Yield the first twin that can be built for another count: that of the network, that of the twin, the twin.

    Some networks take some numbers of channels only, such as MONAI's VNet the divisors of 16.
    """
    counts = {name: specification.arguments[name] for name in names if name in specification.arguments}
    count = next(iter(counts.values()), None)
    if count is None:
        return
    for other in (count + 1, 2 * count, count - 1):
        arguments = specification.arguments | dict.fromkeys(counts, other)
        try:
            twin = _built(specification._replace(arguments=arguments), most_parameters)
        except NetworkError:
            continue
        yield count, other, twin
        return


def _built(specification: Specification, most_parameters: int | None) -> nn.Module:
    """Call the constructor where it costs no memory, or for real where it computes with its weights."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return call_constructor(specification, MOST_NUMBERS)
        except ParameterLimitError:
            raise
        except NetworkError:
            return call_constructor(specification, most_parameters or MOST_NUMBERS)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _input_axis(network: nn.Module, name: str) -> int | None:
    """Which axis of a weight takes what comes in; None where it only acts on what goes out."""
    parent, _, last = name.rpartition(".")
    module = network.get_submodule(parent)
    if last != "weight":
        return None
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return 0
    return 1 if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) else None

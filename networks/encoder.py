"""Find the encoder of a network: all that is computed until its coarsest level is done.

Found out on torch's "meta" device by watching what runs, since every network calls its parts otherwise.
"""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from networks.errors import NetworkError
from networks.probe import Size, outputs

ENLARGED = 4
"""Times that the volume to watch is larger than those to come, along each axis: of small ones several levels may have
one voxel. It costs nothing."""


def encoder_weights(network: nn.Module, in_channels: int, size: Size) -> frozenset[str]:
    """Return the names, in the network's state_dict, of the weights and buffers of its encoder.

    >>> from networks.body_net import BodyNet
    >>> names = encoder_weights(BodyNet(base_channels=2), 1, (32, 32, 32))
    >>> sorted({name.partition(".")[0] for name in names})
    ['encoder', 'stem']

    Args:
        network: It maps (B, in_channels, *size) to logits; it is left alone.
        in_channels: Channels of its input.
        size: Voxels (I, J, K) that it takes.

    Raises:
        NetworkError: If the network has no coarser level, or cannot run without values.
    """
    copied: Any = copy.deepcopy(network).to("meta").eval()
    name = str(getattr(network, "settings", {}).get("_target_", type(network).__name__)).rpartition(".")[2]
    i, j, k = size
    large = (i * ENLARGED, j * ENLARGED, k * ENLARGED)
    try:
        calls, n_image = _calls(copied, in_channels, large), math.prod(large)
    except Exception:  # it takes one size only
        try:
            calls, n_image = _calls(copied, in_channels, size), math.prod(size)
        except Exception as error:  # whatever it is that it does with values
            reason = " ".join(str(error).split())[:200]
            raise NetworkError(
                f"training.freeze_epochs: the encoder of {name} cannot be found ({type(error).__name__}: {reason}); "
                "leave it out"
            ) from error
    own = copied.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for key, value in own.items():
        names.setdefault(id(value), []).append(key)
    coarsest = min((n for _, n in calls if n), default=0)
    last = max((time for time, (_, n) in enumerate(calls) if n == coarsest), default=0)
    while last + 1 < len(calls) and calls[last + 1][1] == 0:  # a transformer's layers give sequences, no volumes
        last += 1
    found: set[str] = set()
    seen: set[int] = set()
    for time, (module, _) in enumerate(calls):  # inner modules are done before those that hold them
        for value in (*module.parameters(), *module.buffers()):
            if id(value) not in seen:
                seen.add(id(value))
                found.update(names.get(id(value), ()) if time <= last else ())
    if coarsest == n_image or len(found) == len(own):
        raise NetworkError(f"training.freeze_epochs: {name} has no encoder, only one resolution; leave it out")
    return frozenset(found)


def _calls(network: Any, in_channels: int, size: Size) -> list[tuple[nn.Module, int]]:
    """The modules with weights or buffers, in the order in which they are done, with the voxels of what each returns.

    Others, such as those that rearrange a transformer's heads, give tensors of five axes that are no volumes, too.
    """
    calls: list[tuple[nn.Module, int]] = []
    handles = [
        module.register_forward_hook(lambda module, _inputs, out: calls.append((module, _n_voxels(out))))
        for module in network.modules()
        if next(chain(module.parameters(), module.buffers()), None) is not None
    ]
    try:
        network(torch.empty(1, in_channels, *size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _n_voxels(out: Any) -> int:
    """Voxels of a module's output; 0 where it is no volume."""
    first = outputs(out)[0]
    return math.prod(first.shape[2:]) if isinstance(first, Tensor) and first.ndim == 5 else 0

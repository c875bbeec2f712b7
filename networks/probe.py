"""Find out on torch's "meta" device which sizes a network takes, what it returns and which of its parameters take part:
no memory, no arithmetic."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from networks.errors import NetworkError
from networks.head import is_pointwise
from networks.parameter_limit import TABLE_NUMBERS, LimitedTables

DIVISORS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Candidates for the number of which a network takes every multiple as size: no network halves more often."""
SMALLEST_EDGE = 16
"""Voxels along each axis of the volume that verifies a split; most networks have nothing left of fewer."""
Size = tuple[int, int, int]


class Probe:
    """A copy of a network on the meta device.

    Args:
        network: It is copied and left alone.
        name: What it is called in messages.
        in_channels: Channels of its input.
        n_classes: Classes of its output.
        is_trusted: It may compute tables of any size from its arguments, on the CPU.
    """

    def __init__(
        self, network: nn.Module, name: str, in_channels: int, n_classes: int, *, is_trusted: bool = True
    ) -> None:
        self.network = copy.deepcopy(network).to("meta")
        self.name = name
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.is_trusted = is_trusted

    def divisor(self, target: Size) -> int:
        """Return the smallest power of two of which the network takes every multiple; 0 if it takes `target` alone.

        Raises:
            NetworkError: If it takes neither the target size nor a larger one.
        """
        reason = self.failure(target)
        for divisor in DIVISORS:
            multiples = [-(-n // divisor) for n in target]
            # Other multiples, since a network may take one size alone, and odd ones, since it may need 2·divisor
            sizes = [_scaled(multiples, divisor), _scaled([n + 1 + n % 2 for n in multiples], divisor)]
            if all(self.failure(size, modes=(True,)) is None for size in sizes):
                return divisor
        if reason is None:
            return 0
        raise NetworkError(
            f"network {self.name} takes no volumes of {target} voxels, nor of any multiple of {DIVISORS[-1]} above: "
            f"{reason}; change data.target_size or the network's arguments"
        )

    def smallest_size(self, divisor: int, target: Size) -> Size:
        """Return a small volume that the network takes, a cube or a step longer, or else the target size padded to the
        divisor. Of a single voxel at the coarsest level instance normalisation cannot be trained, of two it can."""
        for edge in range(divisor, max(target) + divisor, divisor):
            for size in ((edge, edge, edge), (edge + divisor, edge, edge)):
                if edge >= SMALLEST_EDGE and self.failure(size) is None:
                    return size
        return _scaled([-(-n // divisor) for n in target], divisor)

    def smallest_edge(self, divisor: int, target: Size) -> int:
        """Return the smallest multiple of the divisor such that the network takes a cube of that edge in evaluation:
        instance normalisation refuses what is a single voxel at the coarsest level."""
        edges = range(divisor, max(target) + divisor, divisor)
        n_refused = bisect_left(edges, True, key=lambda edge: self.failure((edge, edge, edge), modes=(False,)) is None)
        return edges[n_refused] if n_refused < len(edges) else divisor

    def failure(self, size: Size, *, modes: Sequence[bool] = (True, False), batch: int = 1) -> str | None:
        """Return why the network does not take volumes of this size; None if it does.

        Args:
            size: Voxels (I, J, K).
            modes: Whether to try it in training (True) and in evaluation (False).
            batch: Volumes at once.

        Raises:
            NetworkError: If what it returns are not logits, whatever the size, one volume in evaluation; in training
                there may be several, see `outputs`.
        """
        for training in modes:
            try:
                out = self._returned(training, size, batch)
            except Exception as error:  # whatever a network raises says that this size does not suit it
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            finest, *coarser = (tuple(output.shape[2:]) for output in self._checked(out, training))
            if finest != size:
                return f"it returns volumes of {finest}"
            for coarse in coarser:
                if any(n % m for n, m in zip(size, coarse, strict=True)):
                    return f"it returns volumes of {coarse} beside those of {size}, which are no multiple"
        return None

    def head_name(self, size: Size) -> str | None:
        """Return the name of the 1×1×1 convolution whose output is the network's, in training and in evaluation; None
        if there is none."""
        names = {self._last_convolution(size, training) for training in (True, False)}
        return names.pop() if len(names) == 1 else None

    def _checked(self, out: Any, training: bool) -> list[Tensor]:
        found = outputs(out)
        if len(found) > 1 and not training:
            raise NetworkError(
                f"network {self.name} returns {len(found)} outputs in evaluation, too; expected one volume of logits, "
                "the first of those in training; switch deep supervision off in model.network"
            )
        for output in found:
            shape = f"the shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            if not isinstance(output, Tensor) or output.ndim != 5 or output.shape[1] != self.n_classes:
                raise NetworkError(
                    f"network {self.name} returns {shape}; expected (B, {self.n_classes}, I, J, K), "
                    "one value for each class and voxel"
                )
        return found

    def _last_convolution(self, size: Size, training: bool) -> str | None:
        results: dict[str, list[Tensor]] = {}
        handles = [
            module.register_forward_hook(
                lambda _module, _inputs, out, name=name: results.setdefault(name, []).append(out)
            )
            for name, module in self.network.named_modules()
            if type(module) in (nn.Conv3d, nn.ConvTranspose3d) and is_pointwise(module)  # no subclass: it may do more
        ]
        try:
            out = outputs(self._returned(training, size))[0]
        finally:
            for handle in handles:
                handle.remove()
        return next((name for name, outs in results.items() if len(outs) == 1 and outs[0] is out), None)

    def _returned(self, training: bool, size: Size, batch: int = 1) -> Any:
        x = torch.empty(batch, self.in_channels, *size, device="meta")
        limit = nullcontext() if self.is_trusted else LimitedTables(TABLE_NUMBERS, in_memory_only=True)
        with limit:
            return self.network.train(training)(x)


def freeze_unused_parameters(network: nn.Module, in_channels: int, size: Size) -> list[str]:
    """Set requires_grad to False for the parameters from which no gradient comes; return their names.

    MONAI's BasicUNetPlusPlus has a spare head at each depth, its UNETR a normalisation in each block that is never
    called. Trained in one process they stay as they were drawn; in several, DistributedDataParallel waits for their
    gradients and fails at the second step. A network that cannot run on the meta device is left as it is.

    Args:
        network: It maps (B, in_channels, *size) to logits.
        in_channels: Channels of its input.
        size: Voxels (I, J, K) that it takes.
    """
    copied: Any = copy.deepcopy(network).to("meta").train()
    x = torch.empty(1, in_channels, *size, device="meta")
    try:
        total = copied(x).sum()
        if hasattr(copied, "supervised_levels"):
            total += sum(level.features.sum() for level in copied.supervised_levels(x)[1:])
        if len(_leaves_of(total)) == sum(parameter.requires_grad for parameter in copied.parameters()):
            return []  # all of them stand in the graph: nothing that a backward pass could find
        total.backward()
    except Exception:  # whatever it is that it does with values
        return []
    unused = [name for name, parameter in copied.named_parameters() if parameter.grad is None]
    for name in unused:
        network.get_parameter(name).requires_grad_(False)
    return unused


def _leaves_of(result: Tensor) -> set[Any]:
    """Return the nodes of the autograd graph behind a tensor that collect a gradient, one a parameter."""
    seen, left, leaves = set(), [result.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node)
        left.extend(following for following, _ in node.next_functions)
    return leaves


def outputs(out: Any) -> list[Any]:
    """Return what a network returns as a list: in training the finest level comes first and coarser ones follow, as
    SegResNetDS and MedNeXt return them; BasicUNetPlusPlus returns a list of one."""
    return list(out) if isinstance(out, list | tuple) and out else [out]


def _scaled(multiples: Sequence[int], factor: int) -> Size:
    i, j, k = (n * factor for n in multiples)
    return i, j, k

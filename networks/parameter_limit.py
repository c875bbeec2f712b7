"""Stop a constructor that makes more parameters than the weights of its checkpoint fill.

Some constructors cannot be tried on torch's "meta" device, because they compute with numbers. Here the constructor
runs for real and is stopped at the first parameter too many: layers register a parameter while it is still empty,
before memory is touched. Of a table that a constructor computes without a layer the shape is found out first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from networks.errors import NetworkError

SPARE_NUMBERS = 2**20
"""Numbers that a constructor may make beyond those it keeps, and drop again."""
MOST_MODULES = 50_000
"""No network has as many; modules without parameters would take memory uncounted."""
TABLE_NUMBERS = 2**25
"""Numbers of a table that is computed, as SwinUNETR's of relative positions (352,947 for windows of 7×7×7 voxels)."""


class ParameterLimitError(NetworkError):
    """A constructor was stopped: it makes too many parameters or modules, or too large a table."""


class LimitedTables(TorchDispatchMode):
    """Try every operation on the meta device first, and let none return more numbers than `most`.

    Args:
        most: Numbers.
        in_memory_only: Let tensors on the meta device, which take no memory, have any number.

    Raises:
        ParameterLimitError: At a larger table, before it is made.
    """

    def __init__(self, most: int, *, in_memory_only: bool = False) -> None:
        super().__init__()
        self.most = most
        self.in_memory_only = in_memory_only

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        touches_none = func is torch.ops.aten.empty.memory_format  # as a parameter that is to be counted
        if touches_none or (self.in_memory_only and any(map(_is_meta, tree_leaves((args, kwargs))))):
            return func(*args, **kwargs)
        try:
            on_meta = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            has_device = any(argument.name == "device" for argument in func._schema.arguments)
            found = func(*on_meta[0], **on_meta[1] | ({"device": "meta"} if has_device else {}))
        except Exception:  # what needs values, as .item(), or fails for real, too
            found = None
        n_numbers = max((one.numel() for one in tree_leaves(found) if isinstance(one, Tensor)), default=0)
        if n_numbers > self.most:
            raise ParameterLimitError(
                f"expected tables of at most {self.most:,} numbers, found {n_numbers:,}; it is damaged, copy it again"
            )
        return func(*args, **kwargs)


def _is_meta(argument: Any) -> bool:
    return argument.is_meta if isinstance(argument, Tensor) else argument == torch.device("meta")


@contextmanager
def limit_parameters(n_weights: int) -> Iterator[None]:
    """Let the constructors called inside register at most 2 · `n_weights` + `SPARE_NUMBERS` numbers and `MOST_MODULES`
    modules, and compute no table of more than `TABLE_NUMBERS`.

    Args:
        n_weights: Numbers that the checkpoint's weights hold.

    Raises:
        ParameterLimitError: At the first parameter or module too many, before the parameter is filled; at a larger
            table, before it is made.
    """
    n_numbers = n_modules = 0

    def count_parameter(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal n_numbers
        n_numbers += 0 if parameter is None else parameter.numel()
        if n_numbers > 2 * n_weights + SPARE_NUMBERS:
            raise ParameterLimitError(
                f"expected weights for a network of {n_numbers:,} numbers or more, found {n_weights:,}; "
                "it is damaged, copy it again"
            )

    def count_module(*_: Any) -> None:
        nonlocal n_modules
        n_modules += 1
        if n_modules > MOST_MODULES:
            raise ParameterLimitError(
                f"expected a network of at most {MOST_MODULES:,} modules; it is damaged, copy it again"
            )

    hooks = [
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_module),
    ]
    try:
        with LimitedTables(2 * n_weights + TABLE_NUMBERS):
            yield
    finally:
        for hook in hooks:
            hook.remove()

"""Stop a constructor that makes more parameters than the weights of its checkpoint fill.

Some constructors cannot be tried on torch's "meta" device, because they compute with numbers. Here the constructor
runs for real and is stopped at the first parameter too many: layers register a parameter while it is still empty,
before memory is touched. Tables that a constructor computes without a layer are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from networks.errors import NetworkError

SPARE_NUMBERS = 2**20
"""Numbers that a constructor may make beyond those it keeps, and drop again."""
MOST_MODULES = 50_000
"""No network has as many; modules without parameters would take memory uncounted."""


class ParameterLimitError(NetworkError):
    """A constructor was stopped: it makes too many parameters or modules."""


@contextmanager
def limit_parameters(n_weights: int) -> Iterator[None]:
    """Let the constructors called inside register at most 2 · `n_weights` + `SPARE_NUMBERS` numbers and `MOST_MODULES`
    modules.

    Args:
        n_weights: Numbers that the checkpoint's weights hold.

    Raises:
        ParameterLimitError: At the first parameter or module too many, before the parameter is filled.
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
        yield
    finally:
        for hook in hooks:
            hook.remove()

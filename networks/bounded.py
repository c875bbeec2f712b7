"""Building a network in the memory that its weights were promised to take. Knows no class and no checkpoint.

Some constructors cannot be tried on torch's "meta" device, because they compute with numbers. Here the real one runs,
and is stopped at the first parameter that no network of that size has: layers register a parameter while it is still
empty, before memory is touched. Tables that a constructor computes without a layer are not counted.
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

from networks.split import NetworkError

SPARE = 2**20
"""Parameters beyond those held: what a constructor may make and drop again on its way."""
MOST_MODULES = 50_000
"""No network has as many; without parameters they would take memory uncounted."""


@contextmanager
def bounded(n_held: int) -> Iterator[None]:
    """Let a constructor inside make at most 2 · `n_held` + `SPARE` numbers of parameters, and `MOST_MODULES` modules.

    Raises:
        NetworkError: Inside, at the parameter or module that is too many, before the parameter is filled.
    """
    n_made = n_modules = 0

    def count_parameter(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal n_made
        n_made += 0 if parameter is None else parameter.numel()
        if n_made > 2 * n_held + SPARE:
            raise NetworkError(
                f"expected weights for a network of {n_made:,} numbers or more, found {n_held:,}; "
                "it is damaged, copy it again"
            )

    def count_module(*_: Any) -> None:
        nonlocal n_modules
        n_modules += 1
        if n_modules > MOST_MODULES:
            raise NetworkError(f"expected a network of at most {MOST_MODULES:,} modules; it is damaged, copy it again")

    hooks = [
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

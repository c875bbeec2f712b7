"""Whether kernels of our own run on a GPU: those of `norm_act_gpu` and of `pipeline.losses.dice_ce_gpu`.

They are written in Triton, which comes with torch on Linux and compiles at first use; for that it needs a C compiler.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from networks.onednn_workaround import HALF

log = logging.getLogger(__name__)

OLDEST = (8, 0)
"""Compute capability from which a GPU multiplies bfloat16 (Ampere)."""


def run_on(x: Tensor) -> bool:
    """Return whether kernels of our own take this tensor: float32, bfloat16 or float16 on a GPU, not in code that
    torch.compile compiles anyway."""
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.float32, *HALF)
        and not torch.compiler.is_compiling()
        and _compile_for(x.device)
    )


@functools.cache
def _compile_for(device: torch.device) -> bool:
    """Try a kernel on a device. Where it fails, say once that torch's own are used."""
    if torch.version.hip or torch.cuda.get_device_capability(device) < OLDEST:
        return False
    if importlib.util.find_spec("triton") is None:
        return False  # there is none on Windows

    def try_one() -> None:
        from networks import norm_act_gpu  # needs Triton

        x, one = torch.zeros(1, 1, 2, 2, 2, device=device), torch.ones(1, device=device)
        norm_act_gpu.activated(x, one, one, 1.0, 1.0, out=torch.empty_like(x))

    return runs(try_one, "Triton does not compile here")


def runs(kernels: Callable[[], object], otherwise: str) -> bool:
    """Return whether kernels can be compiled and started; warn, with what is wrong `otherwise`, that training is slower
    where they cannot."""
    try:
        kernels()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, a driver or a read-only home folder comes up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("Training on this GPU takes some 1.6 times as long as it could: %s (%s)", otherwise, reason)
        return False
    return True

"""A stand-in for what CUDA's kernels do and a CPU's do not, so that a CPU shows the difference."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BATCH_NORM = torch.ops.aten.native_batch_norm.out


class LikeCuda(TorchDispatchMode):
    """Inside it no operation may write two outputs into one memory, and batch normalisation with given statistics
    works as `batch_norm_cuda_out` does (ATen/native/cuda/Normalization.cu): it copies the mean into `save_mean`,
    writes the reciprocal deviation into `save_invstd`, and normalises with what it then finds in the two."""

    def __init__(self) -> None:
        super().__init__()
        self.n_normalised = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        _check_outputs(func, args, kwargs)
        if func is BATCH_NORM and not args[5]:
            self.n_normalised += 1
            return _normalise_as_cuda_does(*args, **kwargs)
        return func(*args, **kwargs)


def _check_outputs(func: Any, args: tuple, kwargs: dict) -> None:
    written = []
    for argument, positional in itertools.zip_longest(func._schema.arguments, args):
        value = kwargs.get(argument.name, positional)
        is_output = argument.alias_info is not None and argument.alias_info.is_write
        if is_output and isinstance(value, Tensor):
            written.append((argument.name, value.untyped_storage()._cdata, value.storage_offset()))
    for (one, *here), (other, *there) in itertools.combinations(written, 2):
        assert here != there, f"{func}: {one} and {other} are one tensor"


def _normalise_as_cuda_does(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    epsilon: float,
    *,
    out: Tensor,
    save_mean: Tensor,
    save_invstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    for result in (save_mean, save_invstd):
        if result.numel() == 0:
            result.resize_(mean.shape)
    save_mean.copy_(mean)
    save_invstd.copy_((variance + epsilon).rsqrt())
    shape = [1, -1, *[1] * (x.ndim - 2)]
    used = [statistic.to(x.dtype).view(shape) for statistic in (save_mean, save_invstd, weight, bias)]
    out.copy_((x - used[0]) * used[1] * used[2] + used[3])
    return out, save_mean, save_invstd

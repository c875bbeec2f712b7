"""Inputs of losses, their gradients, and what is compared with them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# So small that every test walks through several slabs (256 voxels each at least).
BUDGET_MB = 0.01
GRID = (9, 10, 11)


def make(n_samples=2, n_features=8, n_classes=7, grid=GRID, dtype=torch.float32, scale=1.0, n_labels=None):
    features = (scale * torch.randn(n_samples, n_features, *grid, dtype=dtype)).requires_grad_()
    head = nn.Conv3d(n_features, n_classes, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    label = torch.randint(0, n_labels or n_classes, (n_samples, 1, *grid), dtype=torch.uint8)
    return features, head, label


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def assert_same(ours, theirs, relative=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).detach().abs().max()) <= relative * float(b.detach().abs().max())


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.sizes.append(t.untyped_storage().nbytes())
        return out

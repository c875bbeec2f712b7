"""Loss and head: 1×1×1 convolution + MONAI's DiceCELoss against the loss in slabs, on the same 32 features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from benchmarks.inputs import blocky_label, image_and_label
from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from networks.registry import build_network
from pipeline.compute.memory import keep_freed_memory
from pipeline.losses.dice_ce import SlabDiceCELoss

WARM_UP = (8, 8, 8)
"""Size of a first volume, after which the libraries have loaded what they load on first use: not the loss's memory."""


def plain(size: Sequence[int], n_classes: int, n_features: int = 32, n: int = 1) -> Measurement:
    """Logits, MONAI's loss and all gradients."""
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    return _measure(lambda x, head, label: criterion(head(x), label), size, n_classes, n_features, n)


def ours(size: Sequence[int], n_classes: int, n_features: int = 32, n: int = 1) -> Measurement:
    """The loss in slabs and all gradients."""
    criterion = SlabDiceCELoss()
    return _measure(lambda x, head, label: criterion(x, head, label).loss, size, n_classes, n_features, n)


def in_kept_memory(method: str, size: Sequence[int], n_classes: int, n: int = 1) -> Measurement:
    """The fastest repetition of "plain" or "ours" in a process that keeps what it frees, as a training of ours does.

    Memory that was given back is cleared by the system when it is taken again, and on a virtual machine whose host
    takes it, too, fetched from there: that can take longer than the loss. What is kept grows over the repetitions.
    """
    keep_freed_memory()
    measured = {"plain": plain, "ours": ours}[method](size, n_classes, n=n)
    measured.seconds = [min(measured.seconds)]
    return measured


def partly(size: Sequence[int], n_classes: int, n_features: int = 32, n: int = 1) -> Measurement:
    """The loss in slabs and all gradients of a label that annotates half of the classes."""
    criterion, shown = SlabDiceCELoss(), range(1, (n_classes + 1) // 2)

    def loss_of(x: Tensor, head: nn.Conv3d, label: Tensor) -> Tensor:
        return criterion(x, head, label, annotated=[shown]).loss

    return _measure(loss_of, size, n_classes, n_features, n, kept=len(shown))


def _measure(
    loss_of: Callable[[Tensor, nn.Conv3d, Tensor], Tensor],
    size: Sequence[int],
    n_classes: int,
    n_features: int,
    n: int,
    *,
    kept: int | None = None,
) -> Measurement:
    """kept: the highest class that the label keeps; those above become background. None: all."""
    features, head, label = _tensors(WARM_UP, n_classes, n_features, kept)
    _backward(loss_of(features, head, label), features, head)
    features, head, label = _tensors(size, n_classes, n_features, kept)
    return measure(lambda: _backward(loss_of(features, head, label), features, head), n=n)


def _tensors(
    size: Sequence[int], n_classes: int, n_features: int, kept: int | None
) -> tuple[Tensor, nn.Conv3d, Tensor]:
    torch.manual_seed(0)
    head = nn.Conv3d(n_features, n_classes, 1)
    features = torch.randn(1, n_features, *size).requires_grad_()
    label = blocky_label(size, n_classes)
    if kept is not None:
        label[label > kept] = 0
    return features, head, label


def _backward(loss: Tensor, features: Tensor, head: nn.Conv3d) -> list[float]:
    """Loss and the norm of each gradient; the gradients are dropped, so that every repetition allocates them again."""
    loss.backward()
    leaves = (features, head.weight, head.bias)
    values = [loss.item()]
    for leaf in leaves:
        assert leaf is not None  # the head has a bias
        assert leaf.grad is not None  # it was used
        values.append(float(torch.linalg.vector_norm(leaf.grad)))
        leaf.grad = None
    return values


def plain_curve(size: Sequence[int], n_classes: int, network: dict[str, Any] | None = None) -> Measurement:
    """Losses of a short training in float32 with MONAI's loss; `network` None is a narrow BodyNet."""
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    return _curve(lambda net, image, label: criterion(net(image), label), size, n_classes, network)


def our_curve(size: Sequence[int], n_classes: int, network: dict[str, Any] | None = None) -> Measurement:
    """Losses of the same training with the loss in slabs."""
    criterion = SlabDiceCELoss()
    return _curve(lambda net, x, label: criterion(net.features(x), net.head, label).loss, size, n_classes, network)


def _curve(
    loss_of: Callable[[Any, Tensor, Tensor], Tensor],
    size: Sequence[int],
    n_classes: int,
    spec: dict[str, Any] | None,
    n_steps: int = 20,
) -> Measurement:
    torch.manual_seed(0)
    network = build_network(spec, n_classes=n_classes, base_channels=4, target_size=size)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    image, label = image_and_label(size, n_classes)

    def train() -> list[float]:
        losses = []
        for _ in range(n_steps):
            optimiser.zero_grad()
            loss = loss_of(network, image, label)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    return measure(train)

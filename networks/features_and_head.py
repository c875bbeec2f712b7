"""Take any segmentation network apart into `features(x)` and `head`, its last 1×1×1 convolution.

Loss, metric and prediction work through the head in slabs, so that logits of full size never exist. Where a network's
last operation is a 1×1×1 convolution, that convolution is taken out and becomes the head, and the equality is verified
by value. Otherwise the features are the logits and the head is None. Images whose size the network cannot take are
padded, and the features cropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from networks.deep_supervision import Level
from networks.errors import NetworkError
from networks.onednn_workaround import use_safe_convolutions
from networks.probe import Probe, Size, outputs

TWIN_EDGES = (32, 48, 64, 96)
"""Voxels along each axis for which a network that is built for one size is built once more, to verify the split."""


class FeaturesAndHead(nn.Module):
    """A network as features and head; its state_dict has the original network's own keys, in both directions.

    Args:
        body: The network, without its head if that is given.
        head: The 1×1×1 convolution that was taken out of it, or None: the features are the logits.
        head_name: Where in the network the head was, such as "conv_final.2.conv".
        head_is_transposed: Whether the network's own head is a *transposed* 1×1×1 convolution, which is the same
            with in and out exchanged.
        divisor: The network takes sizes that are multiples of it; others are padded.
        smallest_edge: Volumes that are shorter along every axis are padded to a cube of it.
        fixed_size: The only size that it takes, whatever the divisor, to which smaller ones are padded; None: any.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Conv3d | None = None,
        *,
        head_name: str = "",
        head_is_transposed: bool = False,
        divisor: int = 1,
        smallest_edge: int = 1,
        fixed_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.head_name = head_name
        self.head_is_transposed = head_is_transposed
        self.divisor = divisor
        self.smallest_edge = smallest_edge
        self.fixed_size = fixed_size
        self.settings: dict[str, Any] = {}

    def features(self, x: Float[Tensor, "B C I J K"]) -> Float[Tensor, "B F I J K"]:
        """Return what the head is applied to; without a head, the logits (F = n_classes).

        Raises:
            NetworkError: If the network takes one size only and this is larger.
        """
        return self.supervised_levels(x)[0].features

    def supervised_levels(self, x: Float[Tensor, "B C I J K"]) -> list[Level]:
        """Return what the network returns, finest first: in training, one with deep supervision returns several. The
        coarser ones are logits, on the grid of the padded image.

        Raises:
            NetworkError: If the network takes one size only and this is larger.
        """
        size = x.shape[2:]
        if self.fixed_size is None:
            missing = [-n % self.divisor for n in size]
            if all(n + more < self.smallest_edge for n, more in zip(size, missing, strict=True)):
                missing = [self.smallest_edge - n for n in size]
        else:
            missing = [most - n for n, most in zip(size, self.fixed_size, strict=True)]
            if min(missing) < 0:
                raise NetworkError(
                    f"the network was built for volumes of {self.fixed_size} voxels; found {tuple(size)}"
                )
        if any(missing):
            # Edge values, not zeros: zero is air in a CT scaled to 0…1, but the mean in a standardised MR
            padding = [end for n in reversed(missing) for end in (n // 2, n - n // 2)]
            x = F.pad(x, padding, mode="replicate")
        padded, before = x.shape[2:], [n // 2 for n in missing]
        finest, *coarser = outputs(self.body(x))
        if any(missing):
            i, j, k = (slice(b, b + n) for b, n in zip(before, size, strict=True))
            finest = finest[..., i, j, k]
        levels = [Level(finest, self.head)]
        for logits in coarser:
            i, j, k = (n // m for n, m in zip(padded, logits.shape[2:], strict=True))
            levels.append(Level(logits, None, (i, j, k), (-before[0], -before[1], -before[2])))
        return levels

    def forward(self, x: Float[Tensor, "B C I J K"]) -> Float[Tensor, "B n_classes I J K"]:
        """Return the logits of the image."""
        features = self.features(x)
        return features if self.head is None else self.head(features)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the original network's own state_dict, which plain MONAI loads; with `keep_vars` the parameters
        themselves, of which a transposed head's has our form."""
        inner = super().state_dict(*args, keep_vars=keep_vars)
        destination = type(inner)() if destination is None else destination
        for key, value in inner.items():
            part, _, rest = key.partition(".")
            name = f"{self.head_name}.{rest}" if part == "head" else rest
            destination[prefix + name] = value if keep_vars else self._exchanged(name, value)
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name, value = key.removeprefix(prefix), state_dict.pop(key)
            of_head = self.head is not None and name.startswith(self.head_name + ".")
            inner = "head." + name.removeprefix(self.head_name + ".") if of_head else "body." + name
            state_dict[prefix + inner] = self._exchanged(name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _exchanged(self, name: str, value: Tensor) -> Tensor:
        """Turn the head's weight from our form into the network's own or back; return any other value as it is."""
        if self.head_is_transposed and name == self.head_name + ".weight":
            return value.transpose(0, 1).contiguous()
        return value


class Split(NamedTuple):
    """How a network is taken apart; the same for every network that is built alike, whatever its weights."""

    head_name: str | None
    """Where in the network the head is; None: the features are the logits."""
    sizes: Mapping[str, Any]
    """Which sizes it takes, as `FeaturesAndHead` is told."""


def find_split(
    network: nn.Module,
    *,
    name: str,
    in_channels: int,
    n_classes: int,
    target_size: Sequence[int],
    build_at: Callable[[Size], nn.Module] | None = None,
    is_trusted: bool = True,
) -> Split:
    """Find out how a network can be taken apart into features and head, and which sizes it takes.

    Shapes are tried on torch's "meta" device, which costs neither memory nor arithmetic. The split is verified by
    value, in evaluation mode, on a small volume; torch's random state is left alone.

    Args:
        network: It maps (B, in_channels, I, J, K) to (B, n_classes, I, J, K), and is left alone.
        name: What it is called in messages.
        in_channels: Channels of its input.
        n_classes: Classes of its output.
        target_size: The size that it has to take, padded if need be.
        build_at: For a network that is built for one size: the same network for another, on which the split is
            verified.
        is_trusted: As `Probe` has it.

    Raises:
        NetworkError: If the network returns several outputs in evaluation, no volume of classes, or takes no size near
            the target.
    """
    i, j, k = target_size
    with torch.random.fork_rng(devices=[]):
        probe = Probe(network, name, in_channels, n_classes, is_trusted=is_trusted)
        divisor = probe.divisor((i, j, k))
        if divisor:
            small, small_size = copy.deepcopy(network), probe.smallest_size(divisor, (i, j, k))
        else:
            small, small_size = _small_twin(probe, build_at) or (copy.deepcopy(network), (i, j, k))
        head_name = Probe(small, name, in_channels, n_classes, is_trusted=is_trusted).head_name(small_size)
        if head_name is not None and not _is_same(small, head_name, torch.rand(1, in_channels, *small_size)):
            head_name = None
        sizes: dict[str, Any] = {"fixed_size": (i, j, k)}
        if divisor:
            sizes = {"divisor": divisor, "smallest_edge": probe.smallest_edge(divisor, (i, j, k))}
    return Split(head_name, sizes)


def split_head(network: nn.Module, split: Split) -> FeaturesAndHead:
    """Take the network apart; it is changed in place and belongs to the result."""
    if split.head_name is None:
        return FeaturesAndHead(use_safe_convolutions(network), **split.sizes)
    head, transposed = _take_out(network, split.head_name)
    network = use_safe_convolutions(network)
    return FeaturesAndHead(network, head, head_name=split.head_name, head_is_transposed=transposed, **split.sizes)


def _small_twin(probe: Probe, build_at: Callable[[Size], nn.Module] | None) -> tuple[nn.Module, Size] | None:
    """Build the probed network for a small size; return it and that size, or None if none of the sizes suits it."""
    if build_at is None:
        return None
    for edge in TWIN_EDGES:
        try:
            twin = build_at((edge, edge, edge))
        except NetworkError:
            continue  # a size that does not suit its patches
        tried = Probe(twin, probe.name, probe.in_channels, probe.n_classes, is_trusted=probe.is_trusted)
        if tried.failure((edge, edge, edge)) is None:
            return twin, (edge, edge, edge)
    return None


@torch.no_grad()
def _is_same(network: nn.Module, head_name: str, x: Tensor) -> bool:
    """Return whether features and head give what the whole network gives; takes the network apart."""
    (expected,) = outputs(network.eval()(x))
    head, _ = _take_out(network, head_name)
    try:
        return bool(torch.allclose(head(outputs(network(x))[0]), expected, rtol=1e-4, atol=1e-5))
    except RuntimeError:  # the head was used elsewhere, too, and what comes out no longer fits together
        return False


def _take_out(network: nn.Module, head_name: str) -> tuple[nn.Conv3d, bool]:
    """Replace the head by the identity; return it as a plain convolution, and whether it was transposed."""
    parent, _, last = head_name.rpartition(".")
    own = network.get_submodule(head_name)
    setattr(network.get_submodule(parent), last, nn.Identity())
    if isinstance(own, nn.Conv3d):
        return own, False
    assert isinstance(own, nn.ConvTranspose3d)
    head = nn.Conv3d(own.in_channels, own.out_channels, 1, bias=own.bias is not None, device="meta")
    head.weight = nn.Parameter(own.weight.detach().transpose(0, 1).contiguous())
    head.bias = own.bias
    return head, True

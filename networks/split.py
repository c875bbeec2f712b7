"""Any segmentation network as `features(x)` and a 1×1×1 convolution `head`. Knows no configuration: `registry` names
and builds the network.

Loss, metric and prediction work through the head in slabs, so that logits of full size never exist. Where a network's
last operation is a 1×1×1 convolution, that convolution is taken out and becomes the head, and the equality is verified
by value. Otherwise the features are the logits and the head is None. Images whose size the network cannot take are
padded, and the features cropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.small_volumes import make_careful

DIVISORS = (1, 2, 4, 8, 16, 32, 64, 128)
SMALLEST_TRIAL = 16  # voxels a side of the volume that verifies the split; most networks have nothing left of fewer
Size = tuple[int, int, int]


class NetworkError(ValueError):
    """What is wrong with a network's name, arguments, outputs or checkpoint, in one line."""

    is_input_error = True


class SplitNetwork(nn.Module):
    """A network as features and head; its state_dict has the original network's own keys, in both directions.

    Args:
        body: The network, without its head if that is given.
        head: The 1×1×1 convolution that was taken out of it, or None: the features are the logits.
        head_name: Where in the network the head was, such as "conv_final.2.conv".
        head_is_transposed: Whether the network's own head is a *transposed* 1×1×1 convolution, which is the same
            with in and out exchanged.
        divisor: The network takes sizes that are multiples of it; others are padded. 0: it takes `fixed_size` only.
        fixed_size: The only size that it takes, where divisor is 0.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Conv3d | None = None,
        *,
        head_name: str = "",
        head_is_transposed: bool = False,
        divisor: int = 1,
        fixed_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.head_name = head_name
        self.head_is_transposed = head_is_transposed
        self.divisor = divisor
        self.fixed_size = fixed_size
        self.settings: dict[str, Any] = {}

    def features(self, x: Tensor) -> Tensor:
        """Everything but the head: (B, C, I, J, K) -> (B, F, I, J, K); without a head these are the logits (B,
        n_classes, I, J, K).

        Raises:
            NetworkError: If the network takes one size only and this is another.
        """
        size = x.shape[2:]
        if not self.divisor:
            if tuple(size) != self.fixed_size:
                raise NetworkError(
                    f"the network was built for volumes of {self.fixed_size} voxels; found {tuple(size)}"
                )
            return _only_output(self.body(x))
        missing = [-n % self.divisor for n in size]
        if not any(missing):
            return _only_output(self.body(x))
        # Edge values, not zeros: zero is air in a CT scaled to 0…1, but the mean in a standardised MR
        padding = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
        i, j, k = (slice(n // 2, n // 2 + length) for n, length in zip(missing, size, strict=True))
        return _only_output(self.body(F.pad(x, padding, mode="replicate")))[..., i, j, k]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes, I, J, K) of the image (B, C, I, J, K)."""
        features = self.features(x)
        return features if self.head is None else self.head(features)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The original network's own state_dict, which plain MONAI loads."""
        inner = super().state_dict(*args, keep_vars=keep_vars)
        destination = type(inner)() if destination is None else destination
        for key, value in inner.items():
            whose, _, rest = key.partition(".")
            name = f"{self.head_name}.{rest}" if whose == "head" else rest
            destination[prefix + name] = self._exchanged(name, value)
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name, value = key.removeprefix(prefix), state_dict.pop(key)
            of_head = self.head is not None and name.startswith(self.head_name + ".")
            inner = "head." + name.removeprefix(self.head_name + ".") if of_head else "body." + name
            state_dict[prefix + inner] = self._exchanged(name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _exchanged(self, name: str, value: Tensor) -> Tensor:
        """The head's weight between our form and the network's own; whatever else as it is."""
        if self.head_is_transposed and name == self.head_name + ".weight":
            return value.transpose(0, 1).contiguous()
        return value


def split(
    network: nn.Module,
    *,
    name: str,
    in_channels: int,
    n_classes: int,
    target_size: Sequence[int],
    build_at: Callable[[Size], nn.Module] | None = None,
) -> SplitNetwork:
    """Take the network apart into features and head, after finding out which sizes it takes.

    Shapes are tried on torch's "meta" device, which costs neither memory nor arithmetic. The split is verified by
    value, in evaluation mode, on a small volume; torch's random state is left alone.

    Args:
        network: It maps (B, in_channels, I, J, K) to (B, n_classes, I, J, K). It is changed in place and belongs to
            the result.
        name: What it is called in messages.
        in_channels: Channels of its input.
        n_classes: Classes of its output.
        target_size: The size that it has to take, padded if need be.
        build_at: For a network that is built for one size: the same network for another, on which the split is
            verified.

    Raises:
        NetworkError: If the network returns several outputs, no volume of classes, or takes no size near the target.
    """
    i, j, k = target_size
    with torch.random.fork_rng(devices=[]):
        trial = _Trial(network, name, in_channels, n_classes)
        divisor = trial.divisor((i, j, k))
        if divisor:
            small, small_size = copy.deepcopy(network), trial.smallest_size(divisor, (i, j, k))
        else:
            small, small_size = _small_twin(trial, build_at) or (copy.deepcopy(network), (i, j, k))
        head_name = _Trial(small, name, in_channels, n_classes).head_name(small_size)
        if head_name is not None and not _is_same(small, head_name, torch.rand(1, in_channels, *small_size)):
            head_name = None
    sizes: dict[str, Any] = {"divisor": divisor, "fixed_size": None if divisor else (i, j, k)}
    if head_name is None:
        return SplitNetwork(make_careful(network), **sizes)
    head, transposed = _take_out(network, head_name)
    return SplitNetwork(make_careful(network), head, head_name=head_name, head_is_transposed=transposed, **sizes)


class _Trial:
    """A copy of a network on the meta device, to see which sizes it takes and what it returns."""

    def __init__(self, network: nn.Module, name: str, in_channels: int, n_classes: int) -> None:
        self.network = copy.deepcopy(network).to("meta")
        self.name, self.in_channels, self.n_classes = name, in_channels, n_classes

    def divisor(self, target: Size) -> int:
        """The smallest power of two of which the network takes every multiple; 0 if it takes the target size alone."""
        reason = self.failure(target)
        fits = reason is None
        for divisor in DIVISORS:
            multiples = [-(-n // divisor) for n in target]
            # Odd multiples, because a multiple of 2·divisor would pass for a network that needs 2·divisor
            sizes = [_scaled(multiples, divisor), _scaled([n | 1 for n in multiples], divisor)]
            if all(self.failure(size, evaluation=False) is None for size in sizes):
                return divisor
        if fits:
            return 0
        raise NetworkError(
            f"network {self.name} takes no volumes of {target} voxels, nor of any multiple of {DIVISORS[-1]} above: "
            f"{reason}; change data.target_size or the network's arguments"
        )

    def smallest_size(self, divisor: int, target: Size) -> Size:
        """A small cube that the network takes, or else the target size padded to the divisor."""
        for side in range(divisor, max(target) + divisor, divisor):
            if side >= SMALLEST_TRIAL and self.failure((side,) * 3) is None:
                return side, side, side
        return _scaled([-(-n // divisor) for n in target], divisor)

    def failure(self, size: Size, *, evaluation: bool = True) -> str | None:
        """Why the network does not take volumes of this size in training (and in evaluation); None if it does."""
        for training in (True, False) if evaluation else (True,):
            try:
                out = self.network.train(training)(self.input(size))
            except Exception as error:  # whatever a network raises says that this size does not suit it
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            shape = tuple(self.checked(out).shape)
            if shape[2:] != size:
                return f"it returns volumes of {shape[2:]}"
        return None

    def checked(self, out: Any) -> Tensor:
        """The network's one output; NetworkError if that is not what it returns, whatever the size."""
        out = _only_output(out)
        if isinstance(out, list | tuple) or (isinstance(out, Tensor) and out.ndim == 6):  # DynUNet stacks them
            count = out.shape[1] if isinstance(out, Tensor) else len(out)
            raise NetworkError(
                f"network {self.name} returns {count} outputs, expected one volume of logits; deep supervision is not "
                "trained here, switch it off in model.network (deep_supervision: false, or dsdepth: 1)"
            )
        found = f"the shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(out, Tensor) or out.ndim != 5 or out.shape[1] != self.n_classes:
            raise NetworkError(
                f"network {self.name} returns {found}; expected (B, {self.n_classes}, I, J, K), "
                "one value for each class and voxel"
            )
        return out

    def head_name(self, size: Size) -> str | None:
        """The 1×1×1 convolution whose output is the network's, in training and in evaluation; None if there is none."""
        names = {self._last_convolution(size, training) for training in (True, False)}
        return names.pop() if len(names) == 1 else None

    def _last_convolution(self, size: Size, training: bool) -> str | None:
        results: dict[str, list[Tensor]] = {}
        handles = [
            module.register_forward_hook(
                lambda _module, _inputs, out, name=name: results.setdefault(name, []).append(out)
            )
            for name, module in self.network.named_modules()
            if _is_pointwise(module)
        ]
        try:
            out = _only_output(self.network.train(training)(self.input(size)))
        finally:
            for handle in handles:
                handle.remove()
        return next((name for name, outs in results.items() if len(outs) == 1 and outs[0] is out), None)

    def input(self, size: Size) -> Tensor:
        return torch.empty(1, self.in_channels, *size, device="meta")


def _small_twin(trial: _Trial, build_at: Callable[[Size], nn.Module] | None) -> tuple[nn.Module, Size] | None:
    """The network that is tried, built for a small size instead, and that size; None if it is not to be had."""
    if build_at is None:
        return None
    for side in (32, 48, 64, 96):
        try:
            twin = build_at((side, side, side))
        except NetworkError:
            continue  # a size that does not suit its patches
        if _Trial(twin, trial.name, trial.in_channels, trial.n_classes).failure((side, side, side)) is None:
            return twin, (side, side, side)
    return None


@torch.no_grad()
def _is_same(network: nn.Module, head_name: str, x: Tensor) -> bool:
    """Whether features and head give what the whole network gives; takes the network apart."""
    expected = _only_output(network.eval()(x))
    head, _ = _take_out(network, head_name)
    try:
        return bool(torch.allclose(head(_only_output(network(x))), expected, rtol=1e-4, atol=1e-5))
    except RuntimeError:  # the head was used elsewhere, too, and what comes out no longer fits together
        return False


def _take_out(network: nn.Module, head_name: str) -> tuple[nn.Conv3d, bool]:
    """Put the identity in the head's place; return the head as a plain convolution, and whether it was transposed."""
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


def _is_pointwise(module: nn.Module) -> bool:
    """Whether the module is a 1×1×1 convolution, transposed or not, in its plain form."""
    return (
        isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
        and type(module) in (nn.Conv3d, nn.ConvTranspose3d)
        and module.kernel_size == module.stride == (1, 1, 1)
        and module.padding in ((0, 0, 0), "same", "valid")
        and module.groups == 1
    )


def _only_output(out: Any) -> Any:
    """A list or tuple of one output is that output, as BasicUNetPlusPlus returns it."""
    return out[0] if isinstance(out, list | tuple) and len(out) == 1 else out


def _scaled(multiples: Sequence[int], factor: int) -> Size:
    i, j, k = (n * factor for n in multiples)
    return i, j, k

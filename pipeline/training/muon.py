"""Muon: steps of convolutions and linear layers are made orthogonal; all other weights are AdamW's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

from transforms.slabs import share_out

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial a·x + b·x³ + c·x⁵ that brings singular values of 0.01 to 1 close to 1 in `N_ITERATIONS`."""
N_ITERATIONS = 5
RMS = 0.2
"""Root mean square of a step at a learning rate of 1, about AdamW's, so that its learning rates serve."""


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, for matrices; AdamW for all other parameters.

    Of a convolution, the matrix has a row a channel of the first axis and a column for each weight of it. Steps of a
    matrix have the size of AdamW's (`RMS`) and take all directions alike, those too in which gradients are small.
    Keller Jordan (https://kellerjordan.github.io/posts/muon, 2024); the size and the decoupled weight decay are of
    Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982), as in torch.optim.Muon with
    adjust_lr_fn="match_rms_adamw", which takes linear layers alone.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        matrices: Collection[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        fused: bool = False,
    ) -> None:
        """Args:
        groups: parameters as `torch.optim.Optimizer` takes them.
        matrices: those of them that are orthogonalised, see `hidden_matrices`.
        lr: learning rate.
        weight_decay: apart from the gradient, in parts of the learning rate.
        fused: whether AdamW's part is one kernel.
        """
        ids = {id(parameter) for parameter in matrices}
        split = [
            group | {"params": [p for p in group["params"] if (id(p) in ids) == is_matrix], "is_matrix": is_matrix}
            for group in groups
            for is_matrix in (True, False)
        ]
        defaults = {"lr": lr, "weight_decay": weight_decay, "fused": fused}
        super().__init__([group for group in split if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the parameters that have gradients. Returns what the closure does, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["is_matrix"] and trained:
                # Each CPU thread has matrices of its own: they are too small for threads to meet within each product.
                n = torch.get_num_threads()
                dealt = [parameter for first in range(n) for parameter in trained[first::n]]  # alike in size
                share_out(dealt, partial(self._step_matrices, group=group), trained[0].device)
            else:
                self._step_others(trained, group)
        return loss

    def _step_matrices(self, trained: Sequence[Tensor], group: dict[str, Any]) -> None:
        directions: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in trained:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
            direction = gradient.lerp(state["momentum_buffer"], MOMENTUM).flatten(1)
            directions[direction.shape].append((parameter, direction))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        for shape, pairs in directions.items():  # those of one shape together: a GPU has less to start
            steps = orthogonalised(torch.stack([direction for _, direction in pairs]))
            for (parameter, _), step in zip(pairs, steps, strict=True):
                parameter.add_(step.view_as(parameter), alpha=-group["lr"] * RMS * max(shape) ** 0.5)

    def _step_others(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in trained:
            if not self.state[parameter]:
                device = parameter.device if group["fused"] else "cpu"
                self.state[parameter] = {
                    "step": torch.zeros((), device=device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in trained]
        means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            trained,
            [parameter.grad for parameter in trained if parameter.grad is not None],
            means,
            squares,
            [],
            steps,
            fused=group["fused"],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def hidden_matrices(network: nn.Module, head: nn.Module | None = None) -> list[nn.Parameter]:
    """List the weights of all convolutions and linear layers but the head.

    Those of grouped convolutions are none: each of their groups has a matrix of its own.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    layers = [module for module in network.modules() if isinstance(module, kinds) and module is not head]
    return [cast(nn.Parameter, layer.weight) for layer in layers if getattr(layer, "groups", 1) == 1]


def orthogonalised(matrices: Float[Tensor, "*n rows columns"]) -> Float[Tensor, "*n rows columns"]:
    """Bring all singular values near 1 (0.7 to 1.2) but those below a hundredth of a matrix's Frobenius norm.

    The polynomials are applied to the product of a matrix with its own transpose, of the shorter side, so that the
    matrix itself is multiplied only twice.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    flat = matrices.mT if is_tall else matrices
    if torch.get_float32_matmul_precision() != "highest":  # rounded products would let small singular values explode
        flat = flat.double()
    a, b, c = COEFFICIENTS
    gram = flat @ flat.mT
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=torch.finfo(gram.dtype).tiny)[..., None, None]
    gram = gram / norm
    factor = identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(N_ITERATIONS):
        polynomial = a * identity + b * gram + c * gram @ gram
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    out = ((factor / norm.sqrt()) @ flat).to(matrices.dtype)
    return out.mT if is_tall else out

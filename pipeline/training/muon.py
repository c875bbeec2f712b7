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
        parameters, gradients = list(trained), [cast(Tensor, parameter.grad) for parameter in trained]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        means = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
        directions = [each.flatten(1) for each in torch._foreach_lerp(gradients, means, MOMENTUM)]
        steps = [step.view_as(p) for step, p in zip(orthogonalised(directions), parameters, strict=True)]
        torch._foreach_mul_(steps, [RMS * max(direction.shape) ** 0.5 for direction in directions])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])

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


def orthogonalised(matrices: Sequence[Float[Tensor, "rows columns"]]) -> list[Float[Tensor, "rows columns"]]:
    """Bring all singular values near 1 (0.7 to 1.2) but those below a hundredth of a matrix's Frobenius norm.

    The polynomials are applied to the product of a matrix with its own transpose, of the shorter side, so that the
    matrix itself is multiplied only twice; those with the same shorter side together, so that a GPU has less to start.
    """
    by_side: dict[int, dict[torch.Size, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, matrix in enumerate(matrices):
        by_side[min(matrix.shape)][matrix.shape].append(position)
    found = list(matrices)
    for shapes in by_side.values():
        flats = [_lying([matrices[position] for position in positions]) for positions in shapes.values()]
        roots = _inverse_root(torch.cat([flat @ flat.mT for flat in flats]))
        for (shape, positions), flat in zip(shapes.items(), flats, strict=True):
            root, roots = roots[: len(positions)], roots[len(positions) :]
            steps = (root @ flat).to(matrices[positions[0]].dtype)
            for position, step in zip(positions, steps.mT if shape[0] > shape[1] else steps, strict=True):
                found[position] = step
    return found


def _lying(matrices: Sequence[Tensor]) -> Tensor:
    """Those of one shape in one tensor, no higher than wide."""
    stacked = torch.stack(list(matrices))
    flat = stacked.mT if stacked.shape[-2] > stacked.shape[-1] else stacked
    # Rounded products would let small singular values explode.
    return flat if torch.get_float32_matmul_precision() == "highest" else flat.double()


def _inverse_root(gram: Tensor) -> Tensor:
    """What matrices with the products `gram`, (n, side, side), are multiplied by so that their singular values are
    near 1."""
    a, b, c = COEFFICIENTS
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_(min=torch.finfo(gram.dtype).tiny)[:, None, None]
    gram = gram / norm
    root = norm.rsqrt()
    for iteration in range(N_ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        root = polynomial @ root if iteration else polynomial * root
        if iteration + 1 < N_ITERATIONS:
            gram = polynomial @ gram @ polynomial
    return root

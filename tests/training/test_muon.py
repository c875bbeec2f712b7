"""Muon against torch's own for linear layers, against singular values in double precision, and AdamW beside it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from monai.networks.nets import DynUNet, SwinUNETR
from torch import nn

from networks.registry import build_network
from pipeline.training.muon import Muon, hidden_matrices, orthogonalised


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_singular_values(matrix):
    """The five polynomials on the singular values themselves, of the matrix divided by its Frobenius norm."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(16, 27), (96, 640), (64, 8), (1, 40), (5, 5)])
@pytest.mark.parametrize("range_", [1, 1e5])
def test_singular_values_are_brought_near_one_whatever_the_shape(shape, range_):
    left, values, right = torch.linalg.svd(random(*shape), full_matrices=False)
    matrix = left @ torch.diag(values * torch.logspace(0, -torch.tensor(range_).log10(), len(values))) @ right
    torch.testing.assert_close(orthogonalised([matrix])[0].double(), by_singular_values(matrix), atol=5e-4, rtol=1e-3)
    if range_ == 1:
        assert 0.65 < torch.linalg.svdvals(orthogonalised([matrix])[0]).min() <= torch.linalg.svdvals(matrix).max()


def test_products_that_are_rounded_elsewhere_are_exact_here():
    left, _, right = torch.linalg.svd(random(96, 640), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -6, 96)) @ right
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = orthogonalised([matrix])[0]
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found.double(), by_singular_values(matrix), atol=1e-6, rtol=1e-4)


def test_a_gradient_of_zeros_moves_nothing():
    assert orthogonalised([torch.zeros(3, 4)])[0].equal(torch.zeros(3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_steps_of_a_linear_layer_are_those_of_torch_but_for_its_bfloat16():
    ours, theirs = (nn.Parameter(random(24, 80)) for _ in range(2))
    optimizers = (
        Muon([{"params": [ours]}], [ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    before = ours.detach().clone()
    for seed in range(4):
        ours.grad, theirs.grad = random(24, 80, seed=seed + 1), random(24, 80, seed=seed + 1)
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - before).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    assert (ours - before).norm() > 0.9 * moved


def test_a_convolution_is_the_matrix_of_its_first_axis_and_everything_else_adamws():
    network = nn.Sequential(nn.Conv3d(2, 6, 3), nn.InstanceNorm3d(6, affine=True), nn.Conv3d(6, 3, 1))
    by_hand = deepcopy(network)
    optimizer = Muon(
        [{"params": list(network.parameters())}], hidden_matrices(network, network[2]), lr=1e-2, weight_decay=0.1
    )
    matrix = nn.Parameter(by_hand[0].weight.detach().reshape(6, 54).clone())
    others = [p for name, p in by_hand.named_parameters() if name != "0.weight"]
    adamw = torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1)
    as_matrix = Muon([{"params": [matrix]}], [matrix], lr=1e-2, weight_decay=0.1)
    for seed in range(3):
        for number, (ours, theirs) in enumerate(zip(network.parameters(), by_hand.parameters(), strict=True)):
            ours.grad = random(*ours.shape, seed=10 * seed + number)
            theirs.grad = ours.grad.clone()
        matrix.grad = by_hand[0].weight.grad.reshape(6, 54)
        for each in (optimizer, adamw, as_matrix):
            each.step()
    assert torch.equal(network[0].weight.reshape(6, 54), matrix)
    for (name, ours), theirs in zip(network.named_parameters(), by_hand.parameters(), strict=True):
        if name != "0.weight":
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_matrices_of_one_shape_are_made_orthogonal_together_as_each_by_itself():
    matrices = random(3, 6, 20) * torch.tensor([1.0, 1e-6, 0.0])[:, None, None]
    for together, matrix in zip(orthogonalised(matrices), matrices, strict=True):
        torch.testing.assert_close(together, orthogonalised([matrix])[0])


def test_matrices_of_several_shapes_keep_their_places_and_their_own_singular_values():
    """Tall, wide and square, several of them with the same shorter side, of sizes far apart."""
    shapes = [(20, 6), (6, 20), (5, 9), (6, 6), (6, 20), (20, 6), (9, 5), (1, 6), (6, 31)]
    matrices = [random(*shape, seed=n) * 10.0 ** (n - 4) for n, shape in enumerate(shapes)]
    for found, matrix in zip(orthogonalised(matrices), matrices, strict=True):
        torch.testing.assert_close(found.double(), by_singular_values(matrix), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_that_share_the_matrices_take_the_steps_of_one(n_threads):
    networks = [nn.Sequential(*(nn.Conv3d(4, 4, 3, bias=False) for _ in range(5)), nn.Conv3d(4, 2, 1))]
    networks.append(deepcopy(networks[0]))
    before = torch.get_num_threads()
    for network, n in zip(networks, (1, n_threads), strict=True):
        for seed, parameter in enumerate(network.parameters()):
            parameter.grad = random(*parameter.shape, seed=seed)
        optimizer = Muon([{"params": list(network.parameters())}], hidden_matrices(network), lr=0.1, weight_decay=0.1)
        try:
            torch.set_num_threads(n)
            optimizer.step()
            assert torch.get_num_threads() == n
        finally:
            torch.set_num_threads(before)
    for one, several in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one, several, atol=1e-6, rtol=1e-5)


def test_the_head_and_grouped_convolutions_are_no_matrices():
    network = build_network(None, in_channels=1, n_classes=3, base_channels=4, light=False, target_size=(16, 16, 16))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    assert len(hidden_matrices(network, network.head)) == len(convolutions) - 1
    assert all(weight is not network.head.weight for weight in hidden_matrices(network, network.head))
    assert hidden_matrices(nn.Conv3d(4, 4, 3, groups=4)) == []
    dyn = DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2])
    assert {weight.ndim for weight in hidden_matrices(dyn)} == {5}
    swin = SwinUNETR(in_channels=1, out_channels=2, feature_size=12)
    assert {weight.ndim for weight in hidden_matrices(swin)} == {2, 5}


def test_a_kept_state_goes_on_as_if_nothing_had_happened():
    def optimizer_of(network):
        return Muon([{"params": list(network.parameters())}], hidden_matrices(network), lr=1e-2, weight_decay=0.1)

    def step(network, optimizer, seed):
        for number, parameter in enumerate(network.parameters()):
            parameter.grad = random(*parameter.shape, seed=seed + number)
        optimizer.step()

    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    optimizer = optimizer_of(network)
    step(network, optimizer, 0)
    other = deepcopy(network)
    resumed = optimizer_of(other)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for pair in ((network, optimizer), (other, resumed)):
        step(*pair, 7)
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)

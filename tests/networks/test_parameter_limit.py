"""Constructors are stopped at the first parameter too many, before memory is touched."""

from __future__ import annotations

import resource

import monai.networks.nets  # noqa: F401  its import takes memory that no constructor asked for
import pytest
import torch
from torch import nn

from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.parameter_limit import MOST_MODULES, SPARE_NUMBERS, limit_parameters


@pytest.mark.fault(
    "a best_model.ckpt that describes a SwinUNETR of billions of numbers", "refused before their memory is touched"
)
def test_a_giant_that_cannot_be_built_on_the_meta_device_is_refused_before_it_takes_memory(tmp_path):
    path = tmp_path / "best_model.ckpt"
    spec = {"_target_": "monai.networks.nets.SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 24000}
    torch.save({"format": 1, "state_dict": {"w": torch.zeros(10)}, "network": spec}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match=r"expected weights for a network of [\d,]+ numbers or more, found 10"):
        load_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.fault(
    "a best_model.ckpt whose network would compute a table that no memory holds", "refused before the table is made"
)
@pytest.mark.parametrize("hostile", [{"window_size": [30, 30, 30]}, {"depths": [50_000] * 900}])
def test_a_table_that_no_memory_holds_is_refused_before_it_is_made(tmp_path, hostile):
    path = tmp_path / "best_model.ckpt"
    spec = {"_target_": "monai.networks.nets.SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 12}
    torch.save({"format": 1, "state_dict": {"w": torch.zeros(10)}, "network": spec | hostile}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match=r"expected tables of at most 33,554,452 numbers, found [\d,]+"):
        load_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB


def test_a_table_that_a_trial_by_shapes_would_compute_is_refused_before_it_is_made(tmp_path):
    """MONAI's filter computes 3 · 10⁹ numbers of its kernel on the CPU, wherever the image is."""
    path = tmp_path / "best_model.ckpt"
    spec = {"_target_": "monai.networks.layers.GaussianFilter", "spatial_dims": 3, "sigma": 4e4, "truncated": 4e4}
    weights = {f"kernel_sigma_{axis}": torch.tensor(4e4) for axis in range(3)}
    torch.save({"format": 1, "state_dict": weights, "network": spec}, path)
    with pytest.raises(NetworkError, match=r"expected tables of at most 33,554,432 numbers, found 3,200,000,001"):
        load_network(path)


def test_a_network_of_the_weights_size_is_built():
    with limit_parameters(SPARE_NUMBERS):
        nn.Linear(1024, 2 * 1024, bias=False)
        nn.Linear(1024, 1024, bias=False)  # twice what is kept, and what may be dropped again


def test_one_number_more_is_refused_and_the_limit_ends_with_the_block():
    with pytest.raises(NetworkError, match="numbers or more, found 0"), limit_parameters(0):
        nn.Linear(SPARE_NUMBERS + 1, 1, bias=False, device="meta")
    nn.Linear(SPARE_NUMBERS + 1, 1, bias=False, device="meta")


def test_modules_without_parameters_are_counted_too():
    with pytest.raises(NetworkError, match="at most 50,000 modules"), limit_parameters(0):
        nn.Sequential(*[nn.Identity()] * (MOST_MODULES + 1))

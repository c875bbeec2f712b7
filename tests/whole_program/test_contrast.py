"""What the network sees of soft tissue: contrasts of 2 HU reach its features in every precision."""

from __future__ import annotations

import pytest
import torch

from networks.body_net import BodyNet
from transforms.intensity import scale_channel


def features(hu: torch.Tensor, dtype: torch.dtype, scaling: str) -> torch.Tensor:
    torch.manual_seed(0)
    network = BodyNet(1, 3, base_channels=8, light=True).eval()
    image = scale_channel(hu, "ct", window=(-1000, 1000), scaling=scaling)[None, None]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return network.features(image).float()


def two_scans() -> list[torch.Tensor]:
    """A body of 40 HU with a block of 40 and of 42 HU."""
    scans = [torch.full((16, 16, 16), 40.0) for _ in range(2)]
    scans[1][5:11, 5:11, 5:11] = 42
    return scans


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_scans_that_differ_by_2_hu_have_different_features(dtype):
    try:
        one, other = (features(hu, dtype, "centred") for hu in two_scans())
    except RuntimeError as error:
        pytest.skip(f"this processor cannot compute in {dtype}: {error}")
    assert (one - other).abs().max() > 0.01


def test_the_scaling_of_earlier_runs_lost_them_in_bfloat16():
    one, other = (features(hu, torch.bfloat16, "unit") for hu in two_scans())
    assert torch.equal(one, other)

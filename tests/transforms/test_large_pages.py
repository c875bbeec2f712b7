"""New memory has the shape, dtype and device that were asked for."""

from __future__ import annotations

import pytest
import torch

from transforms.large_pages import empty_like


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (1, 129, 128, 256)], ids=["small", "in large pages"])
def test_new_memory_can_be_written_and_is_contiguous(dtype, shape):
    new = empty_like(torch.zeros(2, dtype=dtype), shape)
    assert new.shape == shape
    assert new.dtype == dtype
    assert new.is_contiguous()
    new.fill_(7)
    assert new.flatten()[-1].item() == 7


def test_new_memory_lies_on_the_device_of_the_other():
    assert empty_like(torch.zeros(2, device="meta"), (3, 4)).device.type == "meta"

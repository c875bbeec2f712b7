"""The argmax in slabs against torch's over full logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.metrics.slab_argmax import segment_in_slabs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n_classes", [2, 71, 300])
def test_segmentation_in_slabs_is_the_argmax_of_the_logits(n_classes, dtype):
    features = torch.randn(2, 4, 9, 10, 11, dtype=dtype)
    head = nn.Conv3d(4, n_classes, 1, dtype=torch.float64)
    expected = head(features.double()).argmax(1)
    segmentation = segment_in_slabs(features, head, memory_budget_mb=0.01)
    assert segmentation.dtype == (torch.uint8 if n_classes <= 255 else torch.uint16)
    # In float32 two classes may come so close that rounding decides.
    assert (segmentation.long() == expected).double().mean() > 0.999
    last = features.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(segment_in_slabs(last, head).long(), segmentation.long())


def test_threads_find_the_same_segmentation_also_in_inference_mode():
    features, head = torch.randn(2, 4, 9, 10, 11), nn.Conv3d(4, 7, 1)
    alone = segment_in_slabs(features, head)
    torch.set_num_threads(2)
    with torch.inference_mode():
        assert torch.equal(segment_in_slabs(features, head, memory_budget_mb=0.01), alone)


def test_among_equal_logits_the_lowest_class_wins():
    logits = torch.randint(0, 3, (1, 5, 6, 7, 8)).float()
    expected = torch.from_numpy(logits.numpy().argmax(1))
    assert torch.equal(segment_in_slabs(logits, None).long(), expected)

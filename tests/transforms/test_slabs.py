"""The index of the highest score against torch.argmax, ties included."""

from __future__ import annotations

import pytest
import torch

from transforms.slabs import first_highest


@pytest.mark.parametrize("shape", [(5, 400), (71, 9, 8), (300, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_highest_is_torchs_argmax_and_the_first_among_equals(shape, dtype):
    # Few different values, so that most maxima are shared; torch.argmax returns the first of these on a CPU.
    scores = torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = scores.argmax(0)
    assert (scores.eq(scores.amax(0)).sum(0) > 1).any()
    assert torch.equal(first_highest(scores).long(), expected)


def test_infinite_scores_are_compared_too():
    scores = torch.tensor([[-torch.inf, 0.0], [1.0, torch.inf], [torch.inf, 2.0]])
    assert first_highest(scores).tolist() == [2, 1]

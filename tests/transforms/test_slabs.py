"""Slabs cover every voxel, threads change no result, and the highest score is torch.argmax's, ties included."""

from __future__ import annotations

import pytest
import torch

from transforms.slabs import counting_slabs, first_highest, segmentation_dtype, share_out, slab_bytes, slabs

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("n_voxels", [1, 255, 256, 257, 100_003])
@pytest.mark.parametrize("budget", [None, 0.001, 3])
def test_slabs_cover_every_voxel_once_within_their_budget(n_voxels, budget):
    for cuts in (slabs(n_voxels, 1000, CPU, budget), counting_slabs(n_voxels, CPU)):
        assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(n_voxels))
    longest = max(cut.stop - cut.start for cut in slabs(n_voxels, 1000, CPU, budget))
    assert longest <= max(256, slab_bytes(CPU, budget) // 1000)


def test_a_budget_is_shared_by_the_threads_of_a_cpu():
    torch.set_num_threads(2)
    assert slab_bytes(CPU, 8) == 4 * 2**20
    assert slab_bytes(torch.device("cuda"), 8) == 8 * 2**20


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("inference", [False, True])
def test_shares_come_in_order_and_leave_the_threads_as_they_were(n_threads, inference):
    torch.set_num_threads(n_threads)

    def work(pieces):
        return list(pieces), torch.get_num_threads(), torch.is_inference_mode_enabled()

    with torch.inference_mode(inference):
        shares = share_out(range(7), work, CPU)
    assert [piece for pieces, _, _ in shares for piece in pieces] == list(range(7))
    assert len(shares) == n_threads
    assert all(alone == 1 and mode == inference for _, alone, mode in shares)
    assert torch.get_num_threads() == n_threads


def test_a_segmentation_leaves_255_for_ignored_voxels():
    assert segmentation_dtype(255) == torch.uint8
    assert segmentation_dtype(256) == torch.uint16

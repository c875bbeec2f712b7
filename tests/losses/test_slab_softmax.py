"""One slab's softmax and gradient against torch's softmax and autograd."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.losses.slab_softmax import Coefficients, SlabBatch, differentiate, summarise


def batch(ignore_index=None, budget_mb=0.01):
    """Two samples of 700 voxels, six features and five classes, cut into slabs of 256 voxels at least."""
    features, head = torch.randn(2, 6, 7, 10, 10), nn.Conv3d(6, 5, 1)
    label = torch.randint(0, 5, (2, 700))
    weight, bias = head.weight.detach().flatten(1), head.bias.detach()
    return SlabBatch(features, weight, bias, label, ignore_index, budget_mb), head(features).detach().flatten(2), label


def test_the_slabs_cover_every_voxel_once_with_the_heads_logits():
    slabs, logits, label = batch()
    seen = torch.zeros(2, 700)
    for sample, voxels in slabs.pieces:
        slab = slabs.slab(sample, voxels)
        torch.testing.assert_close(slab.logits, logits[sample, :, voxels])
        assert torch.equal(slab.label, label[sample, voxels])
        seen[sample, voxels] += 1
    assert len(slabs.pieces) > 2
    assert bool((seen == 1).all())


def test_ignored_voxels_are_marked_and_have_a_class_that_exists():
    slabs, _, label = batch(ignore_index=3)
    slab = slabs.slab(0, slice(0, 300))
    assert torch.equal(slab.ignored, label[0, :300] == 3)
    assert not slab.label[slab.ignored].any()
    assert bool((label[0, :300] == 3).any())  # the caller's label is untouched


def test_the_summary_is_that_of_torchs_softmax():
    slabs, logits, label = batch()
    slab, expected = slabs.slab(1, slice(100, 400)), logits[1, :, 100:400]
    inverse, log_likelihood, correct = summarise(slab)
    torch.testing.assert_close(slab.logits * inverse, expected.softmax(0))
    torch.testing.assert_close(log_likelihood, expected.log_softmax(0).gather(0, label[1, None, 100:400])[0])
    assert torch.equal(correct, expected.argmax(0) == label[1, 100:400])


def test_the_gradient_is_autograds():
    slabs, logits, label = batch()
    own, anywhere, ce = torch.randn(3, 5)
    slab, leaf, y = slabs.slab(0, slice(0, 300)), logits[0, :, :300].clone().requires_grad_(), label[0, :300]
    p = leaf.softmax(0)
    likelihood = p.gather(0, y[None])[0]
    (own[y] * likelihood + anywhere @ p - ce[y] * likelihood.log()).sum().backward()
    inverse, *_ = summarise(slabs.slab(0, slice(0, 300)))
    differentiate(slab, inverse, Coefficients(own, anywhere, ce))
    torch.testing.assert_close(slab.logits, leaf.grad, rtol=1e-4, atol=1e-6)

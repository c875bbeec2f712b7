"""No operation of a training step or a prediction writes two results into one memory: a CPU may forgive it, CUDA does
not (see tests/support/like_cuda.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks.body_net import BodyNet
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.metrics.overlap import joint_histogram
from pipeline.metrics.slab_argmax import segment_in_slabs
from tests.support.like_cuda import LikeCuda
from transforms.augment import RandomAugmentd, Strengths
from transforms.restore import FeatureMap, restore

SIZE = (32, 36, 40)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_and_its_validation(precision, checkpointing):
    network, loss = BodyNet(n_classes=5, base_channels=4, checkpointing=checkpointing), SlabDiceCELoss(ignore_index=7)
    image, label = torch.rand(2, 1, *SIZE), torch.randint(0, 5, (2, 1, *SIZE), dtype=torch.uint8)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    with LikeCuda() as cuda:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            features = network.features(image)
        loss(features, network.head, label).loss.backward()
        optimiser.step()
        joint_histogram(label, segment_in_slabs(features, network.head)[:, None], 5)
    assert cuda.n_normalised > 0


def test_augmentation_of_a_batch():
    strengths = Strengths(spatial_probability=1, intensity_probability=1)
    augment = RandomAugmentd(SIZE, strengths, flips=(1, 2), on_device=True)
    batch = {"image": torch.rand(2, 1, *SIZE), "label": torch.randint(0, 5, (2, 1, *SIZE), dtype=torch.uint8)}
    with LikeCuda():
        augment.apply_to_batch(batch | {"draw": [augment({})["draw"] for _ in range(2)]})


@pytest.mark.parametrize("n_maps", [1, 2])
def test_restoring_a_segmentation(n_maps):
    maps = [FeatureMap(torch.randn(6, *SIZE), np.eye(4), torch.randn(9, 6), torch.randn(9)) for _ in range(n_maps)]
    with LikeCuda():
        restore(maps, (20, 24, 28), np.diag([1.5, 1.5, 1.4, 1]), probabilities_of=[1])

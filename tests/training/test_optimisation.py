"""The optimisers are torch's own, given the same gradients, and a run keeps the one that it began with."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from monai.losses import DiceCELoss

from pipeline.training.optimisation import Optimisation
from tests.support import tiny_module
from tests.support.tiny_module import batches, loader, module

pytestmark = tiny_module.QUIET

OURS_AND_TORCHS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.99, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OURS_AND_TORCHS)
def test_steps_are_those_of_torch_on_the_same_gradients(tmp_path, optimizer):
    trained = module(optimisation=Optimisation(optimizer, weight_decay=0.1))
    by_hand = deepcopy(trained.network)
    tiny_module.trainer(tmp_path).fit(trained, loader(3))
    steps = OURS_AND_TORCHS[optimizer](by_hand.parameters())
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    for batch in batches(3):
        steps.zero_grad()
        criterion(by_hand(batch["image"]), batch["label"]).backward()
        steps.step()
    for ours, theirs in zip(trained.network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)

"""Labels are counted as numpy counts them, and what a loss cannot take is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.losses.label_counts import count_labels, refuse_hidden_classes, refuse_unknown_labels

LABEL_TYPES = [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", LABEL_TYPES)
@pytest.mark.parametrize("ignore_index", [None, 4, 200])
def test_classes_are_counted_as_numpy_counts_them(dtype, ignore_index):
    values = np.random.default_rng(3).choice(
        [0, 1, 2, 3, 4, 5, 200], size=(2, 700), p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]
    )
    counts, n_unknown = count_labels(torch.from_numpy(values).to(dtype), 5, ignore_index)
    kept = np.where(values == ignore_index, 1000, values)
    assert counts.tolist() == [[int((sample == c).sum()) for c in range(5)] for sample in kept]
    assert int(n_unknown) == int(((kept != 1000) & (kept >= 5)).sum())


def test_a_negative_label_is_no_class():
    assert int(count_labels(torch.tensor([[-1, 0, 2]]), 3, None)[1]) == 1
    with pytest.raises(ValueError, match=r"expected classes 0 … 2 or ignore_index None, found -1; remap the label"):
        refuse_unknown_labels(torch.tensor([[-1, 0, 2]]), 3, None)
    refuse_unknown_labels(torch.tensor([[-1, 0, 2]]), 3, -1)


def test_a_class_that_a_sample_does_not_annotate_is_named():
    counts, _ = count_labels(torch.tensor([[0, 1, 1], [0, 2, 2]]), 3, None)
    annotated = torch.tensor([[True, True, False], [True, False, True]])
    refuse_hidden_classes(counts, annotated)
    with pytest.raises(ValueError, match="the label of sample 1 holds, found none of class 2"):
        refuse_hidden_classes(counts, annotated[[0, 0]])

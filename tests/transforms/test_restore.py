"""The way back: equal to resampling full logits, on every orientation, from features that encode a label."""

from __future__ import annotations

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch.nn import functional as F

import transforms.restore
from transforms.chains import RAS
from transforms.resize import ResizeLabeld, align_grids
from transforms.restore import FeatureMap, FeatureStream, RestoreError, restore, slice_axis

ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.8, 1.1, 2.5]), [-31.0, 12.5, 300.25]
)


def oriented(shape, orientation, affine=OBLIQUE):
    """The affine and shape of a grid whose axes are permuted and flipped."""
    index = nib.orientations.inv_ornt_aff(orientation, shape)
    order = np.argsort(orientation[:, 0]).astype(int)
    return affine @ index, tuple(np.array(shape)[order].tolist())


def chain_grid(shape, affine, target, keep_aspect=False):
    """The affine of the target grid, made by the chain's own transforms."""
    label = MetaTensor(torch.zeros(1, *shape, dtype=torch.uint8), affine=torch.from_numpy(affine))
    ras = Orientation(axcodes="RAS", labels=RAS)(label)
    return ResizeLabeld("label", target, keep_aspect=keep_aspect)({"label": ras})["label"].affine.numpy()


def by_torch(logits, shape, affine, target_affine):
    """Full logits brought to the source's grid by torch's own interpolation and flips."""
    matrix = np.linalg.solve(target_affine, affine)[:3, :3]
    order = np.abs(matrix).argmax(0)
    logits = logits.permute(0, *(1 + order).tolist())
    flipped = [1 + axis for axis in range(3) if matrix[order[axis], axis] < 0]
    return F.interpolate(logits.flip(flipped)[None], shape, mode="trilinear", align_corners=False)[0]


def random_map(target, affine, n_features=4, n_classes=6, dtype=torch.float64):
    return FeatureMap(
        torch.randn(n_features, *target, dtype=dtype),
        affine,
        torch.randn(n_classes, n_features, dtype=torch.float64),
        torch.randn(n_classes, dtype=torch.float64),
    )


def logits_of(one):
    return torch.einsum("cf,fijk->cijk", one.weight, one.features.double()) + one.bias.view(-1, 1, 1, 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o.astype(int).ravel())))
def test_restoring_features_equals_the_argmax_of_resampled_logits_in_every_orientation(orientation):
    affine, shape = oriented((11, 8, 13), orientation)
    target = (7, 9, 18)
    one = random_map(target, chain_grid(shape, affine, target))
    found = restore([one], shape, affine, memory_budget_mb=0.001).segmentation
    expected = by_torch(logits_of(one), shape, affine, one.affine).argmax(0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("budget", [0.0001, 0.01, None])
def test_the_slab_size_and_the_number_of_threads_change_nothing(budget):
    shape, target = (9, 10, 11), (6, 7, 8)
    one = random_map(target, OBLIQUE @ align_grids(shape, target).matrix, dtype=torch.bfloat16)
    alone = restore([one], shape, OBLIQUE).segmentation
    torch.set_num_threads(3)
    np.testing.assert_array_equal(restore([one], shape, OBLIQUE, memory_budget_mb=budget).segmentation, alone)
    assert torch.get_num_threads() == 3


def test_without_a_head_the_features_are_the_logits():
    shape, target = (9, 10, 11), (6, 7, 8)
    grid = OBLIQUE @ align_grids(shape, target).matrix
    logits = torch.randn(300, *target, dtype=torch.float64)
    found = restore([FeatureMap(logits, grid)], shape, OBLIQUE).segmentation
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, by_torch(logits, shape, OBLIQUE, grid).argmax(0))


def test_an_ensemble_takes_the_mean_of_the_probabilities_of_networks_with_other_grids():
    shape = (9, 10, 11)
    sizes = {(6, 7, 8): 4, (12, 9, 10): 3}
    maps = [random_map(t, OBLIQUE @ align_grids(shape, t).matrix, n) for t, n in sizes.items()]
    expected = sum(by_torch(logits_of(m), shape, OBLIQUE, m.affine).softmax(0) for m in maps) / 2
    found = restore(maps, shape, OBLIQUE, probabilities_of=[2, 5])
    np.testing.assert_array_equal(found.segmentation, expected.argmax(0))
    for c in (2, 5):
        np.testing.assert_allclose(found.probabilities[c] / 255, expected[c], atol=0.5 / 255 + 1e-6)


def test_a_mirrored_pass_is_a_mirrored_affine():
    shape, target = (9, 10, 11), (6, 7, 8)
    one = random_map(target, OBLIQUE @ align_grids(shape, target).matrix)
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = target[0] - 1
    other = FeatureMap(one.features.flip(1), one.affine @ mirror, one.weight, one.bias)
    np.testing.assert_array_equal(
        restore([one], shape, OBLIQUE).segmentation, restore([other], shape, OBLIQUE).segmentation
    )


def test_the_padding_of_a_kept_aspect_takes_nothing_from_a_structure_that_leaves_the_scan():
    shape = (32, 32, 18)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[:, 8:-8] = 1
    stored = ResizeLabeld("label", (8, 8, 8), keep_aspect=True)({"label": MetaTensor(label, affine=torch.eye(4))})
    one_hot = torch.stack([stored["label"][0] == c for c in range(2)]).float().as_tensor()
    assert not one_hot[1, ..., 0].any()  # padding
    affine = stored["label"].affine.numpy()
    stream = FeatureStream(lambda start, stop: one_hot[..., start:stop], (8, 8, 8), 2, affine, 2)
    for one in (FeatureMap(one_hot, affine), stream):
        assert np.array_equal(restore([one], shape, np.eye(4)).segmentation, label[0].numpy())


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_a_perfect_prediction_on_a_finer_grid_comes_back_exactly(keep_aspect):
    affine, shape = oriented((8, 9, 10), ORIENTATIONS[29], np.diag([2.0, 2.0, 2.0, 1.0]))
    target = (30, 30, 30)
    label = torch.randint(0, 5, (1, *shape), dtype=torch.uint8)
    chain = ResizeLabeld("label", target, keep_aspect=keep_aspect)
    ras = Orientation(axcodes="RAS", labels=RAS)(MetaTensor(label, affine=torch.from_numpy(affine)))
    small = chain({"label": ras})["label"]
    features = F.one_hot(small[0].as_tensor().long(), 5).movedim(-1, 0).float()
    found = restore([FeatureMap(features, small.affine.numpy())], shape, affine).segmentation
    assert (found == label[0].numpy()).mean() > 0.999


def stream_of(one, affine, shape):
    """The map's features slice by slice, in rising order only."""
    axis, asked = slice_axis(affine, shape, one.affine), [0]

    def slices(start, stop):
        assert asked[-1] <= start
        asked.append(start)
        return one.features.narrow(1 + axis, start, stop - start)

    return FeatureStream(slices, one.features.shape[1:], axis, one.affine, 6, one.weight, one.bias)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=lambda o: "".join(map(str, o.astype(int).ravel())))
def test_features_that_come_slice_by_slice_give_the_same_as_all_at_once(orientation):
    affine, shape = oriented((11, 80, 70), orientation)
    maps = [random_map(target, chain_grid(shape, affine, target)) for target in ((7, 19, 18), (15, 90, 31))]
    for streamed in ((0,), (0, 1), (1,)):
        these = maps[: max(streamed) + 1]
        those = [stream_of(one, affine, shape) if i in streamed else one for i, one in enumerate(these)]
        expected = restore(these, shape, affine, probabilities_of=[2])
        found = restore(those, shape, affine, probabilities_of=[2])
        np.testing.assert_array_equal(found.segmentation, expected.segmentation)
        np.testing.assert_array_equal(found.probabilities[2], expected.probabilities[2])


@pytest.mark.parametrize("longest", [0, 1])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::9], ids=lambda o: "".join(map(str, o.astype(int).ravel())))
def test_a_scan_that_is_long_along_another_axis_is_restored_along_that(longest, orientation):
    affine, shape = oriented(((90, 9, 11), (9, 90, 11))[longest], orientation)
    one = random_map((15, 15, 15), chain_grid(shape, affine, (15, 15, 15)))
    stream, read = stream_of(one, affine, shape), []
    slices = stream.slices
    stream = replace(stream, slices=lambda start, stop: read.append(stop - start) or slices(start, stop))
    expected = restore([one], shape, affine, probabilities_of=[2])
    found = restore([stream], shape, affine, probabilities_of=[2])
    assert max(read) < 10  # of 15 slices along the long axis
    assert found.segmentation.flags.f_contiguous
    assert found.segmentation.shape == shape
    assert np.mean(found.segmentation != expected.segmentation) < 1e-3  # sums in another order
    np.testing.assert_allclose(found.probabilities[2], expected.probabilities[2], atol=1)


def test_streams_along_different_axes_are_refused():
    one = random_map((4, 5, 6), OBLIQUE @ align_grids((7, 8, 9), (4, 5, 6)).matrix)
    along = [
        FeatureStream(lambda start, stop: one.features, (4, 5, 6), axis, one.affine, 6, one.weight, one.bias)
        for axis in (2, 0)
    ]
    with pytest.raises(RestoreError, match="along axis 0, expected axis 2"):
        restore(along, (7, 8, 9), OBLIQUE)


def test_the_order_of_the_result_is_the_order_of_files():
    one = random_map((4, 5, 6), OBLIQUE @ align_grids((7, 8, 9), (4, 5, 6)).matrix)
    found = restore([one], (7, 8, 9), OBLIQUE)
    assert found.segmentation.shape == (7, 8, 9)
    assert found.segmentation.flags.f_contiguous


def test_what_cannot_be_restored_is_refused_in_one_sentence():
    one = random_map((4, 5, 6), OBLIQUE @ align_grids((7, 8, 9), (4, 5, 6)).matrix)
    with pytest.raises(RestoreError, match="turned or sheared"):
        restore([one], (7, 8, 9), np.eye(4))
    with pytest.raises(RestoreError, match="6 and 5 classes"):
        restore([one, FeatureMap(one.features, one.affine, one.weight[:5], one.bias[:5])], (7, 8, 9), OBLIQUE)
    with pytest.raises(RestoreError, match="class 6"):
        restore([one], (7, 8, 9), OBLIQUE, probabilities_of=[6])
    with pytest.raises(RestoreError, match="at least one"):
        restore([], (7, 8, 9), OBLIQUE)
    with pytest.raises(RestoreError, match="found"):
        restore([FeatureMap(one.features, one.affine, one.weight[:, :3])], (7, 8, 9), OBLIQUE)


def structures(target, affine, n_classes=9, n_features=6, noise=0.2, layout=torch.contiguous_format):
    """Features of boxes in a background, so that few voxels lie between different classes."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(target, dtype=torch.long)
    for c in range(1, n_classes):
        low = [int(torch.randint(n - 3, (), generator=generator)) for n in target]
        label[tuple(slice(start, start + 4) for start in low)] = c
    code = F.normalize(torch.randn(n_classes, n_features, dtype=torch.float64, generator=generator))
    features = code[label].permute(3, 0, 1, 2) + noise * torch.randn(n_features, *target, generator=generator)
    features = features[None].contiguous(memory_format=layout)[0]
    return FeatureMap(features, affine, 8 * code, torch.zeros(n_classes, dtype=torch.float64))


@pytest.mark.parametrize(
    ("orientation", "noise", "layout"),
    [
        (ORIENTATIONS[0], 0.01, torch.contiguous_format),
        (ORIENTATIONS[13], 0.1, torch.channels_last_3d),
        (ORIENTATIONS[38], 0.1, torch.contiguous_format),
        (ORIENTATIONS[0], 2.0, torch.channels_last_3d),
    ],
    ids=["ijk", "ikj channels-last", "kij", "noise"],
)
def test_what_lies_between_network_voxels_of_one_class_equals_the_argmax_of_resampled_logits(
    orientation, noise, layout, monkeypatch
):
    affine, shape = oriented((47, 39, 53), orientation)
    target = (17, 15, 20)
    one = structures(target, chain_grid(shape, affine, target), noise=noise, layout=layout)
    whole = []
    restore_slice = transforms.restore._restore_slice
    monkeypatch.setattr(transforms.restore, "_restore_slice", lambda *a, **k: (whole.append(1), restore_slice(*a, **k)))
    found = restore([one], shape, affine, memory_budget_mb=0.1).segmentation
    expected = by_torch(logits_of(one), shape, affine, one.affine).argmax(0)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 4
    assert bool(whole) == (noise == 2.0)  # noise has no two voxels alike
    monkeypatch.undo()
    np.testing.assert_array_equal(
        restore([replace(one, weight=None, bias=None, features=logits_of(one))], shape, affine).segmentation, found
    )
    axis = slice_axis(affine, shape, one.affine)
    stream = FeatureStream(
        lambda start, stop: one.features.narrow(1 + axis, start, stop - start),
        target, axis, one.affine, one.n_classes, one.weight, one.bias,
    )  # fmt: skip
    np.testing.assert_array_equal(restore([stream], shape, affine).segmentation, found)

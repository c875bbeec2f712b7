"""The voxel map of a move in millimetres, and sampling under it against scipy and MONAI."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import Affine
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transforms import warp
from transforms.warp import affine_map, sample_affine

SIZE = (22, 26, 30)
SPACING = (2.0, 1.5, 1.0)


def blocks(n_classes, size=SIZE):
    """A label map of coherent regions, (1, I, J, K) uint8."""
    noise = np.random.default_rng(3).normal(size=(n_classes, *size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)).argmax(0).astype(np.uint8))[None]


def moved_matrix():
    return affine_map(
        SIZE, SPACING, rotation_deg=(9, -14, 21), scale=(1.1, 0.9, 1.2), translation=(0.06, -0.04, 0.03), flips=(1,)
    )


def test_sampling_equals_scipy_linear_and_nearest():
    image, label, matrix = torch.rand(2, *SIZE) - 4, blocks(5), moved_matrix()
    ours, our_label = sample_affine(image, label, matrix)
    for channel, expected in zip(ours, image.numpy(), strict=True):
        theirs = ndimage.affine_transform(expected, matrix, order=1, mode="grid-constant", cval=expected.min())
        np.testing.assert_allclose(channel, theirs, atol=1e-4)
    theirs = ndimage.affine_transform(label[0].numpy(), matrix, order=0, mode="grid-constant", cval=0)
    assert (our_label[0].numpy() == theirs).mean() > 0.999  # float32 and float64 may round half a voxel apart


def test_sampling_equals_monai_affine():
    image, matrix = torch.rand(1, *SIZE), moved_matrix()
    to_centre = np.eye(4)
    to_centre[:3, 3] = (np.array(SIZE) - 1) / 2
    centred = np.linalg.inv(to_centre) @ matrix @ to_centre
    theirs, _ = Affine(affine=centred, mode="bilinear", padding_mode="zeros")(image - image.min())
    ours, _ = sample_affine(image - image.min(), None, matrix)
    torch.testing.assert_close(ours, theirs.as_tensor(), atol=2e-4, rtol=0)


def test_a_point_turns_grows_and_moves_in_millimetres():
    """90° about k takes the i axis to the j axis, by mm: 8 mm = 4 voxels of 2 mm become 5.33 voxels of 1.5 mm."""
    matrix = affine_map(SIZE, SPACING, rotation_deg=(0, 0, 90), translation=(0, 0, 0.1))
    centre = (np.array(SIZE) - 1) / 2
    moved = np.linalg.inv(matrix) @ [*np.add(centre, (4, 0, 0)), 1]
    np.testing.assert_allclose(moved[:3] - centre, [0, 8 / 1.5, 3], atol=1e-9)
    grown = np.linalg.inv(affine_map(SIZE, SPACING, scale=(1.5, 1, 1), flips=(0,))) @ [*np.add(centre, (4, 2, 1)), 1]
    np.testing.assert_allclose(grown[:3] - centre, [-6, 2, 1], atol=1e-9)


def test_many_planes_at_once_are_the_same_as_few_and_as_parts_of_one(monkeypatch):
    image, label, matrix = torch.rand(1, *SIZE), blocks(5), moved_matrix()
    at_once = sample_affine(image, label, matrix)
    for n_voxels in (3 * SIZE[1] * SIZE[2], SIZE[1] * SIZE[2], 11 * SIZE[2]):
        monkeypatch.setitem(warp.VOXELS_AT_ONCE, "cpu", n_voxels)
        for one, other in zip(at_once, sample_affine(image, label, matrix), strict=True):
            assert torch.equal(one, other)


class _NewMemory(TorchDispatchMode):
    """Adds up the bytes of every result that does not lie in the memory of an argument."""

    def __init__(self):
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def memory(tree):
            return {
                x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                for x in tree_leaves(tree)
                if isinstance(x, torch.Tensor)
            }

        result = func(*args, **(kwargs or {}))
        given = memory((args, kwargs))
        self.n_bytes += sum(n for address, n in memory(result).items() if address not in given)
        return result


def test_blocks_are_computed_in_the_memory_of_the_first(monkeypatch):
    """New memory for every result of every block once took longer to get than to compute in."""
    size = (40, 40, 40)
    monkeypatch.setitem(warp.VOXELS_AT_ONCE, "cpu", 40 * 40)
    image, label = torch.rand(1, *size), blocks(5, size)
    with _NewMemory() as new:
        sample_affine(image, label, affine_map(size, (1, 1, 1), rotation_deg=(9, -14, 21)))
    assert new.n_bytes < 3 * image.nbytes  # once 24 times

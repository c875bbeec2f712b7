"""Patches are multiples, get shorter evenly, and keep to what a config takes."""

import itertools
import math

import numpy as np

from pipeline.planning.patch_sizes import multiple_of, patch_around, scaled, shorter_ones


def random_patches(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        multiple = tuple(int(2**k) for k in rng.integers(0, 6, 3))
        size = tuple(int(max(4 * m, k)) for m, k in zip(multiple, rng.integers(1, 400, 3), strict=True))
        yield size, multiple, patch_around(size, multiple)


def test_a_multiple_is_the_product_of_the_strides():
    assert multiple_of([(2, 2, 1), (2, 2, 2), (1, 2, 1)]) == (4, 8, 2)
    assert multiple_of([]) == (1, 1, 1)


def test_a_patch_around_a_volume_holds_it_and_no_more():
    for size, multiple, patch in random_patches(100):
        for n, m, edge in zip(size, multiple, patch, strict=True):
            assert edge % m == 0
            assert max(n, 8) <= edge < max(n, 8) + m


def test_scaled_patches_lie_between_two_multiples_and_the_patch():
    for _, multiple, patch in random_patches(100):
        for share in (0.4, 0.6, 0.8, 1.0):
            for n, m, edge in zip(patch, multiple, scaled(patch, share, multiple), strict=True):
                assert edge % m == 0
                assert max(4, 2 * m) <= edge <= n
                assert abs(edge - share * n) <= m / 2 or edge == max(4, 2 * m)
        assert scaled(patch, 1.0, multiple) == patch


def test_shorter_patches_lose_one_multiple_at_a_time_down_to_the_least():
    for size, multiple, patch in random_patches(30):
        found = list(shorter_ones(patch, size, multiple))
        assert found[0] == patch
        assert found[-1] == tuple(min(n, max(8, 2 * m)) for n, m in zip(patch, multiple, strict=True))
        for before, after in itertools.pairwise(found):
            (axis,) = [i for i in range(3) if before[i] != after[i]]
            assert before[axis] - after[axis] == multiple[axis]
        shares = [max(n / s for n, s in zip(each, size, strict=True)) for each in found]
        assert all(math.isclose(a, b) or a > b for a, b in itertools.pairwise(shares))

"""The benchmark of memory in the course of many epochs and predictions."""

from __future__ import annotations

import pytest

from benchmarks import growth


def test_growth_is_that_of_the_second_half():
    held = {number: 10**9 + 4096 * number + (10**8 if number < 100 else 0) for number in range(1, 201, 3)}
    assert growth.growth_per_unit(held) == pytest.approx(4096)
    assert growth.growth_per_unit(dict.fromkeys(range(1, 201), 5)) == 0


def test_memory_is_noted_after_every_prediction(tmp_path):
    found = growth.predictions(str(tmp_path), n=2)
    assert [name for name in found.facts if name.startswith("MB")] == ["MB_after_1", "MB_after_2"]
    assert 100 < found.facts["MB_after_2"] < 20_000
    assert found.seconds[0] > 0

"""The time of preparing a data set follows from that of two cases."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pipeline.cache.case_store import CaseStore
from pipeline.checks.screening import screen
from pipeline.training.preparing_time import preparing_s
from tests.support.volumes import Folder, configured


@pytest.mark.parametrize("cores", [2, 64])
def test_all_cases_take_what_their_voxels_take_on_several_cores(tmp_path, monkeypatch, cores):
    folder = Folder(tmp_path)
    folder.write()
    patches = {"mode": "patch", "spacing_mm": (1.5, 1.5, 1.5), "cache_dir": str(tmp_path / "cache")}
    config = configured(folder.root / "cases.json", data=patches)
    screened = screen(config)
    voxels = {case.case: math.prod(case.images[0].shape) for case in screened.cases}
    before = sorted((tmp_path / "cache").iterdir())
    monkeypatch.setattr("pipeline.compute.memory.available_cores", lambda: cores)
    monkeypatch.setattr("pipeline.compute.memory.free_memory_bytes", lambda: 2**40)
    clock_s = [0.0]
    monkeypatch.setattr("pipeline.training.preparing_time.time", SimpleNamespace(perf_counter=lambda: clock_s[0]))
    prepared = CaseStore._prepared

    def timed(self, index, name):
        clock_s[0] += 1e-3 * voxels[self.case(index)] + (5 if clock_s[0] == 0 else 0)  # the first loads libraries
        return prepared(self, index, name)

    monkeypatch.setattr(CaseStore, "_prepared", timed)
    used = [voxels[case] for case in (*screened.split.train, *screened.split.val)]
    at_once = min(cores, len(used))  # no core shares a case with another
    assert preparing_s(screened, config.data) == pytest.approx(1e-3 * sum(used) / at_once)
    assert sorted((tmp_path / "cache").iterdir()) == before

"""A real step, in a process of its own, gives memory and time; a step that fails says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.check import check, to_text
from tests.support.volumes import Folder, configured


def test_one_real_step_gives_memory_and_time(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write()
    report = check(configured(folder.root / "cases.json", data={"cache_dir": "cache"}), workers=1)
    assert report.findings == ()
    assert report.estimate is not None
    trial = report.estimate.trial
    assert trial is not None
    assert trial.step_s > 0
    assert 1e8 < trial.peak_bytes < report.estimate.memory_bytes  # torch alone takes more than 100 MB
    assert report.estimate.epoch_s == pytest.approx(2 * trial.step_s + 2 * trial.validation_s)
    assert "GB at its peak" in to_text(report)


@pytest.mark.parametrize("batch", [1, 2])
def test_patches_before_the_final_ones_that_a_network_cannot_be_trained_on_are_named(
    tmp_path: Path, batch: int
) -> None:
    """Batch normalisation of one value a channel: torch refuses 8³ voxels, halved three times, one patch at a time."""
    unet = {"_target_": "UNet", "channels": [2, 4, 8, 8], "strides": [2, 2, 2], "norm": "batch"}
    patches = {"mode": "patch", "spacing_mm": (2.0, 2.0, 3.0), "target_size": (16, 16, 16)}
    folder = Folder(tmp_path)
    config = configured(
        folder.write(),
        model={"network": unet},
        data=patches | {"cache_dir": "cache", "patch_growth": [[8, 8, 8, batch, 1]]},
    )
    found = [finding.found for finding in check(config, workers=1).findings]
    assert len(found) == (batch == 1)
    for words in ("data.patch_growth", "8×8×8 voxels in batches of 1", "1 value per channel"):
        assert all(words in text for text in found)


def test_a_network_that_does_not_exist_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write()
    config = configured(
        folder.root / "cases.json",
        model={"network": {"_target_": "monai.networks.nets.SegRasNet"}},
        data={"cache_dir": "cache"},
    )
    report = check(config, workers=1)
    (finding,) = report.findings
    assert finding.kind == "step_failed"
    assert "SegRasNet" in finding.found
    assert report.estimate is not None
    assert report.estimate.trial is None

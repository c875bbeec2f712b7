"""A real step, in a process of its own, gives memory and time; a step that fails says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from networks.errors import NetworkError
from pipeline.check import check, to_text
from pipeline.training.trainer import quiet_lightning
from pipeline.training.trial_step import take_step
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


def test_patches_before_the_final_ones_that_a_network_cannot_be_trained_on_are_named() -> None:
    """Batch normalisation of one value a channel: torch refuses 8³ voxels, halved three times, one patch at a time."""
    unet = {"_target_": "UNet", "channels": [2, 4, 8, 8], "strides": [2, 2, 2], "norm": "batch"}
    patches = {"mode": "patch", "spacing_mm": (2.0, 2.0, 3.0), "target_size": (16, 16, 16)}
    alone, together = (
        configured(Path("scans"), model={"network": unet}, data=patches | {"patch_growth": [[8, 8, 8, batch, 1]]})
        for batch in (1, 2)
    )
    with quiet_lightning():
        assert take_step(together, in_channels=1, n_classes=3).step_s > 0
        with pytest.raises(NetworkError, match=r"patch_growth: .* 8×8×8 voxels in batches of 1 .*1 value per channel"):
            take_step(alone, in_channels=1, n_classes=3)


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

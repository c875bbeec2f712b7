"""The geometry proof: sound chains pass, and each kind of fault that it is there for is really found."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import check_geometry as command
from pipeline.check_geometry import awkward_grids, chain_of, check_geometry, judge, to_json, to_text
from pipeline.cli.main import main
from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.phantoms import round_trip as round_trips
from pipeline.phantoms.phantom import ORIENTATIONS
from pipeline.phantoms.round_trip import round_trip
from transforms.chains import ChainError, preprocessing_arguments

SMALL = {"target_size": (64, 64, 72)}
GRIDS = {grid.name: grid for grid in awkward_grids()}


def few_grids(*names):
    return lambda: [GRIDS[name] for name in names]


def test_all_48_orientations_and_tilted_uneven_and_odd_grids_are_tried():
    names = set(GRIDS)
    assert {f"orientation {code}" for code in ORIENTATIONS} <= names
    assert sum(name.startswith("oblique") for name in names) == 6
    handedness = {np.sign(np.linalg.det(grid.affine[:3, :3])) for grid in GRIDS.values()}
    assert handedness == {-1, 1}


@pytest.mark.parametrize("name", ["orientation SLA", "orientation IRP", "oblique PIR 12° -20° 33°", "thick slices"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_nothing_moves_on_the_way_there_and_back(name, keep_aspect):
    trip = round_trip(GRIDS[name], SMALL | {"keep_aspect": keep_aspect})
    assert judge(trip) == []
    assert max(s.shift_mm for s in trip.structures) < 0.1
    assert [s.lies_at for s in trip.structures if s.radius_mm >= 8] == [
        "ball_60", "ball_20", "ball_8", "marker_left", "marker_right",
    ]  # fmt: skip


@pytest.mark.parametrize("intensity", ["mr", "zscore", "none", ["ct", "none"], ["zscore", "ct"]])
def test_the_intensity_of_a_chain_does_not_disturb_the_proof(intensity):
    assert judge(round_trip(GRIDS["orientation RAS"], SMALL | {"intensity": intensity})) == []


def with_moved_affine(monkeypatch, move):
    """Let the chain claim another place for its result than the true one."""
    true_chain = round_trips.preprocessing_chain

    def wrong_chain(**arguments):
        def run(item):
            case = true_chain(**arguments)(item)
            for key in ("image", "label"):
                case[key].affine = torch.from_numpy(move(case[key].affine.numpy().copy()))
            return case

        return run

    monkeypatch.setattr(round_trips, "preprocessing_chain", wrong_chain)


def test_half_a_voxel_of_shift_is_found(monkeypatch):
    def shifted(affine):
        affine[:3, 3] += affine[:3, :3] @ [0.5, 0, 0]
        return affine

    with_moved_affine(monkeypatch, shifted)
    faults = judge(round_trip(GRIDS["orientation RAS"], SMALL))
    assert "orientation RAS: the image at ball_60 is 1.9" in faults[0]
    assert any("the label of ball_60 is " in fault for fault in faults)


def test_a_shift_of_a_fifth_of_a_millimetre_is_found(monkeypatch):
    with_moved_affine(monkeypatch, lambda affine: affine + _step(0.2))
    assert judge(round_trip(GRIDS["orientation RAS"], SMALL))


def _step(mm):
    step = np.zeros((4, 4))
    step[1, 3] = mm
    return step


def test_swapped_sides_are_found_by_name(monkeypatch):
    def mirrored(affine):
        far = affine @ [SMALL["target_size"][0] - 1, 0, 0, 1]
        affine[:3, 0] *= -1
        affine[:3, 3] = far[:3]
        return affine

    with_moved_affine(monkeypatch, mirrored)
    faults = judge(round_trip(GRIDS["orientation LPS"], SMALL))
    assert "orientation LPS: the label of marker_left came back at marker_right" in faults
    assert "orientation LPS: the label of marker_right came back at marker_left" in faults


def test_a_label_resized_by_plain_nearest_is_found(monkeypatch):
    # What MONAI's Resized(mode="nearest") does: index floor(i · scale), half a voxel off the affine that it reports.
    true_chain = round_trips.preprocessing_chain

    def nearest_chain(**arguments):
        def run(item):
            case = true_chain(**arguments)(item)
            source = true_chain(**(arguments | {"target_size": GRIDS["orientation RAS"].shape}))(item)["label"]
            plain = torch.nn.functional.interpolate(source.as_tensor()[None].float(), size=SMALL["target_size"])[0]
            case["label"].copy_(plain.to(torch.uint8))
            return case

        return run

    monkeypatch.setattr(round_trips, "preprocessing_chain", nearest_chain)
    faults = judge(round_trip(GRIDS["orientation RAS"], SMALL))
    assert len(faults) == 1
    assert "the label of ball_60" in faults[0]


def test_the_documented_size_reaches_the_documented_dice(monkeypatch):
    monkeypatch.setattr(command, "awkward_grids", few_grids("documented scan", "odd sizes"))
    steps = []
    report = check_geometry(progress=lambda done, total: steps.append((done, total)))
    assert report.failures == ()
    assert report.exit_code == 0
    assert steps == [(1, 2), (2, 2)]
    for name, least in {"ball_60": 0.99, "ball_20": 0.97, "ball_8": 0.94, "ball_4": 0.87}.items():
        assert report.best_dice[name] >= least
    text, document = to_text(report), json.loads(to_json(report))
    assert "ball of 4 mm radius  0.92" in text
    assert text.endswith("Nothing is swapped or moved.")
    assert document["sound"]
    assert document["trips"][0]["target_size"] == [160, 160, 256]


def test_a_training_on_patches_is_judged_at_its_voxel_size_not_at_its_patch(tmp_path, monkeypatch, capsys):
    """A scan whose voxels have that size comes back whole, however small the patch."""
    monkeypatch.setattr(command, "awkward_grids", few_grids("odd sizes", "orientation SLA", "thick slices"))
    settings = tmp_path / "plan.yaml"
    settings.write_text("data: {mode: patch, spacing_mm: [2.3, 2.1, 2.41], target_size: [16, 24, 16]}\n")
    assert main(["check-geometry", str(settings)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Best Dice that a perfect network could score at voxels of 2.3×2.1×2.41 mm, from ")
    assert "  ball of 4 mm radius  1.000" in text
    assert main(["check-geometry", str(settings), "--target_size", "64", "64", "72"]) == 0
    text = capsys.readouterr().out
    assert "could score at 64×64×72, from" in text
    assert "  ball of 60 mm radius  1.000" not in text


def test_a_failing_chain_ends_with_its_faults(monkeypatch):
    monkeypatch.setattr(command, "awkward_grids", few_grids("orientation RAS"))
    monkeypatch.setattr(command, "LARGEST_SHIFT_MM", -1.0)
    report = check_geometry(SMALL)
    assert report.exit_code == 1
    assert "FAILED orientation RAS: the image at ball_60" in to_text(report)


@pytest.mark.fault(
    "a preprocessing chain that mirrors or shifts its volumes", "check-geometry names it and ends with 1"
)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda volume: volume.flip(1), "the label of marker_left came back at marker_right"),
        (lambda volume: volume.roll(1, 3), "the image at ball_60 is "),
    ],
    ids=["mirrored", "shifted"],
)
def test_the_command_fails_on_voxels_that_moved_under_their_affine(tmp_path, monkeypatch, capsys, spoil, words):
    true_chain = round_trips.preprocessing_chain

    def spoilt_chain(**arguments):
        def run(item):
            case = true_chain(**arguments)(item)
            for key in ("image", "label"):
                case[key].copy_(spoil(case[key].as_tensor()))
            return case

        return run

    monkeypatch.setattr(command, "awkward_grids", few_grids("orientation RAS"))
    (tmp_path / "c.yaml").write_text("data: {target_size: [48, 48, 48]}\n")
    arguments = ["check-geometry", str(tmp_path / "c.yaml"), "--target_size", "64", "64", "72"]
    assert main(arguments) == 0
    assert "at 64×64×72" in capsys.readouterr().out
    monkeypatch.setattr(round_trips, "preprocessing_chain", spoilt_chain)
    assert main(arguments) == 1
    assert f"FAILED orientation RAS: {words}" in capsys.readouterr().out


def test_size_and_aspect_of_a_run_can_be_tried_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "awkward_grids", few_grids("thick slices"))
    flags = ["--target_size", "40", "48", "56", "--json"]
    chains = []
    for aspect in ([], ["--keep_aspect"], ["--keep_aspect", "true"], ["--keep_aspect", "false"]):
        assert main(["check-geometry", *aspect, *flags]) == 0
        chains.append(json.loads(capsys.readouterr().out)["chain"])
    assert [chain["keep_aspect"] for chain in chains] == [False, True, True, False]
    assert all(chain["target_size"] == [40, 48, 56] for chain in chains)


def test_a_chain_is_taken_from_settings_files_checkpoints_and_run_folders(tmp_path):
    wanted = preprocessing_arguments((40, 50, 60), intensity="mr", keep_aspect=True)
    config = Config(data=DataConfig(dataset_root="x", target_size=(40, 50, 60), intensity="mr", keep_aspect=True))
    (tmp_path / "c.yaml").write_text("data: {target_size: [40, 50, 60], intensity: mr, keep_aspect: true}\n")
    checkpoint = tmp_path / "run" / "checkpoints" / "best_model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"format": 1, "state_dict": {}, "network": {}, "preprocessing": wanted}, checkpoint)
    sources = [
        config,
        tmp_path / "c.yaml",
        checkpoint,
        tmp_path / "run",
        {"target_size": (40, 50, 60), **_rest(wanted)},
    ]
    assert all(chain_of(source) == wanted for source in sources)
    patches = DataConfig("x", mode="patch", spacing_mm=(1.0, 1.5, 2.0), target_size=(40, 56, 40))
    assert chain_of(Config(data=patches))["spacing_mm"] == [1.0, 1.5, 2.0]
    assert chain_of(None)["target_size"] == [160, 160, 256]
    with pytest.raises(ChainError, match="target_size"):
        chain_of({"target_size": (1, 2)})


def _rest(arguments):
    return {key: value for key, value in arguments.items() if key in ("intensity", "keep_aspect")}


def test_a_lost_small_ball_is_no_fault_where_voxels_are_larger():
    structure = SimpleNamespace(name="ball_4", radius_mm=4.0, shift_mm=0.0, label_shift_mm=np.inf, lies_at="")
    grid = SimpleNamespace(name="coarse")
    assert judge(SimpleNamespace(grid=grid, coarsest_mm=5.0, structures=[structure])) == []
    assert judge(SimpleNamespace(grid=grid, coarsest_mm=3.0, structures=[structure])) == [
        "coarse: the label of ball_4 is lost"
    ]


def test_voxels_of_a_training_on_patches_may_be_coarse_and_must_fit_the_memory(monkeypatch):
    """Marks of an image that interpolation blurs seem to move: by up to 0.3 mm between voxels of 13.8 mm."""
    monkeypatch.setattr(command, "awkward_grids", few_grids("orientation LPI"))
    report = check_geometry({"target_size": (16, 16, 16), "spacing_mm": (1.37, 1.37, 13.8)})
    assert report.exit_code == 0
    assert 0.1 < report.largest_shift_mm < 0.4
    with pytest.raises(
        ConfigError, match=r"spacing_mm: expected at most 134 million .* found 4424 million of 0\.2×0\.2×0\.2"
    ):
        check_geometry({"target_size": (16, 16, 16), "spacing_mm": (0.2, 0.2, 0.2)})

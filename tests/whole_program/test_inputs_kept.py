"""Every public function that takes arrays leaves them bit-equal, whatever their type and memory order.

The functions are listed from the source, so that a new one without a call here fails.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from networks.body_net import BodyNet, DecoderLevel, EncoderLevel, ResidualBlock
from networks.deep_supervision import CoarseHeads, Level
from networks.growing_axes import Axis, Growing
from networks.norm_act import NormAct, NormActConv
from networks.registry import build_network
from pipeline.cache.entry import encode
from pipeline.checks.class_check import TargetGrid
from pipeline.checks.histogram import Histogram
from pipeline.config.settings import Config, DataConfig, ModelConfig
from pipeline.evaluation.scored_case import ScoredCase
from pipeline.losses.dice_ce import SlabDiceCELoss, VolumeDiceCE
from pipeline.metrics.validation_iou import ValidationIoU
from pipeline.phantoms.anatomy import draw_body
from pipeline.phantoms.shapes import Ellipsoid, Loft, Tube, Warp
from pipeline.training.tensorboard import EventsLogger
from pipeline.training.weighted_mean import WeightedMean
from pipeline.visualisation.planes import cut_planes
from pipeline.writers.outputs import OutputOptions
from tests.support import tiny_module
from tests.support.given_arrays import Given
from tests.support.monai_networks import SMALL
from tests.support.paths import ROOT
from tests.support.segmentations import save_source, segmentation_of
from transforms.augment import Draw, RandomAugmentd
from transforms.intensity import INTENSITIES, SCALINGS
from transforms.io.grid import AxisChange, Geometry
from transforms.io.label_values import LabelLookup, MergedMasks
from transforms.io.load import Volume
from transforms.resize import align_grids
from transforms.restore import FeatureMap
from transforms.warp import affine_map

SIZE = (9, 8, 7)
MOVE = affine_map(SIZE, (1, 1, 1), rotation_deg=(5, 0, 9), flips=(0,))
DRAW = Draw(gamma=1.3, gain=1.2, shift=0.1, noise=0.1, blur_sigma=0.8, low_resolution=(1.0, 2.0, 1.0), flips=(0, 2))

_ARRAYS = re.compile(r"\b(Tensor|MetaTensor|ndarray|NDArray|Volume|FeatureMap|Affine|Points)\b")

WRITES_INTO_ITS_INPUT = {
    "pipeline.inference.postprocessing.clean": "the segmentation, in place: the result is the number of voxels",
    "pipeline.losses.partial_labels.merge_into_background": "the slab's own logits, which nobody else has",
    "pipeline.losses.partial_labels.spread_gradient": "the slab's own gradient, which nobody else has",
    "pipeline.losses.slab_softmax.SlabBatch.write_gradient": "the target that it is named after",
    "pipeline.losses.slab_softmax.differentiate": "the slab's own logits, which nobody else has",
    "transforms.slabs.first_highest": "the scores, which its two callers computed for it",
}
KERNEL = "needs Triton; held to torch or MONAI by tests of its own"
NOT_ALONE = {
    "pipeline.inference.passes.prepare_array": "needs a model; the array goes through volume_tensor",
    "pipeline.inference.passes.scan_features": "needs a model and a scan; of arrays it takes a grid's affine",
    "networks.norm_act_gpu.activated": KERNEL,
    "networks.norm_act_gpu.activated_again": KERNEL,
    "networks.norm_act_gpu.gradients": KERNEL,
    "pipeline.losses.dice_ce_gpu.differentiate": KERNEL,
    "pipeline.losses.dice_ce_gpu.parts_of": KERNEL,
    "pipeline.losses.dice_ce_gpu.sum_up": KERNEL,
    "pipeline.training.run_record.run_document": "needs a prepared data set; weights go through weight_stats",
}
INTEGERS = ("uint8", "uint16", "int16", "int32", "int64")
FLOATS = ("float32", "float64", "bfloat16", "float16")
Call = Callable[[Callable, "Given"], Any]

GROWING = Growing({"head": (4, 5)}, {"head": (Axis(0, "class", is_input=False),)}, frozenset())


def takers() -> Iterator[str]:
    """Public functions, and public methods of public classes, one of whose arguments is said to be an array."""
    for path in sorted(f for package in ("networks", "pipeline", "transforms") for f in (ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            inside = node.body if isinstance(node, ast.ClassDef) else []
            owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            for function in (node, *inside):
                if isinstance(function, ast.FunctionDef) and not re.search(r"\b_", owner + function.name):
                    arguments = (*function.args.args, *function.args.kwonlyargs)
                    if any(a.annotation and _ARRAYS.search(ast.unparse(a.annotation)) for a in arguments):
                        yield f"{module}.{owner}{function.name}"


def _image(g: Given) -> Tensor:
    return _fine(g, 1, 16)


def _fine(g: Given, channels: int = 2, edge: int = 8) -> Tensor:
    return g.floats(1, channels, edge, edge, 2 * edge, only="float32").requires_grad_()


@cache
def _split(target: str = "UNet") -> Any:
    return build_network(SMALL[target], n_classes=3, target_size=(16, 16, 32))


def _signed(g: Given) -> np.ndarray:
    return g.label_array(*SIZE, only="" if g.integer.startswith("int") else "int8")


def _scaled(f: Callable, g: Given) -> None:
    for intensity in INTENSITIES:
        for scaling in SCALINGS:
            f(g.floats(*SIZE, only="float32" if g.floating == "bfloat16" else ""), intensity, scaling=scaling)


def _changed_samples(f: Callable, g: Given) -> None:
    f(g.floats(2, *SIZE, only="float32"), DRAW)
    given = {"image": g.floats(1, *SIZE, only="float32"), "label": g.labels(1, *SIZE)}
    names = ["background", "a_left", "a_right", "b"]
    RandomAugmentd(SIZE, class_names=names, flips=(0,)).apply(given, DRAW)


def _restored(f: Callable, g: Given) -> None:
    for head in ((None, None), (g.floats(5, 3, only="float32"), g.floats(5, only="float32"))):
        maps = [FeatureMap(g.floats(3, *SIZE), g.affine(), *head)] * 2
        f(maps, (11, 9, 8), g.affine(1.8, 1.8, 2.5), probabilities_of=[1])


def _loss(g: Given, **options: Any) -> tuple:
    head = torch.nn.Conv3d(3, 4, 1, dtype=torch.float64 if g.floating == "float64" else torch.float32)
    return SlabDiceCELoss(ignore_index=3, **options), g.floats(2, 3, *SIZE).requires_grad_(), head


def _slab_loss(f: Callable, g: Given) -> None:
    loss, features, head = _loss(g)
    f(loss, features, head, g.labels(2, 1, *SIZE)).loss.backward()
    f(SlabDiceCELoss(), features, head, g.labels(2, *SIZE)).loss.backward()


def _levels(f: Callable, g: Given) -> None:
    loss, features, head = _loss(g)
    f(loss, [Level(features, head), Level(features[..., :4, :4, :4], head, (2, 2, 2))], g.labels(2, 1, *SIZE))


def _statistics(f: Callable, g: Given) -> None:
    volume = Volume(g.label_array(*SIZE), Geometry(SIZE, np.eye(4), np.dtype(np.float32), "nifti"))
    f(volume, Path("a"), g.label_array(*SIZE, only="uint8"), 4)
    f(Volume(g.array(*SIZE), volume.geometry), Path("a"), None)


def _entry(f: Callable, g: Given) -> None:
    given = {
        "image": MetaTensor(g.floats(1, *SIZE, only="float32")),
        "label": MetaTensor(g.labels(1, *SIZE, only="uint8")),
    }
    entry, payload = encode(given, name="n", case="c", chain={}, n_classes=4, with_places=True)
    f(g.folder / "a", entry, g.as_array(payload))


def _written_files(f: Callable, g: Given) -> None:
    plain = segmentation_of(save_source(g.folder / "a.nii", shape=SIZE))
    segmentation = replace(plain, array=g.label_array(*SIZE, only="uint8"))
    options = OutputOptions(g.folder, plain.class_names, ("nifti", "nrrd"), per_structure=True, probabilities=(1,))
    probabilities = {1: g.label_array(*SIZE, n_classes=255, only="uint8")}
    list(f(segmentation, options.files("c"), probabilities=probabilities))


def _drawn_planes(f: Callable, g: Given) -> None:
    planes = cut_planes(g.array(*SIZE), g.label_array(*SIZE), g.affine(), 0.0)
    colours = g.label_array(4, 3, only="uint8")
    f(planes, title="a", subtitle="b", legend=[], colours=colours, window=(0.0, 1.0))


def _with_nan(f: Callable, g: Given) -> None:
    values = torch.from_numpy(g.array(*SIZE)).clone()
    values[2:4] = torch.nan
    f(g.keep(values).numpy(), -1000.0)


def _placed(solid: Any) -> Call:
    return lambda f, g: f(solid, STILL, g.as_array([1.0, 2, 3]), 1.0)


BODY_NET = BodyNet(n_classes=3, base_channels=2)
STILL = Warp(np.ones(3), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
ROUND = (np.full(3, 9.0), np.eye(3))
PATH = np.array([(0.0, 0, 0), (30, 0, 0)])
LEVELS, PLANE = np.array([(0.0, 40, 0, 30, 20), (90, 50, 5, 20, 15)]), np.array([(45.0, 0, 0, 1, 0.5, -0.2)])
TURNED = AxisChange((2, 0, 1), (0, 1), ((1, 0), (0, 2), (0, 0)))

CALLS: dict[str, Call] = {
    "networks.body_net.BodyNet.features": lambda f, g: f(BODY_NET, _image(g)).mean().backward(),
    "networks.body_net.BodyNet.decoded": lambda f, g: f(BODY_NET, _image(g)),
    "networks.body_net.BodyNet.forward": lambda f, g: f(BODY_NET, _image(g)),
    "networks.body_net.EncoderLevel.forward": lambda f, g: f(EncoderLevel(2, 4, 1), _fine(g)).mean().backward(),
    "networks.body_net.DecoderLevel.forward": lambda f, g: (
        f(DecoderLevel(4, 2), _fine(g, 4, 4), _fine(g)).mean().backward()
    ),
    "networks.body_net.ResidualBlock.forward": lambda f, g: f(ResidualBlock(2), _fine(g)).mean().backward(),
    "networks.deep_supervision.CoarseHeads.forward": lambda f, g: f(CoarseHeads(BODY_NET, 3), BODY_NET, _image(g)),
    "networks.deep_supervision.supervised_levels": lambda f, g: f(BODY_NET, CoarseHeads(BODY_NET, 3), _image(g)),
    "networks.features_and_head.FeaturesAndHead.features": lambda f, g: f(_split(), _image(g)).mean().backward(),
    "networks.features_and_head.FeaturesAndHead.supervised_levels": lambda f, g: f(_split("SegResNetDS"), _image(g)),
    "networks.features_and_head.FeaturesAndHead.forward": lambda f, g: f(_split(), _image(g)).mean().backward(),
    "networks.gpu_kernels.run_on": lambda f, g: f(g.floats(*SIZE)),
    "networks.norm_act.NormAct.forward": lambda f, g: f(NormAct(2), _fine(g)).mean().backward(),
    "networks.norm_act.NormActConv.forward": lambda f, g: f(NormActConv(2, 3), _fine(g)).mean().backward(),
    "networks.norm_act.norm_act": lambda f, g: f(
        *(g.floats(*shape, only="float64") for shape in ((1, 2, 5, 4, 3), (2,), (2,)))
    ),
    "networks.norm_act.norm_act_conv": lambda f, g: f(
        _fine(g), *(g.floats(*shape, only="float32") for shape in ((2,), (2,), (3, 2, 3, 3, 3)))
    ),
    "networks.onednn_workaround.needs_float32": lambda f, g: f(g.floats(1, 2, *SIZE), (3, 3, 3), (1, 1, 1)),
    "networks.transfer.count_of": lambda f, g: f({"head": g.floats(4, 5)}, GROWING, "class"),
    "networks.transfer.fit": lambda f, g: f({"head": g.floats(4, 5)}, GROWING),
    "networks.transfer.named_alike": lambda f, g: f({"module.head": g.floats(4, 5)}, GROWING)["head"],
    "networks.transfer.transfer": lambda f, g: f(
        {"head": g.floats(4, 5)}, {"head": g.floats(4, 5)}, GROWING, {"class": (1, 0, None, 2), "channel": ()}
    ),
    "pipeline.cache.entry.write_entry": _entry,
    "pipeline.checks.class_check.TargetGrid.spacing_mm": lambda f, g: f(
        TargetGrid(SIZE, True), g.as_array([9.0, 8, 7])
    ),
    "pipeline.checks.histogram.Histogram.of": lambda f, g: (f(g.array(200)), f(g.label_array(200))),
    "pipeline.checks.histogram.Histogram.percent_below": lambda f, g: f(Histogram.of(np.arange(9)), g.array(5)),
    "pipeline.checks.voxel_statistics.measure_image": _statistics,
    "pipeline.checks.voxel_statistics.measure_label": lambda f, g: f(_signed(g), g.affine(), 4),
    "pipeline.checks.voxel_statistics.thickness_voxels": lambda f, g: f(
        g.labels(*SIZE, n_classes=2, only="bool").numpy()
    ),
    "pipeline.compute.ranks.gathered": lambda f, g: f(g.floats(3, 2)),
    "pipeline.evaluation.tolerance.too_wide": lambda f, g: f(
        9.0, {"a": 1.0}, surface_dice=g.array(3, 2), dice=g.array(3, 2)
    ),
    "pipeline.inference.scan_check.ScanFacts.of": lambda f, g: f(MetaTensor(g.floats(2, *SIZE))),
    "pipeline.losses.class_weights.median_frequency_weights": lambda f, g: f(g.label_array(5, 3, n_classes=90), 0.5),
    "pipeline.losses.deep_supervision.deep_supervision_loss": _levels,
    "pipeline.losses.deep_supervision.label_at_level": lambda f, g: f(
        g.labels(2, 1, *SIZE), Level(torch.empty(2, 4, 5, 4, 4), None, (2, 2, 2), (-1, 0, 0))
    ),
    "pipeline.losses.dice_ce.SlabDiceCELoss.forward": _slab_loss,
    "pipeline.losses.dice_ce.VolumeDiceCE.add": lambda f, g: f(
        VolumeDiceCE(torch.nn.Conv3d(3, 4, 1), ignore_index=3), g.floats(3, *SIZE, only="float32"), g.labels(*SIZE)
    ),
    "pipeline.losses.label_counts.count_labels": lambda f, g: [f(g.labels(2, 60), 4, ignored) for ignored in (None, 3)],
    "pipeline.losses.label_counts.refuse_hidden_classes": lambda f, g: f(
        g.keep(torch.tensor([[3, 0], [2, 1]])), g.keep(torch.tensor([[True, False], [True, True]]))
    ),
    "pipeline.losses.label_counts.refuse_unknown_labels": lambda f, g: [
        f(g.labels(2, 1, *SIZE), 4, ignored) for ignored in (None, 3)
    ],
    "pipeline.metrics.overlap.joint_histogram": lambda f, g: [
        f(g.labels(*SIZE), g.labels(*SIZE), 4, ignore_index=ignored) for ignored in (None, 3)
    ],
    "pipeline.metrics.overlap.dice_of": lambda f, g: f(g.labels(3, 4, 4, n_classes=90, only="int64")),
    "pipeline.metrics.overlap.mean_iou": lambda f, g: f(g.floats(3, 4, only="float32")),
    "pipeline.metrics.overlap.class_scores": lambda f, g: f(g.labels(4, 4, n_classes=90, only="int64"), 0.001),
    "pipeline.metrics.slab_argmax.segment_in_slabs": lambda f, g: f(g.floats(2, 3, *SIZE), torch.nn.Conv3d(3, 4, 1)),
    "pipeline.metrics.statistics.summarise": lambda f, g: f(g.array(9, 2), g.as_array([0, 0, 1, 2, 3, 4, 5, 6, 7])),
    "pipeline.metrics.statistics.bootstrap_intervals": lambda f, g: f(
        g.array(9, 2), g.as_array([0, 0, 1, 2, 3, 4, 5, 6, 7]), n_resamples=9
    ),
    "pipeline.metrics.statistics.subject_sums": lambda f, g: f(g.array(9, 2), g.as_array([0, 0, 1, 2, 3, 4, 5, 6, 7])),
    "pipeline.metrics.statistics.subject_means": lambda f, g: f(g.array(9), g.as_array([0, 0, 1, 2, 3, 4, 5, 6, 7])),
    "pipeline.metrics.statistics.wilcoxon_p": lambda f, g: [f(g.array(n, only="float64")) for n in (9, 60)],
    "pipeline.metrics.surface_distance.surface_scores": lambda f, g: [
        f(g.label_array(*SIZE), g.label_array(*SIZE), g.as_array([1.0, 2, 3]), 4, ignore_index=ignored, surface=surface)
        for surface, ignored in (("voxels", 3), ("area", None))
    ],
    "pipeline.metrics.surface_elements.find_surface": lambda f, g: [
        f(g.label_array(*SIZE, n_classes=2), kind, g.as_array([1.0, 2, 3])) for kind in ("voxels", "area")
    ],
    "pipeline.metrics.surface_elements.area_of_code": lambda f, g: f(g.as_array([1.0, 2, 3])),
    "pipeline.metrics.validation_iou.ValidationIoU.update": lambda f, g: f(
        ValidationIoU(), g.labels(4, 4, n_classes=90, only="int64")
    ),
    "pipeline.phantoms.balls.balls": lambda f, g: f((9, 9, 9), g.affine(1, 1, 1), [(4, 4, 4)], [2]),
    "pipeline.phantoms.balls.around_ball": lambda f, g: f(g.as_array([4.0, 4, 4]), 2, (9, 9, 9), g.affine(1, 1, 1)),
    "pipeline.phantoms.balls.geometry_proof": lambda f, g: f((30, 30, 30), g.affine(8, 8, 8)),
    "pipeline.phantoms.nifti.write_nifti": lambda f, g: f(g.folder / "a.nii", _signed(g), g.affine()),
    "pipeline.phantoms.phantom.render": lambda f, g: f(
        draw_body(np.random.default_rng(0)), (5, 5, 5), g.affine(60, 60, 60)
    ),
    "pipeline.phantoms.shapes.Warp.moved": lambda f, g: f(STILL, g.as_array(PATH)),
    "pipeline.phantoms.shapes.Ellipsoid.placed": _placed(Ellipsoid(np.zeros(3), *ROUND)),
    "pipeline.phantoms.shapes.Tube.placed": _placed(Tube(PATH, np.array([5.0, 5]), np.ones(3))),
    "pipeline.phantoms.shapes.Loft.placed": _placed(Loft(LEVELS, PLANE)),
    "pipeline.report_page.case_volumes.viewer_data": lambda f, g: f(
        ScoredCase(g.array(*SIZE), *[g.label_array(*SIZE)] * 2, g.affine()), 1, g.label_array(4, 3), "abcd"
    ),
    "pipeline.training.build.build_module": lambda f, g: f(
        Config(data=DataConfig("scans", target_size=(16, 16, 16)), model=ModelConfig(base_channels=2)),
        in_channels=1,
        n_classes=4,
        class_weights=g.as_array([0.5, 1.0, 2.0, 0.0]),
    ),
    "pipeline.training.lightning_module.SegmentationModule.forward": lambda f, g: f(tiny_module.module(), _image(g)),
    "pipeline.training.run_record.weight_stats": lambda f, g: f(g.as_array([0.5, 0.0, 2.0])),
    "pipeline.training.tensorboard.EventsLogger.write_picture": lambda f, g: f(
        EventsLogger(g.folder), "a", 0, g.label_array(4, 5, 3, only="uint8")
    ),
    "pipeline.training.weighted_mean.WeightedMean.update": lambda f, g: f(WeightedMean(), g.floats(), g.floats()),
    "pipeline.visualisation.overlay.grey_values": lambda f, g: f(g.array(*SIZE), (-1, 1)),
    "pipeline.visualisation.overlay.overlay_slice": lambda f, g: f(
        g.array(9, 8), g.label_array(9, 8), g.label_array(4, 3, only="uint8"), (0.0, 3.0)
    ),
    "pipeline.visualisation.overlay.contours": lambda f, g: f(g.label_array(9, 8), 1),
    "pipeline.visualisation.overlay.enlarged": lambda f, g: f(g.label_array(9, 8), (20, 5)),
    "pipeline.visualisation.display_window.display_window": lambda f, g: f(g.array(*SIZE)),
    "pipeline.visualisation.plane_figure.draw_planes": _drawn_planes,
    "pipeline.visualisation.planes.best_slice": lambda f, g: f(g.label_array(*SIZE), 1),
    "pipeline.visualisation.planes.cut_planes": lambda f, g: f(
        g.array(*SIZE), g.label_array(*SIZE), g.affine(), 0.0, beside=g.label_array(*SIZE)
    ),
    "pipeline.training.muon.orthogonalised": lambda f, g: f([g.floats(4, 9, only="float32")]),
    "pipeline.writers.nifti.write_probabilities": lambda f, g: f(
        segmentation_of(save_source(g.folder / "a.nii", shape=SIZE)),
        g.label_array(*SIZE, only="uint8"),
        g.folder / "b.nii",
    ),
    "pipeline.writers.outputs.write_files": _written_files,
    "transforms.augment.change_intensity": _changed_samples,
    "transforms.intensity.scale_channel": _scaled,
    "transforms.intensity.mean_and_std": lambda f, g: [
        f(g.floats(*SIZE, only=name)) for name in ("float32", "float64")
    ],
    "transforms.large_pages.empty_like": lambda f, g: f(g.floats(*SIZE), (2, 3)).shape,
    "transforms.io.dicom.are_even": lambda f, g: f(g.affine()[0]),
    "transforms.io.grid.AxisChange.apply": lambda f, g: f(TURNED, g.label_array(*SIZE)),
    "transforms.io.grid.AxisChange.undo": lambda f, g: f(TURNED, g.label_array(*SIZE)),
    "transforms.io.grid.check_affine": lambda f, g: f(g.affine(), "a"),
    **{
        f"transforms.io.grid.{name}": lambda f, g: f(g.affine())
        for name in ("orientation", "shear_degrees", "skew", "voxel_edges_mm")
    },
    "transforms.io.grid.voxel_ml": lambda f, g: f(g.affine()),
    "transforms.io.load.fill_nan_voxels": _with_nan,
    "transforms.io.load.volume_tensor": lambda f, g: f(g.array(2, *SIZE), g.affine()).zero_(),
    "transforms.io.label_values.LabelLookup.indices": lambda f, g: f(
        LabelLookup([0, 2, 1, 3], ignore_value=None, label_remap={3: 1}), g.label_array(*SIZE), "a"
    ),
    "transforms.io.label_values.LabelLookup.merge": lambda f, g: f(
        LabelLookup([0, 1, 2], ignore_value=None),
        SIZE,
        [(1, Path("a")), (2, Path("b"))],
        [g.label_array(*SIZE, n_classes=2) for _ in range(2)],
    ),
    "transforms.io.label_values.MergedMasks.add": lambda f, g: f(
        MergedMasks(SIZE, 3), 1, g.labels(*SIZE, n_classes=2, only="bool").numpy()
    ),
    "transforms.io.label_values.mask_of": lambda f, g: f(g.label_array(*SIZE, n_classes=2), "a"),
    "transforms.io.label_values.count_values": lambda f, g: f(g.label_array(*SIZE), "a"),
    "transforms.left_right.swap_sides": lambda f, g: f(g.labels(1, *SIZE), (0, 2, 1, 3)),
    "transforms.patches.places_of": lambda f, g: f(g.label_array(*SIZE), (1, 2), seed=1),
    "transforms.patches.draw_patch_start": lambda f, g: f(
        np.random.RandomState(0), SIZE, (4, 4, 4), places={1: g.label_array(5)}, weights=(0, 1), foreground=1
    ),
    "transforms.resize.voxel_map": lambda f, g: f(g.affine(), g.affine(1, 2, 3)),
    "transforms.resize.resize_image": lambda f, g: f(g.floats(2, *SIZE), align_grids(SIZE, (6, 6, 6))),
    "transforms.resize.resize_label": lambda f, g: f(g.labels(1, *SIZE), align_grids(SIZE, (6, 6, 6))),
    "transforms.restore.slice_axis": lambda f, g: f(g.affine(), SIZE, g.affine(1, 2, 3)),
    "transforms.restore.restore": _restored,
    "transforms.separable.band": lambda f, g: f(g.floats(4, 9)),
    "transforms.separable.apply_along": lambda f, g: f(g.floats(1, *SIZE), g.floats(5, SIZE[1]), 2),
    "transforms.warp.sample_affine": lambda f, g: f(g.floats(2, *SIZE, only="float32"), g.labels(1, *SIZE), MOVE),
    "transforms.warp.indexable": lambda f, g: f(g.labels(1, *SIZE)),
    "transforms.warp.is_label_map": lambda f, g: f(g.labels(1, *SIZE)),
}


def test_every_public_function_that_takes_arrays_is_called_here() -> None:
    assert sorted(CALLS | WRITES_INTO_ITS_INPUT | NOT_ALONE) == sorted(takers())


@pytest.mark.parametrize("name", WRITES_INTO_ITS_INPUT)
def test_a_function_that_writes_into_its_input_says_so(name: str) -> None:
    assert re.search(r"[Oo]verwrite|in place|into", pkgutil.resolve_name(name).__doc__)


@pytest.mark.parametrize("reverse", [False, True], ids=["rows first", "columns first"])
@pytest.mark.parametrize("name", CALLS)
def test_the_inputs_are_left_as_they_are(name: str, reverse: bool, tmp_path: Path) -> None:
    function = pkgutil.resolve_name(name)
    for integer, floating in zip_longest(INTEGERS, FLOATS, fillvalue="float32"):
        given = Given(integer, floating, reverse=reverse, folder=tmp_path)
        CALLS[name](function, given)
        assert given.kept
        for found, before in given.kept:
            assert torch.equal(found.nan_to_num(-7), before.nan_to_num(-7)), f"{name} changed its {found.dtype} input"
        if not given.types:  # every further round would be the same
            break

"""Resizing against MONAI, torch and scipy; world coordinates against closed forms; labels against known balls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Resized
from scipy import ndimage

from transforms.chains import RAS
from transforms.resize import ResizeImaged, ResizeLabeld, align_grids, resize_image, resize_label, voxel_map
from transforms.restore import FeatureMap, restore
from transforms.separable import kernel_matrix

OBLIQUE = np.array([[0.79, -0.09, 0.3, -40.0], [0.1, 0.78, -0.4, 25.0], [-0.05, 0.15, 2.4, -300.0], [0, 0, 0, 1]])


def world(affine, size):
    """World mm of every voxel centre, (3, I, J, K)."""
    index = np.stack([*np.indices(size), np.ones(size)]).reshape(4, -1)
    return (np.asarray(affine) @ index)[:3].reshape(3, *size)


def ball(centre_mm, radius_mm, size, spacing_mm):
    """Voxels whose centre lies within a ball; voxel (0, 0, 0) at 0 mm."""
    grid = np.ogrid[tuple(slice(n) for n in size)]
    return sum((g * mm - c) ** 2 for g, mm, c in zip(grid, spacing_mm, centre_mm, strict=True)) <= radius_mm**2


@pytest.mark.parametrize("size", [(40, 33, 30), (17, 13, 20)])
def test_enlarging_an_image_equals_monai_trilinear_image_and_affine(size):
    image = MetaTensor(torch.rand(2, 17, 13, 20), affine=torch.from_numpy(OBLIQUE))
    ours = ResizeImaged("image", size)({"image": image})["image"]
    theirs = Resized("image", size, mode="trilinear", align_corners=False)({"image": image})["image"]
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.affine, theirs.affine)


def test_shrinking_an_image_equals_torch_antialiasing():
    image = torch.rand(3, 50, 41, 8)
    expected = F.interpolate(image.permute(3, 0, 1, 2), (21, 17), mode="bilinear", antialias=True).permute(1, 2, 3, 0)
    torch.testing.assert_close(resize_image(image, align_grids((50, 41, 8), (21, 17, 8))), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("target", [(16, 20, 24), (45, 38, 31)])
def test_every_target_voxel_shows_the_world_point_that_its_affine_says(keep_aspect, target):
    size = (37, 29, 18)
    coordinates = MetaTensor(torch.from_numpy(world(OBLIQUE, size)).float(), affine=torch.from_numpy(OBLIQUE))
    out = ResizeImaged("image", target, keep_aspect=keep_aspect)({"image": coordinates})["image"]
    expected = world(out.affine, target)
    index = world(voxel_map(out.affine.numpy(), OBLIQUE), target)
    width = np.maximum(1, np.diag(voxel_map(out.affine.numpy(), OBLIQUE))[:3])[:, None, None, None]
    inside = ((index >= width) & (index <= np.array(size)[:, None, None, None] - 1 - width)).all(0)  # no cut kernel
    assert inside.mean() > 0.1
    error = out.numpy()[:, inside] - expected[:, inside]
    assert (
        np.abs(error).max() < 0.1
    )  # mm: sampled weights of a widened kernel lie up to 0.03 voxels off, to either side
    assert np.abs(error.mean(1)).max() < 0.002


@pytest.mark.parametrize("spacing_mm", [(0.5, 1.1, 4.0), (1.6, 0.79, 1.0)])
def test_resampled_to_a_spacing_every_voxel_shows_the_world_point_that_its_affine_says(spacing_mm):
    size = (37, 29, 18)
    coordinates = MetaTensor(torch.from_numpy(world(OBLIQUE, size)).float(), affine=torch.from_numpy(OBLIQUE))
    out = ResizeImaged("image", (1, 1, 1), spacing_mm=spacing_mm)({"image": coordinates})["image"]
    assert out.pixdim.tolist() == pytest.approx(spacing_mm)
    expected = world(out.affine, out.shape[1:])
    inside = tuple(slice(3, n - 3) for n in out.shape[1:])
    found = out.as_tensor().numpy()
    # Sampling a widened triangle at whole voxels moves it by up to 0.09 source voxels, see resize_image
    np.testing.assert_allclose(found[(slice(None), *inside)], expected[(slice(None), *inside)], atol=0.1 * 2.45)
    covered = np.array(out.shape[1:]) * spacing_mm
    assert np.abs(covered - np.array(size) * coordinates.pixdim.numpy()).max() <= max(spacing_mm) / 2


def test_a_widened_triangle_moves_a_ramp_by_less_than_a_tenth_of_a_voxel():
    """A ramp's value is its place: what the docstring of `transforms.resize` says of details, in a closed form."""
    worst = {}
    for scale in np.arange(1.0, 2.005, 0.01):
        n_out = int(200 / scale)
        offset = (scale - 1) / 2
        shown = kernel_matrix(200, n_out, scale, offset).double() @ torch.arange(200, dtype=torch.float64)
        moved = shown - (scale * torch.arange(n_out) + offset)
        worst[round(float(scale), 2)] = float(moved[2:-2].abs().max())
    assert max(worst[1.0], worst[2.0]) < 1e-4
    assert 0.08 < max(worst.values()) < 0.09


def test_a_volume_that_has_the_spacing_already_is_not_touched():
    affine = torch.from_numpy(OBLIQUE)
    image, label = (
        MetaTensor(torch.rand(2, 9, 8, 7), affine=affine),
        torch.randint(0, 5, (1, 9, 8, 7), dtype=torch.uint8),
    )
    spacing_mm = [mm * 1.0005 for mm in image.pixdim.tolist()]
    found = ResizeImaged("image", (1, 1, 1), spacing_mm=spacing_mm)({"image": image})["image"]
    assert torch.equal(found.as_tensor(), image.as_tensor())
    assert torch.equal(found.affine, affine)
    same = ResizeLabeld("label", (1, 1, 1), spacing_mm=spacing_mm)({"label": MetaTensor(label, affine=affine)})["label"]
    assert torch.equal(same.as_tensor(), label)


def test_a_label_resampled_finer_comes_back_as_it_was():
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    label = torch.randint(0, 5, (1, 8, 9, 7), dtype=torch.uint8)
    fine = ResizeLabeld("label", (1, 1, 1), spacing_mm=(0.5, 0.5, 0.6))(
        {"label": MetaTensor(label, affine=torch.from_numpy(affine))}
    )["label"]
    features = F.one_hot(fine[0].as_tensor().long(), 5).movedim(-1, 0).float()
    found = restore([FeatureMap(features, fine.affine.numpy())], (8, 9, 7), affine).segmentation
    assert (found == label[0].numpy()).mean() > 0.999


def test_the_fields_of_view_coincide_when_stretched():
    size, target = (37, 29, 18), (16, 20, 24)
    out = ResizeLabeld("label", target)(
        {"label": MetaTensor(torch.zeros(1, *size).byte(), affine=torch.from_numpy(OBLIQUE))}
    )
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float).T
    ours, theirs = (np.diag([*n, 1.0]) @ corners - [[0.5], [0.5], [0.5], [0]] for n in (target, size))
    np.testing.assert_allclose(out["label"].affine.numpy() @ ours, OBLIQUE @ theirs, atol=1e-9)


def test_keeping_the_aspect_gives_cubes_and_equal_padding_with_the_lowest_value():
    affine = torch.diag(torch.tensor([0.8, 0.8, 2.5, 1.0], dtype=torch.float64))
    d = {
        "image": MetaTensor(torch.rand(2, 50, 30, 20) - 7, affine=affine),
        "label": MetaTensor(torch.ones(1, 50, 30, 20, dtype=torch.uint8), affine=affine),
    }
    d = ResizeLabeld("label", (24, 32, 40), keep_aspect=True)(ResizeImaged("image", (24, 32, 40), keep_aspect=True)(d))
    np.testing.assert_allclose(d["image"].pixdim, 50 * 0.8 / 24, rtol=1e-6)
    np.testing.assert_allclose(d["image"].affine, d["label"].affine)
    inside = d["label"][0].as_tensor() == 1
    assert torch.equal(inside, inside.flip(0, 1, 2))
    assert inside.any(2).any(1).all()
    assert 13 <= inside.any(2).any(0).sum() <= 15  # 30 · 0.8 mm in cubes of 1.667 mm: 14.4
    for channel, source in zip(d["image"].as_tensor(), range(2), strict=True):
        assert channel[~inside].unique().numel() == 1
        assert channel[~inside][0] <= channel[inside].min()
        assert source in (0, 1)


@pytest.mark.parametrize("n_layers", [8, 9])
def test_a_scan_thinner_than_a_cube_is_shown_by_one_layer_of_cubes(n_layers):
    slice_of = torch.rand(1, 12, 12, 1)
    affine = torch.diag(torch.tensor([4, 4, 1.0, 1], dtype=torch.float64))
    parts = {"image": MetaTensor(slice_of, affine=affine), "label": MetaTensor((slice_of > 0.5).byte(), affine=affine)}
    for key, part in (("image", image_part), ("label", label_part)):
        out = part((12, 12, n_layers), keep_aspect=True)(parts)[key]
        (shown,) = (k for k in range(n_layers) if out[..., k].as_tensor().unique().numel() > 1)
        assert torch.allclose(out[..., shown].as_tensor(), parts[key][..., 0].as_tensor())
        assert float(out.affine[2, 3] + out.affine[2, 2] * shown) == pytest.approx(0)


def test_a_resized_label_is_the_argmax_of_torch_bicubic_antialiased_one_hot():
    label = torch.randint(0, 5, (1, 60, 44, 6), dtype=torch.uint8)
    label = ndimage.median_filter(label.numpy(), size=(1, 9, 9, 1))
    one_hot = torch.stack([torch.from_numpy((label[0] == c).astype(np.float32)) for c in range(5)], 1).permute(
        3, 1, 0, 2
    )
    shares = F.interpolate(one_hot, (25, 19), mode="bicubic", antialias=True)
    ours = resize_label(torch.from_numpy(label), align_grids((60, 44, 6), (25, 19, 6)))[0]
    clear = (shares.topk(2, 1).values.diff(dim=1).abs() > 1e-4)[:, 0].permute(1, 2, 0)
    assert torch.equal(ours[clear].long(), shares.argmax(1).permute(1, 2, 0)[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16])
def test_the_ignore_index_stays_where_it_has_the_largest_share(dtype):
    ignore = 255 if dtype == torch.uint8 else 65535
    label = torch.zeros(1, 30, 30, 30, dtype=torch.int32)
    label[:, :12] = ignore
    label[:, 12:, :15] = 3
    out = ResizeLabeld("label", (10, 10, 10))({"label": label.to(dtype)})["label"]
    assert out.dtype == (torch.uint8 if dtype == torch.uint8 else torch.uint16)
    out = out.int()
    assert (out[:, :4] == ignore).all()
    assert (out[:, 4:, :5] == 3).all()
    assert (out[:, 4:, 5:] == 0).all()


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (torch.full((1, 4, 4, 4), -1, dtype=torch.int16), "of 0 and above, found -1"),
        (torch.full((1, 4, 4, 4), 70_000, dtype=torch.int32), "at most 65535, found 70000"),
        (torch.zeros(1, 4, 4, 4), r"whole numbers, \(1, I, J, K\), found torch.float32"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.bool), "found torch.bool"),
        (torch.zeros(2, 4, 4, 4, dtype=torch.uint8), r"found torch.uint8, \(2, 4, 4, 4\)"),
    ],
)
def test_a_label_that_is_no_map_of_class_indices_is_refused(label, found):
    with pytest.raises(ValueError, match=found):
        ResizeLabeld("label", (8, 8, 8))({"label": label})


@pytest.mark.parametrize(("halves", "winner"), [((1, 2), 1), ((2, 1), 1), ((0, 3), 0), ((3, 0), 0)])
def test_equal_shares_go_to_the_lower_class(halves, winner):
    label = torch.tensor(halves, dtype=torch.uint8).repeat_interleave(4).view(1, 8, 1, 1).expand(1, 8, 4, 4)
    assert (resize_label(label, align_grids((8, 4, 4), (1, 4, 4))) == winner).all()


def test_nothing_depends_on_how_a_volume_lies_in_memory():
    image, label = torch.rand(2, 30, 24, 18), torch.randint(0, 4, (1, 30, 24, 18), dtype=torch.uint8)
    alignment = align_grids((30, 24, 18), (16, 16, 32))
    for order in ((0, 3, 2, 1), (0, 2, 3, 1)):
        back = np.argsort(order).tolist()
        other = image.permute(order).contiguous().permute(back)
        torch.testing.assert_close(resize_image(other, alignment), resize_image(image, alignment))
        other = label.permute(order).contiguous().permute(back)
        assert torch.equal(resize_label(other, alignment), resize_label(label, alignment))
    assert resize_image(other.float(), alignment).is_contiguous()


def test_a_ball_keeps_its_volume_and_its_centre():
    spacing, size, target = np.array([0.8, 0.8, 2.5]), (150, 150, 60), (64, 64, 96)
    centre = np.array([61.3, 58.2, 73.7])
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    label = torch.from_numpy(ball(centre, 20, size, spacing).astype(np.uint8))[None]
    out = ResizeLabeld("label", target)({"label": MetaTensor(label, affine=affine)})["label"]
    voxel_ml = abs(np.linalg.det(out.affine.numpy())) / 1000
    assert out.sum().item() * voxel_ml == pytest.approx(4 / 3 * np.pi * 2.0**3, rel=0.01)
    before = ndimage.center_of_mass(label[0].numpy()) * spacing  # the drawn voxels' own centre, not the ball's
    after = out.affine.numpy() @ [*ndimage.center_of_mass(out[0].numpy()), 1]
    assert np.linalg.norm(after[:3] - before) < 0.1


def test_balls_come_back_from_the_documented_size_as_the_geometry_proof_demands():
    """384×384×150 voxels of 0.8×0.8×2.5 mm at 160×160×256 and back: mean Dice over positions, radii 60 to 4 mm."""
    spacing, size = (0.8, 0.8, 2.5), (384, 384, 150)
    random = np.random.default_rng(0)
    label, radii = np.zeros(size, np.uint8), {}
    sites = [(60, 150, 150, 180)]
    sites += [(20, x, y, 60) for x in (60, 240) for y in (60, 150)]
    sites += [(8, 30 + 30 * n, 30, 200) for n in range(9)] + [(8, 30 + 30 * n, 280, 200) for n in range(9)]
    sites += [(4, 20 + 18 * n, y, z) for n in range(15) for y, z in ((15, 300), (280, 300), (150, 330))]
    for value, (radius, *site) in enumerate(sites, start=1):
        centre = np.array(site) + random.uniform(-2.5, 2.5, 3)
        low = [max(0, int((c - radius) / mm) - 1) for c, mm in zip(centre, spacing, strict=True)]
        high = [int((c + radius) / mm) + 2 for c, mm in zip(centre, spacing, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        inside = ball(
            centre - np.array(low) * spacing, radius, [b - a for a, b in zip(low, high, strict=True)], spacing
        )
        label[box][inside[tuple(slice(n) for n in label[box].shape)]] = value
        radii[value] = radius
    alignment = align_grids(size, (160, 160, 256))
    stored = resize_label(torch.from_numpy(label)[None], alignment)
    one_hot = (stored == torch.arange(len(sites) + 1, dtype=torch.uint8).view(-1, 1, 1, 1)).half()
    affine = np.diag([*spacing, 1.0])
    back = restore([FeatureMap(one_hot, affine @ alignment.matrix)], size, affine).segmentation
    joint = np.bincount(label.ravel() * np.int64(100) + back.ravel(), minlength=10000).reshape(100, 100)
    dice = {v: 2 * joint[v, v] / (joint[v].sum() + joint[:, v].sum()) for v in radii}
    mean = {r: np.mean([dice[v] for v in radii if radii[v] == r]) for r in (60, 20, 8, 4)}
    assert mean[60] >= 0.99
    assert mean[20] >= 0.97
    assert mean[8] >= 0.94
    assert mean[4] >= 0.87


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_image_and_label_come_back_by_the_two_affines(keep_aspect):
    affine = torch.from_numpy(OBLIQUE)
    smooth = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(30, 28, 12)), 4)).float()
    label = (smooth > 0).to(torch.uint8)
    d = {"image": MetaTensor(smooth[None], affine=affine), "label": MetaTensor(label[None], affine=affine)}
    parts = [part((48, 40, 40), keep_aspect) for part in (image_part, label_part)]
    out = parts[1](parts[0](d))
    where = world(voxel_map(OBLIQUE, out["image"].affine.numpy()), smooth.shape)
    image_back = ndimage.map_coordinates(out["image"][0].numpy(), where, order=1, mode="nearest")
    assert np.abs(image_back - smooth.numpy()).mean() < 0.1 * smooth.std().item()
    one_hot = torch.stack([out["label"][0].as_tensor() == c for c in (0, 1)]).half()
    label_back = restore([FeatureMap(one_hot, out["label"].affine.numpy())], smooth.shape, OBLIQUE).segmentation
    assert (label_back != label.numpy()).mean() < 0.03


def image_part(target, keep_aspect):
    return ResizeImaged("image", target, keep_aspect=keep_aspect)


def label_part(target, keep_aspect):
    return ResizeLabeld("label", target, keep_aspect=keep_aspect)


def test_restoring_samples_at_the_voxel_map_of_the_two_affines():
    source = MetaTensor(torch.rand(1, 30, 26, 14), affine=torch.from_numpy(OBLIQUE))
    prepared = ResizeImaged("image", (20, 24, 28), keep_aspect=True)({"image": source})["image"]
    where = world(voxel_map(source.affine.numpy(), prepared.affine.numpy()), (30, 26, 14))
    back_again = voxel_map(prepared.affine.numpy(), OBLIQUE)
    for axis, n in enumerate((30, 26, 14)):  # not between the outermost voxels that show the source and padding
        centres = back_again[axis, axis] * np.arange(prepared.shape[1 + axis]) + back_again[axis, 3]
        shown = np.flatnonzero((centres > -0.5) & (centres < n - 0.5))
        where[axis] = where[axis].clip(shown[0], shown[-1])
    expected = ndimage.map_coordinates(prepared[0].numpy(), where, order=1, mode="nearest")
    logits = torch.stack([torch.zeros_like(prepared[0].as_tensor()), prepared[0].as_tensor() - 0.5])
    back = restore([FeatureMap(logits, prepared.affine.numpy())], (30, 26, 14), OBLIQUE).segmentation
    clear = np.abs(expected - 0.5) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(back[clear], (expected > 0.5)[clear])


def test_monai_refuses_to_invert_what_restoring_brings_back():
    """Undoing the orientation without the resize would give a volume on a wrong grid without a word."""
    image = MetaTensor(torch.rand(1, 9, 8, 7), affine=torch.diag(torch.tensor([-1.0, 1, 1, 1])))
    chain = Compose([Orientationd("image", axcodes="RAS", labels=RAS), ResizeImaged("image", (6, 6, 6))])
    with pytest.raises(RuntimeError):
        Invertd("image", chain, orig_keys="image")(chain({"image": image}))

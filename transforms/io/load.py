"""Read volumes, and put image and label of a case on one voxel grid (`LoadVolumed`, the first part of every chain).

`read_volume` and `read_geometry` read NIfTI, NRRD and MetaImage files, and folders with a DICOM series.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from monai.data import MetaTensor
from monai.transforms import MapTransform

from transforms.io.dicom import holds_dicom, is_dicom, open_series, refuse_many_frames
from transforms.io.dicom_seg import is_dicom_seg
from transforms.io.errors import VolumeError
from transforms.io.grid import Affine, Geometry, OpenVolume, check_affine, check_shape, onto_grid
from transforms.io.itk import open_itk
from transforms.io.label_values import LabelLookup
from transforms.io.nifti import open_nifti

logger = logging.getLogger(__name__)

Pathish = str | PathLike[str]

FillNaN = float | Sequence[float] | None
"""What NaN voxels of an image become: one number, or one a channel; None: they are refused."""

_KINDS = {
    ".nii.gz": "nifti", ".nii": "nifti", ".hdr": "nifti", ".img": "nifti",
    ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage",
}  # fmt: skip
FORM_TOLERANCE_VOXELS = 0.5
"""How far sform and qform may lie apart at the far corner, in the smallest voxel edge: a float32 quaternion is rounded
by less."""

KEPT_TYPES = (np.int8, np.uint8, np.int16)
"""Voxel types that torch can flip and that are smaller than float32, which holds all their values."""

_OPENERS = {"nifti": open_nifti, "nrrd": open_itk, "metaimage": open_itk, "dicom": open_series}


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory."""

    array: np.ndarray
    """(I, J, K) or (I, J, K, T) in its stored dtype, float32 where the header scales it."""
    geometry: Geometry

    @property
    def affine(self) -> Affine:
        """Voxel index to world mm, RAS+."""
        return self.geometry.affine

    def frame(self, number: int) -> Volume:
        """One frame of (I, J, K, T), a view."""
        return replace(self, array=self.array[..., number], geometry=self.geometry.of_frame)


def disagreeing_forms(geometry: Geometry) -> str:
    """Say how far a NIfTI header's sform and qform put the volume in two places; empty where they agree."""
    edge = min(geometry.spacing_mm)
    if geometry.form_gap_mm <= FORM_TOLERANCE_VOXELS * edge:
        return ""
    return f"{geometry.form_gap_mm:.3g} mm between them at the far corner (the smallest voxel edge is {edge:.3g} mm)"


def volume_kind(path: Pathish) -> str | None:
    """Say what a path is by its name, or for a folder by its files: "nifti", "nrrd", "metaimage", "dicom" or None."""
    path = Path(path)
    if path.is_dir():
        return "dicom" if holds_dicom(path) else None
    return _KINDS.get(_suffix(path.name))


def _suffix(name: str) -> str:
    """How a volume's name ends, as _KINDS has it; "" for other names."""
    lower = name.lower()
    return next((suffix for suffix in _KINDS if lower.endswith(suffix)), "")


def volume_stem(path: Pathish) -> str:
    """Return the file name without its volume suffix ("a/b.nii.gz" -> "b"); other names unchanged."""
    name = path.name if isinstance(path, Path) else Path(path).name
    return name[: len(name) - len(_suffix(name))]


def read_geometry(path: Pathish) -> Geometry:
    """Read and check a volume's header, no voxels.

    Raises:
        VolumeError: the file is missing or not a volume, or its geometry is missing or impossible.
    """
    return _open(path).geometry


def n_frames(path: Pathish) -> int:
    """Return how many frames, which may be channels, a NIfTI file has; 1 for others. Raises as `read_geometry` does."""
    geometry = read_geometry(path)
    return geometry.n_frames if geometry.kind == "nifti" else 1


def read_volume(path: Pathish) -> Volume:
    """Read a volume with its geometry.

    Raises:
        VolumeError: the file is missing, truncated or damaged, has no or an impossible geometry, or claims more voxels
            than it can hold.
    """
    opened = _open(path)
    return Volume(opened.read(), opened.geometry)


def _open(path: Pathish) -> OpenVolume:
    path = Path(path)
    try:
        return _OPENERS[known_kind(path)](path)
    except OSError as error:
        found = f"one that cannot be read ({error.strerror or error})"
        raise VolumeError("unreadable", path, "a volume", found, "check the file and its permissions") from error


def known_kind(path: Path) -> str:
    """Return the kind of a volume, a key of the openers. Raises VolumeError for anything else, saying what it is."""
    mode = _mode(path)
    if mode is None:
        remedy = "copy it there, or correct the name"
        raise VolumeError("missing_file", path, "a volume", "no such file or folder", remedy)
    if stat.S_ISDIR(mode):
        return "dicom"  # whether it holds a series is seen as its headers are read
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise VolumeError("unreadable", path, "a volume", "a pipe or device", "copy its content to a file")
    kind = _KINDS.get(_suffix(path.name))
    if kind is None and is_dicom_seg(path):
        remedy = "save it as NIfTI or NRRD with the values of the class table (3D Slicer does)"
        raise VolumeError("unreadable", path, "a volume", "a DICOM SEG, which only evaluate reads", remedy)
    if kind is None and is_dicom(path):
        refuse_many_frames(path)
        remedy = f"name its folder, {path.parent}, with all slices of the series"
        raise VolumeError("dicom_too_few_slices", path, "the folder of a DICOM series", "one DICOM file of it", remedy)
    if kind is None:
        expected, found = f"a DICOM folder or one of {', '.join(_KINDS)}", f"a file named {path.name}"
        raise VolumeError("unreadable", path, expected, found, "convert it, or name the volume itself")
    return kind


def _mode(path: Path) -> int | None:
    """What a path is, links followed, by one question to the system; None where there is no such path."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name that holds a zero byte
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # links that lead in a circle
            return None
        raise


class ValuedLabel(NamedTuple):
    """A label map with a table of its own: of a case whose data set writes classes down in other values than others."""

    path: str
    class_of_value: tuple[tuple[int, int], ...]
    """(value in the file, class index) pairs, those of ignored values with `ignore_index`."""


class Frames(NamedTuple):
    """An image whose channels are the frames of one NIfTI file (I, J, K, T), as in the Medical Segmentation Decathlon.

    Unlike a path it holds which frame is which channel, so that a series in time is not taken for channels.
    """

    path: str
    order: tuple[int, ...]
    """The frame, from 0 on, of each channel; there are no others in the file."""


class LoadVolumed(MapTransform):
    """Load the image and the label of a case onto the image's voxel grid.

    `data["image"]` is a path, a sequence of paths, one a channel, or `Frames`; it becomes a MetaTensor (C, I, J, K): a
    single channel of one of the `KEPT_TYPES` as it is stored, which takes half the memory or less, others as float32.
    `data["label"]` is the path of a label map, a `ValuedLabel`, or a sequence of (class index, mask path) of which
    later ones win where masks overlap; it becomes an integer MetaTensor (1, I, J, K) of class indices: uint8 up to 255
    classes and int32 above (torch cannot flip or index uint16; at rest it fits uint16). `data["case"]` names the case
    in errors.

    A label stored with other axes than its image (LAS beside a DICOM series, say) is permuted and flipped onto the
    image's axes when the two describe the same voxels; resampling never happens here. The tensors' meta holds
    "filename_or_obj", "original_affine", "spatial_shape" and "modality" ("CT", "MR" or "" where the file does not say).

    Args:
        keys: any of "image" and "label".
        label_values: the value in the file of each class, in class order; None where the values are the indices, which
            serves up to 255 classes.
        ignore_value: the value in the file of voxels that count for nothing; stored as 255 (65535 in int32).
        allow_missing_keys: pass over absent keys.
        label_remap: class indices of values in the file beyond or instead of the above; masks have none.
        fill_nan: the number that NaN voxels of the image become, or one a channel; None: they are refused.

    Raises:
        VolumeError: named by case, for a file that `read_volume` refuses, several frames of a file that is one channel,
            infinite or NaN voxels in the image, channels or a label on another grid than the image, and label values
            that are not integral (beyond 0.001) or not among the classes. Inside a MONAI Compose it is the `__cause__`
            of MONAI's RuntimeError.
    """

    def __init__(
        self,
        keys: Sequence[str] = ("image", "label"),
        label_values: Sequence[int] | None = None,
        ignore_value: int | None = None,
        allow_missing_keys: bool = False,
        label_remap: Mapping[int, int] | None = None,
        fill_nan: FillNaN = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if unknown := set(self.keys) - {"image", "label"}:
            raise ValueError(f'LoadVolumed loads "image" and "label", not {sorted(map(str, unknown))}')
        self.lookup = LabelLookup(label_values, ignore_value, label_remap)
        self.fill_nan = fill_nan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with its paths replaced by tensors."""
        loaded = dict(data)
        try:
            self._load(loaded)
        except VolumeError as error:
            case = data.get("case")
            if case is None:
                raise
            raise error.of_case(str(case)) from error
        return loaded

    def _load(self, data: dict[Hashable, Any]) -> None:
        grid = None
        keys = list(self.key_iterator(data))
        if "image" in keys:
            paths, channels = _open_channels(data["image"])
            grid = channels[0].geometry
        if "label" in keys:  # opened before the image's voxels are read: a mismatch is found in a moment
            read_label = self._open_label(data["label"], grid)
        if grid is not None:
            data["image"] = _image_tensor(paths, channels, self.fill_nan)
        if "label" in keys:
            data["label"] = read_label()

    def _open_label(self, source: Any, grid: Geometry | None) -> Callable[[], MetaTensor]:
        """Open the files of a label and check their grids; what is returned reads them."""
        masks: list[tuple[int, Path]] | None = None
        lookup = self.lookup
        if isinstance(source, ValuedLabel):
            paths = [Path(source.path)]
            lookup = LabelLookup.of_values(dict(source.class_of_value), self.lookup.n_classes)
        elif isinstance(source, str | PathLike):
            paths = [Path(source)]
        else:
            masks = [(int(index), Path(path)) for index, path in source]
            paths = [path for _, path in masks]
        volumes = [_open_frame(path) for path in paths]
        if grid is None and not volumes:
            remedy = "load it together with its image"
            raise VolumeError("missing_image", "", "an image to take the grid from", "a label without masks", remedy)
        target = volumes[0].geometry if grid is None else grid
        changes = [
            onto_grid(volume.geometry, target, where=path, role="label")
            for volume, path in zip(volumes, paths, strict=True)
        ]

        def read() -> MetaTensor:
            arrays = (change.apply(volume.read()) for change, volume in zip(changes, volumes, strict=True))
            if masks is None:
                indices = lookup.indices(next(arrays), str(paths[0]))
            else:
                indices = self.lookup.merge(target.shape[:3], masks, arrays)
            return _tensor(indices, target.affine, str(paths[0]) if paths else "", "")

        return read


def _paths(source: Any) -> list[Path]:
    paths = [Path(source)] if isinstance(source, str | PathLike) else [Path(fspath(path)) for path in source]
    if not paths:
        raise VolumeError("missing_image", "", "an image path", "none", "name the image file")
    return paths


def _open_channels(source: Any) -> tuple[list[Path], list[OpenVolume]]:
    """The channels of an image, and the file of each."""
    if not isinstance(source, Frames):
        paths = _paths(source)
        return paths, [_open_frame(path) for path in paths]
    whole = _open_frame(Path(source.path), len(source.order))
    read = cache(whole.read)  # unpacked once for all of them
    frames = [replace(whole, geometry=whole.geometry.of_frame, read=partial(_frame, read, n)) for n in source.order]
    return [Path(source.path)] * len(frames), frames


def _frame(read: Callable[[], np.ndarray], number: int) -> np.ndarray:
    return read()[..., number]


def _open_frame(path: Path, n_expected: int = 1) -> OpenVolume:
    volume = _open(path)
    check_frames(volume.geometry, path, n_expected)
    if apart := disagreeing_forms(volume.geometry):
        logger.warning("%s: sform and qform disagree, %s; the sform is used", path, apart)
    return volume


def check_frames(geometry: Geometry, where: object, n_expected: int = 1) -> None:
    """Raise VolumeError for another number of frames, and for several in other files than NIfTI."""
    if geometry.n_frames == n_expected and (n_expected == 1 or geometry.kind == "nifti"):
        return
    found = f"{geometry.n_frames} frames, shape {geometry.shape}"
    expected = "one 3-D volume" if n_expected == 1 else f"{n_expected} frames of a NIfTI file, one a channel"
    remedy = "save each frame as a file of its own, or, if they are channels, name each in the data set's channel_names"
    raise VolumeError("not_3d", where, expected, found, remedy)


def _image_tensor(paths: Sequence[Path], channels: Sequence[OpenVolume], fill_nan: FillNaN) -> MetaTensor:
    """Read the channels onto the first one's grid: (C, I, J, K)."""
    fills = fills_of_channels(fill_nan, len(channels))
    grid = channels[0].geometry
    changes = [
        onto_grid(channel.geometry, grid, where=path, role="channel")
        for channel, path in zip(channels, paths, strict=True)
    ]
    voxels = (change.apply(channel.read()) for change, channel in zip(changes, channels, strict=True))
    if len(channels) == 1:
        image = next(voxels)
        if image.dtype not in KEPT_TYPES:
            image = _finite_float32(image, paths[0], fills[0])
    else:
        image = np.empty((len(channels), *grid.shape[2::-1]), np.float32).transpose(0, 3, 2, 1)  # as in most files
        for c, array in enumerate(voxels):
            image[c] = _finite_float32(array, paths[c], fills[c])
    return _tensor(image, grid.affine, str(paths[0]), grid.modality or "")


def volume_tensor(
    array: Shaped[np.ndarray, "*channel i j k"],
    affine: Shaped[np.ndarray, "4 4"],
    *,
    fill_nan: FillNaN = None,
    modality: str = "",
) -> MetaTensor:
    """Wrap an image in memory as `LoadVolumed` hands one on from files, so that the rest of a chain takes it.

    Args:
        array: (I, J, K), or (C, I, J, K) with channels; not changed.
        affine: voxel index -> world mm, RAS+.
        fill_nan: the number that NaN voxels become, or one a channel; None: they are refused.
        modality: "CT", "MR" or "" where that is not known.

    Returns:
        (C, I, J, K) float32.

    Raises:
        VolumeError: an array of other dimensions or types, an impossible affine, NaN or infinite voxels.

    >>> volume_tensor(np.zeros((4, 5, 6), np.int16), np.eye(4)).shape
    torch.Size([1, 4, 5, 6])
    """
    where = "array"
    array = np.asarray(array)
    if array.ndim not in (3, 4) or array.dtype.kind not in "biuf":
        expected, remedy = "numbers of shape (I, J, K) or (C, I, J, K)", "give one volume, channels first"
        raise VolumeError("not_3d", where, expected, f"shape {array.shape} of {array.dtype}", remedy)
    check_shape(array.shape[-3:], where)
    if np.shape(affine) != (4, 4):
        raise VolumeError("bad_affine", where, "a 4×4 affine", f"shape {np.shape(affine)}", "give that of the scan")
    if isinstance(fill_nan, Sequence):
        channels = array if array.ndim == 4 else array[None]
        fills = fills_of_channels(fill_nan, len(channels))
        array = np.stack([fill_nan_voxels(one, fill) for one, fill in zip(channels, fills, strict=True)])
        fill_nan = None
    image = _finite_float32(array, Path(where), fill_nan)
    return _tensor(image.copy() if image is array else image, check_affine(affine, where), "", modality)


def fills_of_channels(fill_nan: FillNaN, n_channels: int) -> list[float | None]:
    """Return what NaN voxels of each channel become. Raises VolumeError for numbers of more or fewer channels.

    >>> fills_of_channels(-1024, 2), fills_of_channels([-1024, 0], 2)
    ([-1024, -1024], [-1024, 0])
    """
    if not isinstance(fill_nan, Sequence):
        return [fill_nan] * n_channels
    if len(fill_nan) != n_channels:
        expected, remedy = f"{len(fill_nan)} channels, as fill_nan has numbers", "give one number, or one a channel"
        raise VolumeError("wrong_channels", "image", expected, f"{n_channels}", remedy)
    return list(fill_nan)


def fill_nan_voxels(array: Shaped[np.ndarray, "*shape"], value: float | None) -> Shaped[np.ndarray, "*shape"]:
    """Give NaN voxels a value, in the array's dtype; None, or an array without NaN, changes nothing."""
    if value is None or array.dtype.kind != "f":
        return array
    is_nan = np.isnan(array)
    return np.where(is_nan, array.dtype.type(value), array) if is_nan.any() else array


def _finite_float32(
    array: Shaped[np.ndarray, "*channel i j k"], path: Path, fill_nan: float | None
) -> Float32[np.ndarray, "*channel i j k"]:
    array = fill_nan_voxels(array, fill_nan)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused below
        image = array.astype(np.float32, copy=False)
    if array.dtype.kind == "f" and (n_bad := int(image.size - np.count_nonzero(np.isfinite(image)))):
        is_finite = bool(np.isfinite(array).all())
        found = (
            f"{n_bad} voxels beyond 3.4e38, as float32 holds them" if is_finite else f"{n_bad} NaN or infinite voxels"
        )
        remedy = "repair the file"
        if np.isnan(image).any():
            remedy += "; a training with data.fill_nan (the chain's fill_nan) gives NaN voxels a number"
        raise VolumeError("not_finite", path, "finite intensities", found, remedy)
    return image


def _tensor(array: Shaped[np.ndarray, "*channel i j k"], affine: Affine, filename: str, modality: str) -> MetaTensor:
    """Wrap (I, J, K) or (C, I, J, K) in the file's memory order; only flipped (negative-stride) arrays are copied."""
    if min(array.strides, default=0) < 0 or not array.flags.writeable:
        array = np.ascontiguousarray(array)
    world = torch.from_numpy(affine.copy())
    meta = {
        "filename_or_obj": filename,
        "original_affine": world.clone(),
        "spatial_shape": np.asarray(array.shape[-3:]),
        "modality": modality,
    }
    tensor = torch.from_numpy(array)
    return MetaTensor(tensor if tensor.ndim == 4 else tensor.unsqueeze(0), affine=world, meta=meta)

"""The transform chains: preprocessing, and training, validation and inference chains made from it.

Plain arguments, for anybody's code. Every chain is a `monai.transforms.Compose` over a
dictionary with "image" (a path, or one a channel), "label" (see `transforms.io.load.LoadVolumed`) and "case":

    chain = validation_chain((160, 160, 256), intensity="ct", window=(-160, 240))
    case = chain({"image": "ct.nii.gz", "label": "label.nii.gz", "case": "s0011"})
    case["image"], case["label"]   # (1, 160, 160, 256) float32 in −1…1 and uint8, with the affine of the target grid

The order is: load, orient to RAS, intensity (clipped before the resize, so that metal does not smear), resize. A label
is never float. The way back from the target grid needs only the affines, see `transforms.resize`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from monai.data.meta_obj import get_track_meta
from monai.transforms import Compose, Orientationd

from transforms.augment import RandomAugmentd, Strengths
from transforms.intensity import INTENSITIES, SCALINGS, ScaleIntensityd
from transforms.io.errors import VolumeError
from transforms.io.limits import MAX_VOXELS
from transforms.io.load import FillNaN, LoadVolumed
from transforms.resize import ResizeImaged, ResizeLabeld

TARGET_SIZE = (160, 160, 256)
RAS = (("L", "R"), ("P", "A"), ("I", "S"))
"""MONAI's axis labels, spelled out: their default depends on meta data from 1.6 on."""


STRENGTHS = {field.name for field in fields(Strengths)}


class ChainError(ValueError):
    """An argument of a chain that cannot be: which, expected, found."""

    is_input_error = True


class Chain(Compose):
    """A Compose that raises a part's VolumeError as it is, where MONAI's would hide it in "applying transform …".

    It is never lazy, which would make labels float32. Raises ChainError where MONAI is told to drop affines.
    """

    def __call__(
        self, input_: Any, start: int = 0, end: int | None = None, threading: bool = False, lazy: bool | None = None
    ) -> Any:
        if not get_track_meta():
            raise ChainError(
                "a chain needs the affines of volumes, but monai.data.set_track_meta(False) was called; call "
                "set_track_meta(True)"
            )
        try:
            return super().__call__(input_, start, end, threading, lazy=False)
        except RuntimeError as error:
            if isinstance(cause := root_cause(error), VolumeError):
                raise cause from None
            raise


def preprocessing_chain(
    target_size: Sequence[int] = TARGET_SIZE,
    *,
    intensity: str | Sequence[str] = "ct",
    window: Sequence[float] = (-1000.0, 1000.0),
    percentiles: Sequence[float] = (0.5, 99.5),
    scaling: str = "centred",
    mean_std: Sequence[float] | None = None,
    keep_aspect: bool = False,
    spacing_mm: Sequence[float] | None = None,
    label_values: Sequence[int] | None = None,
    ignore_value: int | None = None,
    label_remap: Mapping[int, int] | None = None,
    fill_nan: FillNaN = None,
    with_label: bool = True,
) -> Compose:
    """Build everything deterministic between a file and the network: what training, validation and inference share.

    Args:
        target_size: voxels along left-right, back-front and foot-head of the result; with `spacing_mm` the patch that
            the network is given, which this chain does not cut.
        intensity: "ct" (window), "mr" (percentiles), "zscore", "0to1" and "0to255" (those values), "rescale"
            (lowest to highest value) or "none", see `transforms.intensity.INTENSITIES`; one for all channels, or one a
            channel.
        window: HU that become the lowest and the highest value; for "ct".
        percentiles: of the voxels that are not zero, which become the lowest and the highest value; for "mr".
        scaling: "centred" scales to −1…1, "unit" to 0…1, see `transforms.intensity.SCALINGS`.
        mean_std: HU that becomes 0 and HU that make a step of 1, of a data set's structures, after clipping to the
            window; for "ct". None: the window becomes the range.
        keep_aspect: cubic voxels and padding with the lowest intensity, instead of stretching to the target size.
        spacing_mm: resample to this spacing along left-right, back-front and foot-head instead of to a size; a volume
            that has it already is not touched.
        label_values: the value in the label file of each class; None: the class indices themselves.
        ignore_value: the value in the label file of voxels that are ignored; becomes 255 (uint16: 65535).
        label_remap: class indices of further values in the label file, or of values that mean something else.
        fill_nan: the number that NaN voxels of the image become, such as those outside the field of view; one for all
            channels, or one a channel; None: they are refused, as infinite ones are.
        with_label: whether the chain reads "label" too.

    Returns:
        A chain whose result holds "image" (C, *target_size) float32 and "label" (1, *target_size) uint8 (uint16 above
        255 classes), MetaTensors in RAS orientation whose affine maps target voxels to the world mm of the file.

    Raises:
        ChainError: naming the argument. The chain itself raises VolumeError, naming the case.

    >>> chain = preprocessing_chain((4, 4, 4), intensity="ct", window=(-160, 240), with_label=False)
    >>> [type(part).__name__ for part in chain.transforms]
    ['LoadVolumed', 'Orientationd', 'ScaleIntensityd', 'ResizeImaged']
    """
    _check_target_size(target_size)
    _check_intensity(intensity)
    if scaling not in SCALINGS:
        raise ChainError(f"scaling is {scaling!r}, expected one of {', '.join(SCALINGS)}")
    _check_rising("window", window, -math.inf, math.inf)
    _check_rising("percentiles", percentiles, 0, 100)
    _check_mean_std(mean_std)
    _check_spacing(spacing_mm, keep_aspect)
    _check_fill_nan(fill_nan)
    keys = ["image", "label"] if with_label else ["image"]
    parts = [
        LoadVolumed(
            keys, label_values=label_values, ignore_value=ignore_value, label_remap=label_remap, fill_nan=fill_nan
        ),
        Orientationd(keys, axcodes="RAS", labels=RAS),
        ScaleIntensityd("image", intensity, window=window, percentiles=percentiles, scaling=scaling, mean_std=mean_std),
        ResizeImaged("image", target_size, keep_aspect=keep_aspect, spacing_mm=spacing_mm),
    ]
    if with_label:
        parts.append(ResizeLabeld("label", target_size, keep_aspect=keep_aspect, spacing_mm=spacing_mm))
    return Chain(parts)


def preprocessing_arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Check the arguments of `preprocessing_chain` and fill in its defaults, in types that JSON has.

    A checkpoint stores them and a cache is keyed by them: `preprocessing_chain(**saved)` builds the same chain again,
    and `inference_chain(**saved)` the one without labels. Raises ChainError as `preprocessing_chain` does.

    >>> preprocessing_arguments((96, 96, 96), intensity="mr")["percentiles"]
    [0.5, 99.5]
    """
    bound = inspect.signature(preprocessing_chain).bind(*args, **kwargs)
    bound.apply_defaults()
    preprocessing_chain(**bound.arguments)
    return {
        name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
        for name, v in bound.arguments.items()
    }


def augmentation_chain(
    target_size: Sequence[int] = TARGET_SIZE,
    *,
    class_names: Sequence[str] | None = None,
    flips: Sequence[int] = (),
    sided_pairs: Sequence[Sequence[str]] | None = None,
    on_device: bool = False,
    **strengths: float,
) -> Compose:
    """Build the random variation of a preprocessed case; `set_random_state(seed)` decides all that is drawn after it.

    Args:
        target_size: size of the volumes, as preprocessed.
        class_names: names of all classes, background first; needed where left and right are mirrored.
        flips: axes mirrored in half of the cases (0 = left-right). Left and right classes are then exchanged, see
            `transforms.left_right.find_sides`. Off by default: a body is no mirror image of itself, the liver lies on
            the right.
        sided_pairs: (left, right) class names that are exchanged; None: recognised by name.
        on_device: only draw; `RandomAugmentd.apply_to_batch` does the rest, on a GPU for example.
        **strengths: how much is varied, by the names and with the defaults of `transforms.augment.Strengths`.

    Raises:
        ChainError: naming the argument; also where left and right are mirrored without knowing the class names, or
            with a sided name among them that has no partner.
    """
    _check_target_size(target_size)
    if unknown := set(strengths) - STRENGTHS:
        raise ChainError(f"unknown augmentation {', '.join(sorted(unknown))}; known: {', '.join(sorted(STRENGTHS))}")
    try:
        augment = RandomAugmentd(
            target_size,
            Strengths(**strengths),
            class_names=class_names,
            flips=flips,
            sided_pairs=sided_pairs,
            on_device=on_device,
        )
        return Chain([augment])
    except ValueError as error:
        raise ChainError(str(error)) from error


def training_chain(target_size: Sequence[int] = TARGET_SIZE, **arguments: Any) -> Compose:
    """Preprocessing, then augmentation, from the arguments of `preprocessing_chain` and `augmentation_chain`."""
    random_names = {"class_names", "flips", "sided_pairs", "on_device", *STRENGTHS}
    random = {name: value for name, value in arguments.items() if name in random_names}
    prepare = {name: value for name, value in arguments.items() if name not in random_names}
    parts = [preprocessing_chain(target_size, **prepare), augmentation_chain(target_size, **random)]
    return Chain([part for chain in parts for part in chain.transforms])


def validation_chain(target_size: Sequence[int] = TARGET_SIZE, **arguments: Any) -> Compose:
    """Preprocessing with the label, from the arguments of `preprocessing_chain`."""
    return preprocessing_chain(target_size, **{**arguments, "with_label": True})


def inference_chain(target_size: Sequence[int] = TARGET_SIZE, **arguments: Any) -> Compose:
    """Preprocessing of the image alone, from the arguments of `preprocessing_chain`; what concerns labels is idle."""
    return preprocessing_chain(target_size, **{**arguments, "with_label": False})


def _check_target_size(target_size: Sequence[int]) -> None:
    whole = isinstance(target_size, Sequence) and all(isinstance(n, int) and n >= 1 for n in target_size)
    if not whole or len(target_size) != 3:
        raise ChainError(
            f"target_size is {target_size!r}, expected three whole numbers of voxels, such as {TARGET_SIZE}"
        )
    if math.prod(target_size) > MAX_VOXELS:
        raise ChainError(f"target_size is {target_size!r}, expected at most {MAX_VOXELS} voxels")


def _check_intensity(intensity: str | Sequence[str]) -> None:
    names = [intensity] if isinstance(intensity, str) else list(intensity)
    unknown = [repr(name) for name in names if name not in INTENSITIES]
    if unknown or not names:
        found = unknown[0] if unknown else repr(intensity)
        known = ", ".join(INTENSITIES)
        raise ChainError(f"intensity is {found}, expected one of {known}, or a list with one for each channel")


def _check_fill_nan(fill_nan: FillNaN) -> None:
    numbers = list(fill_nan) if isinstance(fill_nan, Sequence) else [0.0 if fill_nan is None else fill_nan]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ChainError(f"fill_nan is {fill_nan!r}, expected a number, or a list with one for each channel")


def _check_rising(name: str, pair: Sequence[float], low: float, high: float) -> None:
    numbers = list(pair)
    if len(numbers) != 2 or not (low <= numbers[0] < numbers[1] <= high and math.isfinite(numbers[1] - numbers[0])):
        within = f" within {low:g} and {high:g}" if math.isfinite(low) else ""
        raise ChainError(f"{name} is {pair!r}, expected a lower and a higher number{within}")


def _check_mean_std(mean_std: Sequence[float] | None) -> None:
    if mean_std is None:
        return
    numbers = list(mean_std)
    if len(numbers) != 2 or not (math.isfinite(numbers[0]) and 0 < numbers[1] < math.inf):
        raise ChainError(f"mean_std is {mean_std!r}, expected a mean and a deviation above 0, in HU")


def root_cause(error: BaseException) -> BaseException:
    """Return the error that a transform raised: MONAI wraps it into a RuntimeError for every Compose it passes."""
    while type(error) is RuntimeError and str(error).startswith("applying transform") and error.__cause__:
        error = error.__cause__
    return error


def _check_spacing(spacing_mm: Sequence[float] | None, keep_aspect: bool) -> None:
    if spacing_mm is None:
        return
    numbers = list(spacing_mm)
    if len(numbers) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in numbers):
        raise ChainError(f"spacing_mm is {spacing_mm!r}, expected three numbers of mm above 0")
    if keep_aspect:
        raise ChainError("keep_aspect is for resizing to target_size; spacing_mm keeps every proportion, leave it out")

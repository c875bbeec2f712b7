"""What the names of image and label files say: which case is meant, beside being an image or a label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from transforms.io.load import volume_stem

LABEL_FOLDERS = frozenset(
    "labels label masks mask segmentations segmentation segs seg annotations labelstr trainingmask".split()
)
"""What a folder of labels is called, in any case of letters."""

LABEL_WORD = re.compile(
    r"\w*seg(m|mentation)?s?|labels?|labelmaps?|annotations?|ground|groundtruth|gts?", re.IGNORECASE
)
"""Words of the names of segmentations, also of a second rater's, or of one that was merged of several."""

MASK_WORD = re.compile(r"\w*masks?|msk|roi", re.IGNORECASE)
"""Words of the names of masks: as images they are input channels as a rule (of the brain, of the prostate)."""

_LABEL = (
    "segmentation|seg|labelmap|labels|label|masks|mask|gt|groundtruth|ground_truth|truth|annotations|annotation|roi"
)
_IMAGE = "images|image|imgs|img|volume|vol|scan|ct|mri|mr|t1|t2|flair|pet"
_LABEL_SUFFIX = re.compile(rf"(?P<case>.+?)[._-](?:{_LABEL})", re.IGNORECASE)


def _role(words: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Names that begin or end with one of the words: segmentation-0, label0001, c0_ct; but t12 is no 2 of T1."""
    return (
        re.compile(rf"(?:{words})(?:[._ -]+|(?<!\d)(?=\d))(.+)", re.IGNORECASE),
        re.compile(rf"(.+?)[._ -]+(?:{words})", re.IGNORECASE),
    )


_LABEL_ROLE, _IMAGE_ROLE = _role(_LABEL), _role(_IMAGE)


def case_of(name: str) -> str:
    """The case that a file's name means: without what labels are called beside their image.

    >>> case_of("a-label"), case_of("c0_seg"), case_of("liver")
    ('a', 'c0', 'liver')
    """
    match = _LABEL_SUFFIX.fullmatch(name)
    return match["case"] if match else name


def label_key(name: str) -> str:
    """What the name of a label says beside being one; the name itself where it does not say that it is.

    >>> label_key("segmentation-0"), label_key("label0001"), label_key("c0_seg"), label_key("liver")
    ('0', '0001', 'c0', 'liver')
    """
    return _without(_LABEL_ROLE, name)[0]


def image_keys(name: str) -> list[str]:
    """What the name of an image says beside being one, in front or behind; the name itself where it does not say so.

    >>> image_keys("volume-0"), image_keys("img0001"), image_keys("c0_ct"), image_keys("ct_train_1001_image")
    (['0'], ['0001'], ['c0'], ['train_1001_image', 'ct_train_1001'])
    """
    return _without(_IMAGE_ROLE, name)


def _without(role: tuple[re.Pattern[str], ...], name: str) -> list[str]:
    return [match[1] for pattern in role if (match := pattern.fullmatch(name))] or [name]


def words_of(name: str) -> list[str]:
    """The words of a name, cut at what is not a letter and before capitals.

    >>> words_of("T1_seg2"), words_of("LesionSeg")
    (['T', 'seg'], ['Lesion', 'Seg'])
    """
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)


def ends_as_label(name: str) -> bool:
    """Say whether a name ends with a word for a label map or a mask.

    A number behind it may count patients with these initials, and a region of interest is as often what a scan shows.

    >>> ends_as_label("aggregated_MAJ_seg"), ends_as_label("mask_T1"), ends_as_label("GT001"), ends_as_label("ct_roi")
    (True, False, False, False)
    """
    last = "".join(words_of(name)[-1:])
    return name.endswith(last) and _says_label(last) and last.lower() != "roi"


def labels_beside_images(volumes: Sequence[Path], root: Path) -> list[Path]:
    """Return the files in and below a folder that are labels by their names, each beside an image.

    These are files whose names end as those of labels (KiTS21's aggregated_MAJ_seg.nii.gz) and whose folder holds an
    image, and those in folders of labels (segmentations/, BIDS' derivatives/) with an image in or below the folder
    above.

    >>> names = ["a/ct.nii", "a/seg.nii", "a/masks/liver.nii", "b/seg.nii"]
    >>> [path.as_posix() for path in labels_beside_images([Path(name) for name in names], Path())]
    ['a/seg.nii', 'a/masks/liver.nii']
    """
    places = {path: _place_of_images(path, root) for path in volumes}
    folders = {path.parent for path, place in places.items() if place is None}
    with_image = {(folder, False) for folder in folders}
    with_image |= {(above, True) for folder in folders for above in (folder, *folder.parents)}
    return [path for path, place in places.items() if place in with_image]


def _place_of_images(path: Path, root: Path) -> tuple[Path, bool] | None:
    """The folder in which the images of a label lie, and whether also below it; None for an image."""
    name, parts = volume_stem(path), path.relative_to(root).parts[:-1]
    above = [part.lower() for part in parts]
    is_label = not LABEL_FOLDERS.isdisjoint(above) or any(map(_says_label, words_of(name)))
    for n, part in enumerate(above):
        if part in LABEL_FOLDERS or (is_label and part == "derivatives"):
            return root.joinpath(*parts[:n]), True
    return (path.parent, False) if ends_as_label(name) else None


def _says_label(word: str) -> bool:
    return bool(LABEL_WORD.fullmatch(word) or MASK_WORD.fullmatch(word))

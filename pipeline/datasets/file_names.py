"""What the names of image and label files say: which case is meant, beside being an image or a label."""

from __future__ import annotations

import re

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

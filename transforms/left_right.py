"""Which classes are the left and the right one of a pair, by name, and how a mirrored label map becomes true again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor

STATED = {"left": "right", "right": "left", "lh": "rh", "rh": "lh"}
"""Words that state a side wherever they stand in a name (TotalSegmentator, FreeSurfer: Left-, lh, ctx-rh-)."""

SHORT = (
    ("l", "r"),  # AAPM TG-263: Parotid_L, Parotid_R
    ("lt", "rt"),
    ("lft", "rgt"),
    ("li", "re"),
    ("sin", "dex"),
    ("sin", "dext"),
    ("sin", "dx"),
    ("sx", "dx"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("gauche", "droite"),
    ("gauche", "droit"),
    ("izq", "der"),
    ("izquierda", "derecha"),
    ("izquierdo", "derecho"),
    ("sinistra", "destra"),
    ("sinistro", "destro"),
    ("esquerda", "direita"),
    ("esquerdo", "direito"),
)
"""(left, right) words that state a side where a class with the other word exists: alone they may mean anything."""

JOINED = (("left", "right"), ("l", "r"))
"""(left, right) at the beginning or end of a word, where the other class exists: lkid and rkid, leftlung, rightlung."""

_NAMES_LISTED = 8
_LEAST_REST = 2  # letters of a word beside a joined l or r
# The ventricles of a heart, their muscle, blood pool and outflow tract are no mirror images of each other.
_VENTRICLE = re.compile(r"(?<![a-z])[lr]v(?:m|myo|bp|ot|endo|epi|wall|cavity)?(?![a-z])", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")

Words = tuple[str, ...]


@dataclass(frozen=True)
class Sides:
    """What the names of the classes say about the sides of the body."""

    pairs: tuple[tuple[int, int], ...]
    """(left, right) class indices."""
    without_partner: tuple[int, ...]
    """Classes whose names have a side and whose partner is missing or double."""

    def partners(self, n_classes: int) -> tuple[int, ...]:
        """Class index of each class's partner; its own index where it has none."""
        partner = dict(self.pairs) | {right: left for left, right in self.pairs}
        return tuple(partner.get(index, index) for index in range(n_classes))

    def in_words(self, class_names: Sequence[str]) -> str:
        """Say which pairs a mirror exchanges, which sided names have no partner, and which have no side; a few of each.

        >>> names = ["background", "Parotid_L", "Parotid_R", "Brain"]
        >>> find_sides(names).in_words(names)
        '1 pair of classes is exchanged (Parotid_L with Parotid_R); without a side: Brain'
        """
        shown = [f"{class_names[left]} with {class_names[right]}" for left, right in self.pairs]
        count = f"{len(shown)} {'pair of classes is' if len(shown) == 1 else 'pairs of classes are'} exchanged"
        text = f"{count} ({_some_of(shown)})" if shown else "no class is exchanged with another"
        alone = [class_names[index] for index in self.without_partner]
        sided = {*self.without_partner, *(index for pair in self.pairs for index in pair)}
        others = [name for index, name in enumerate(class_names) if index and index not in sided]
        text += f"; without a partner: {_some_of(alone)}" if alone else ""
        return text + (f"; without a side: {_some_of(others)}" if others and sided else "")


def find_sides(class_names: Sequence[str], sided_pairs: Sequence[Sequence[str]] | None = None) -> Sides:
    """Find the classes whose names differ in nothing but the side of the body.

    Recognised are "left" and "right" as words of their own in any case and place (kidney_left, "Left kidney",
    LeftKidney, rib_left_1), FreeSurfer's lh and rh, TG-263's _L and _R and the other words of `SHORT`, and words that
    begin or end with a side (lkid and rkid).

    Args:
        class_names: the name of class i at i, background included.
        sided_pairs: (left, right) names; then these alone are pairs, and nothing is recognised.

    Raises:
        ValueError: `sided_pairs` holds something else than pairs of different class names, each once.

    >>> find_sides(["background", "kidney_r", "kidney_l", "lung_middle_lobe_right"])
    Sides(pairs=((2, 1),), without_partner=(3,))
    """
    if sided_pairs is not None:
        return Sides(_given_pairs(class_names, sided_pairs), ())
    words = [_words(name) for name in class_names]
    sideless = _sideless(class_names, words)
    by_words = defaultdict(list)
    for index, key in enumerate(words):
        by_words[key].append(index)
    pairs: list[tuple[int, int]] = []
    paired: set[int] = set()
    for mirror_images in (_stated, _short, _joined):
        for index, key in enumerate(words):
            if index in paired or len(by_words[key]) > 1 or (index in sideless and mirror_images is not _stated):
                continue
            pair = _pair(index, mirror_images(key), by_words, paired)
            if pair:
                pairs.append(pair)
                paired.update(pair)
    alone = [index for index, key in enumerate(words) if index not in paired and _has_side(key)]
    return Sides(tuple(sorted(pairs)), tuple(alone))


def mirror_partners(class_names: Sequence[str], sided_pairs: Sequence[Sequence[str]] | None = None) -> tuple[int, ...]:
    """Class index that each class becomes in a body mirrored from left to right, see `find_sides`.

    Raises:
        ValueError: `sided_pairs` is wrong, or a name states a side as a word (left, right, lh, rh) and its partner is
            missing or double: a mirrored volume would be labelled wrongly.

    >>> mirror_partners(["background", "kidney_left", "liver", "kidney_right"])
    (0, 3, 2, 1)
    """
    sides = find_sides(class_names, sided_pairs)
    for index in sides.without_partner:
        if mirrored := next(_stated(_words(class_names[index])), None):
            expected = "_".join(mirrored[0])
            count = sum(_words(name) == mirrored[0] for name in class_names)
            found = f"{count} classes named {expected!r} exist" if count else f"no class named {expected!r} exists"
            raise ValueError(f"class {index} {class_names[index]!r} has a side, but {found}")
    return sides.partners(len(class_names))


def swap_sides(label: Integer[Tensor, " *grid"], partners: Sequence[int]) -> Integer[Tensor, " *grid"]:
    """Give every voxel the class of its partner (see `mirror_partners`); values beyond the list (ignore) stay.

    `label` holds values of 0 to 65535. Returns a new tensor of the same dtype.

    >>> swap_sides(torch.tensor([0, 1, 2, 255], dtype=torch.uint8), partners=(0, 2, 1)).tolist()
    [0, 2, 1, 255]
    """
    n_values = 256 if label.dtype == torch.uint8 else 65536  # int32 labels are uint16 ones in a dtype torch can index
    table = torch.arange(n_values, dtype=torch.int32)
    table[: len(partners)] = torch.tensor(partners, dtype=torch.int32)
    swapped = table.to(label.device).index_select(0, label.flatten().int())
    return swapped.reshape(label.shape).to(label.dtype)


def swap_annotated(annotated: Iterable[int], partners: Sequence[int]) -> tuple[int, ...]:
    """Return the classes that a label annotates once it is mirrored from left to right, see `swap_sides`.

    >>> swap_annotated((1, 3), partners=(0, 2, 1, 3))
    (2, 3)
    """
    return tuple(sorted(partners[index] for index in annotated))


def _words(name: str) -> Words:
    """Lower-case words of a name, cut at everything that is no letter or digit, at capitals and before digits."""
    return tuple(word.lower() for word in _WORD.findall(name))


def _stated(words: Words) -> Iterator[tuple[Words, bool]]:
    """The name of the other side, and whether this one is the left: all stated sides exchanged."""
    mirrored = tuple(STATED.get(word, word) for word in words)
    if mirrored != words:
        first = next(word for word in words if word in STATED)
        yield mirrored, first in ("left", "lh")


def _short(words: Words) -> Iterator[tuple[Words, bool]]:
    """Names with one word exchanged for its partner in `SHORT`, and whether the word is the left."""
    if any(word in STATED for word in words):
        return
    for position, word in reversed(list(enumerate(words))):  # TG-263 has the side last: Nrv_L5_L
        for left, right in SHORT:
            if word in (left, right):
                other = right if word == left else left
                yield (*words[:position], other, *words[position + 1 :]), word == left


def _joined(words: Words) -> Iterator[tuple[Words, bool]]:
    """Names with the side at the beginning or end of one word exchanged, and whether it is the left."""
    if any(word in STATED for word in words):
        return
    for position, word in enumerate(words):
        for pair in JOINED:
            for side, other in (pair, pair[::-1]):
                rest = len(word) - len(side)
                if rest >= _LEAST_REST and word.startswith(side):
                    yield (*words[:position], other + word[len(side) :], *words[position + 1 :]), side == pair[0]
                if rest >= _LEAST_REST and word.endswith(side):
                    yield (*words[:position], word[:rest] + other, *words[position + 1 :]), side == pair[0]


def _sideless(class_names: Sequence[str], words: Sequence[Words]) -> set[int]:
    """Classes whose l or r does not mean a side: ventricles, and vertebrae L1, L2, … without R1, R2, …"""
    numbered = defaultdict(set)
    for key in words:
        if len(key) == 2 and key[1].isdigit():
            numbered[key[0]].add(key[1])
    are_sides = numbered["l"] == numbered["r"] and not (numbered["t"] or numbered["c"])
    levels = {index for index, key in enumerate(words) if len(key) == 2 and key[0] in ("l", "r") and key[1].isdigit()}
    ventricles = {index for index, name in enumerate(class_names) if _VENTRICLE.search(name)}
    return ventricles if are_sides else ventricles | levels


def _has_side(words: Words) -> bool:
    """Whether a name states a side, or ends with TG-263's letter for one."""
    return any(word in STATED for word in words) or (len(words) > 1 and words[-1] in ("l", "r"))


def _pair(
    index: int, mirror_images: Iterator[tuple[Words, bool]], by_words: dict[Words, list[int]], paired: set[int]
) -> tuple[int, int] | None:
    for mirrored, is_left in mirror_images:
        others = by_words.get(mirrored, [])
        if len(others) == 1 and others[0] not in paired:
            return (index, others[0]) if is_left else (others[0], index)
    return None


def _given_pairs(class_names: Sequence[str], sided_pairs: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
    seen: set[str] = set()
    pairs = []
    for pair in sided_pairs:
        if len(pair) != 2 or isinstance(pair, str):
            raise ValueError(f"sided_pairs: expected pairs of a left and a right class name, found {pair!r}")
        for name in pair:
            if name not in class_names or name in seen:
                problem = "twice" if name in seen else "which is not a class"
                raise ValueError(f"sided_pairs: expected each class name at most once, found {name!r} {problem}")
            seen.add(name)
        pairs.append((list(class_names).index(pair[0]), list(class_names).index(pair[1])))
    return tuple(pairs)


def _some_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_LISTED} more" if len(names) > _NAMES_LISTED else ""
    return ", ".join(names[:_NAMES_LISTED]) + more

"""Find coded terms for class names: SNOMED CT where pydicom knows the structure, with its side as a modifier."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.writers.segmentation import LONGEST_LABEL
from transforms.left_right import JOINED, find_sides

PRIVATE_SCHEME = "99BODYSEG"
"""Coding scheme of structures that pydicom's part of SNOMED CT has no word for (DICOM PS3.3, 8.2: 99 is private)."""

LONGEST_CODE = 16
"""Characters of a DICOM short string, as a code's value is."""

_SAME = {
    "vertebrae": "vertebra", "vena": "vein", "clavicula": "clavicle", "bowel": "intestine", "oesophagus": "esophagus",
    "tumour": "tumor", "atrial": "auricular", "gland": "", "structure": "", "of": "", "the": "",
}  # fmt: skip
"""Words of class names and of SNOMED CT's terms that say the same; "" for words that say nothing."""

_ABNORMAL = {"tumor", "lesion", "cyst", "nodule", "cancer", "metastasis", "neoplasm", "hematoma", "abscess"}
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


class Term(NamedTuple):
    """What a structure is called in coded form."""

    category: Code
    """Anatomical or abnormal structure (DICOM PS3.16, CID 7150)."""
    code: Code
    """The structure, without its side where `laterality` says it."""
    laterality: Code | None = None
    """Left or right (CID 244)."""


def terms(class_names: Sequence[str]) -> tuple[Term, ...]:
    """Give every class a term; no two classes have the same code and side.

    Where pydicom does not know a structure, or knows another class by the same code already, it gets a code of the
    private scheme with the class name as its meaning.

    >>> liver, left, right = terms(["liver", "kidney_left", "kidney_right"])
    >>> liver.code.meaning, left.code == right.code, left.laterality.meaning
    ('Liver', True, 'Left')
    """
    sides = find_sides(class_names)
    side_of = {index: "left" for index, _ in sides.pairs} | {index: "right" for _, index in sides.pairs}
    partner_of = dict(sides.pairs) | {right: left for left, right in sides.pairs}
    found: list[Term] = []
    taken: set[tuple[str, str, str]] = set()
    for index, name in enumerate(class_names):
        words = _words(name)
        side = side_of.get(index) or next((word for word in words if word in _SIDES), "")
        if index in partner_of:
            words = _without_side(words, _words(class_names[partner_of[index]]))
        words = [word for word in words if word not in _SIDES]
        candidates = list(_candidates(name, words, side))
        term = next((term for term in candidates if _key(term) not in taken), candidates[-1])
        taken.add(_key(term))
        found.append(term)
    return tuple(found)


def _key(term: Term) -> tuple[str, str, str]:
    """What tells a term from others: pydicom's Code cannot be compared with None."""
    return term.code.scheme_designator, term.code.value, term.laterality.meaning if term.laterality else ""


def _without_side(words: Sequence[str], of_partner: Sequence[str]) -> list[str]:
    """The words that the name of the other side has, too; of a word with a joined side the rest (lkid, rkid: kid)."""
    return [rest for word in words if (rest := word if word in of_partner else _rest(word, of_partner))]


def _rest(word: str, of_partner: Sequence[str]) -> str:
    for pair in JOINED:
        for side, other in (pair, pair[::-1]):
            rest = word.removeprefix(side)
            if rest != word and other + rest in of_partner:
                return rest
            rest = word.removesuffix(side)
            if rest != word and rest + other in of_partner:
                return rest
    return ""


def _candidates(name: str, words: Sequence[str], side: str) -> Iterator[Term]:
    """Terms for a name, the best first; the last has a code of its own. A side alone is no structure."""
    is_abnormal = bool(_ABNORMAL & set(words))
    category = codes.SCT.MorphologicallyAbnormalStructure if is_abnormal else codes.SCT.AnatomicalStructure
    modifier = _SIDES.get(side)
    known = _keywords()
    base = "_".join(words) or "structure"
    if words:
        keyword = known.get(frozenset(words))
        if keyword is not None:
            yield Term(category, getattr(codes.SCT, keyword), modifier)
        keyword = known.get(frozenset([*words, side]))
        if modifier is not None and keyword is not None:  # "left auricular appendage" says its side itself
            yield Term(category, getattr(codes.SCT, keyword))
        yield Term(category, _private(base, " ".join(words)), modifier)
    yield Term(category, _private(f"{base} {name}", name))


def _private(base: str, meaning: str) -> Code:
    value = re.sub(r"[^A-Za-z0-9_]+", "_", base)
    if len(value) > LONGEST_CODE or value != base:
        value = f"{value[: LONGEST_CODE - 9]}_{zlib.crc32(base.encode()):08x}"
    return Code(
        value, PRIVATE_SCHEME, re.sub(r"[\\^~|]|[^ -~\u00a0-\uffff]", " ", meaning)[:LONGEST_LABEL].strip() or "?"
    )


def _words(name: str) -> list[str]:
    """The words of a class name or keyword, lower case, numbers with the letter before them ("l5", "12")."""
    found = re.findall(r"[A-Za-z]?\d+|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)
    words = [_SAME.get(word.lower(), word.lower()) for word in found]
    return [word for word in words if word]


@lru_cache(maxsize=1)
def _keywords() -> dict[frozenset[str], str]:
    """pydicom's keyword of SNOMED CT by its words; of several with the same words the shortest."""
    found: dict[frozenset[str], str] = {}
    for keyword in sorted(dir(codes.SCT), key=len, reverse=True):
        words = _words(keyword)
        if len(set(words)) == len(words):
            found[frozenset(words)] = keyword
    return found

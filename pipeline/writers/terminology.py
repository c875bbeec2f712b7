"""Find coded terms for class names: SNOMED CT where pydicom knows the structure, with its side as a modifier."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.visualisation.anatomy_colours import SAME_WORDS
from pipeline.writers.segmentation import LONGEST_LABEL
from transforms.left_right import JOINED, STATED, Sides, find_sides

PRIVATE_SCHEME = "99BODYSEG"
"""Coding scheme of structures that pydicom's part of SNOMED CT has no word for (DICOM PS3.3, 8.2: 99 is private)."""

LONGEST_CODE = 16
"""Characters of a DICOM short string, as a code's value is."""

_ABNORMAL = {"tumor", "lesion", "cyst", "nodule", "cancer", "metastasis", "neoplasm", "hematoma", "abscess"}
_NAMED_WITHOUT = ("bone", "muscle")
"""Words that the names of structures often lack: radius, hyoid, masseter."""

_LISTS = ("CID7151", "CID8134", "CID9514", "CID6300")
"""DICOM's lists (PS3.16) of what a segment may show: segmentation property types and anatomical structures."""

_TAGS = ("(body structure)", "(morphologic abnormality)", "(disorder)")
"""How SNOMED CT marks such concepts in their full names. Others have the same words: "radius" is also a length."""

_NO_STRUCTURES = {"123037004", "17621005"}  # "body structure", which is any; "normal"
_AMBIGUOUS = {frozenset({"ventricle"})}  # of the heart where it has a side; alone it may be one of the brain
_CATEGORIES = {
    "CID7192": codes.SCT.AnatomicalStructure,
    "CID7194": codes.SCT.MorphologicallyAbnormalStructure,
    "CID7191": codes.SCT.Tissue,
    "CID7197": codes.SCT.BodySubstance,
    "CID7193": codes.SCT.PhysicalObject,
}
"""DICOM's lists of property types, and the category (CID 7150) of what is in them; the first that holds it counts."""

_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_LETTERS = {"l": "left", "r": "right", "lh": "left", "rh": "right"}


class Term(NamedTuple):
    """What a structure is called in coded form."""

    category: Code
    """Anatomical or abnormal structure, tissue and the like (DICOM PS3.16, CID 7150)."""
    code: Code
    """The structure, without its side where `laterality` says it."""
    laterality: Code | None = None
    """Left or right (CID 244); of the region, where there is one."""
    region: Code | None = None
    """Where an abnormal structure lies: the liver of a liver tumour."""


def terms(class_names: Sequence[str]) -> tuple[Term, ...]:
    """Give every class a term; no two classes have the same code, region and side.

    Where pydicom does not know a structure, or knows another class by the same code already, it gets a code of the
    private scheme with the class name as its meaning.

    >>> liver, left, right = terms(["liver", "kidney_left", "kidney_right"])
    >>> liver.code.meaning, left.code == right.code, left.laterality.meaning
    ('Liver', True, 'Left')
    """
    sides = find_sides(class_names)
    partners = sides.partners(len(class_names))
    found: list[Term] = []
    taken: set[tuple[str, ...]] = set()
    for index, name in enumerate(class_names):
        words = _words(name)
        side = _side(index, words, sides)
        if partners[index] != index:
            words = _without_side(words, _words(class_names[partners[index]]))
        elif side and words[-1] in _LETTERS:
            words = words[:-1]
        if side:  # the words of a name that states both sides all count
            words = [word for word in words if word not in STATED]
        candidates = list(_candidates(name, words, side))
        term = next((term for term in candidates if _key(term) not in taken), candidates[-1])
        taken.add(_key(term))
        found.append(term)
    return tuple(found)


def _side(index: int, words: Sequence[str], sides: Sides) -> str:
    """ "left" or "right" where a name says so, as one of a pair or alone; else "", also where it says both."""
    for pair in sides.pairs:
        if index in pair:
            return "left" if index == pair[0] else "right"
    if index in sides.without_partner and len(words) > 1 and words[-1] in _LETTERS:
        return _LETTERS[words[-1]]
    stated = {_LETTERS.get(word, word) for word in words if word in STATED}
    return stated.pop() if len(stated) == 1 else ""


def _key(term: Term) -> tuple[str, ...]:
    """What tells a term from others: pydicom's Code cannot be compared with None."""
    modifiers = (term.laterality, term.region)
    return (term.code.scheme_designator, term.code.value, *(code.value if code else "" for code in modifiers))


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
    modifier = _SIDES.get(side)
    base = "_".join(words) or "structure"
    if words:
        for said in (words, [word for word in words if word != "heart"]):  # heart_atrium_left
            if code := _structure(said, side):
                yield Term(_category(code, words), code, modifier)
            if modifier is not None and (code := _structure([*said, side], side)):
                yield Term(_category(code, words), code)  # "left auricular appendage" says its side itself
        abnormal = [word for word in words if _usual(word) in _ABNORMAL]
        organ = [word for word in words if word not in abnormal]
        if (code := _structure(abnormal)) and (region := _structure(organ, side)):
            yield Term(_category(code, words), code, modifier, region)
        own = _private(base, " ".join(words))
        yield Term(_category(own, words), own, modifier)
    own = _private(f"{base} {name}", name)
    yield Term(_category(own, words), own)


def _category(code: Code, words: Sequence[str]) -> Code:
    """The category of a code: that of DICOM's list which holds it, else by the words of the name."""
    is_abnormal = bool(_ABNORMAL.intersection(map(_usual, words)))
    by_words = codes.SCT.MorphologicallyAbnormalStructure if is_abnormal else codes.SCT.AnatomicalStructure
    return next((category for name, category in _CATEGORIES.items() if code.value in _listed(name)), by_words)


def _private(base: str, meaning: str) -> Code:
    value = re.sub(r"[^A-Za-z0-9_]+", "_", base)
    if len(value) > LONGEST_CODE or value != base:
        value = f"{value[: LONGEST_CODE - 9]}_{zlib.crc32(base.encode()):08x}"
    return Code(
        value, PRIVATE_SCHEME, re.sub(r"[\\^~|]|[^ -~\u00a0-\uffff]", " ", meaning)[:LONGEST_LABEL].strip() or "?"
    )


class _Known(NamedTuple):
    """The structures of pydicom's part of SNOMED CT."""

    by_words: dict[frozenset[str], Code]
    by_letters: dict[str, Code]
    """By all words written together: brainstem."""
    longer: dict[frozenset[str], set[str]]
    """Words of a name that lacks one -> the words that any structure has beside them."""


def _structure(words: Sequence[str], side: str = "") -> Code | None:
    """The structure that words name; None where pydicom does not know it or they may mean several."""
    words = [_usual(word) for word in words]
    key = frozenset(words)
    if not words or (key in _AMBIGUOUS and not side):
        return None
    known = _known()
    code = known.by_words.get(key) or known.by_letters.get("".join(words))
    lacking = known.longer.get(key, set())
    if code is None and len(lacking) == 1 and lacking <= set(_NAMED_WITHOUT):
        code = known.by_words[key | lacking]
    return code


@lru_cache(maxsize=1)
def _known() -> _Known:
    """What pydicom knows; of several keywords with the same words the shortest counts, and a keyword before a name."""
    concepts = codes.SCT.concepts
    structures = {code.value for code in concepts.values() if code.meaning.endswith(_TAGS)}
    usual: dict[str, Code] = {}
    for name in _LISTS:
        for keyword in sorted(getattr(codes, name).dir(), key=len):
            if keyword in concepts:  # the others belong to other schemes
                usual.setdefault(concepts[keyword].value, concepts[keyword])
    known = _Known({}, {}, defaultdict(set))
    by_name: dict[frozenset[str], Code] = {}
    for keyword in sorted(concepts, key=lambda keyword: (len(keyword), keyword)):
        code = usual.get(concepts[keyword].value, concepts[keyword])
        is_structure = code.value in usual or code.value in structures
        if not is_structure or code.value in _NO_STRUCTURES or len(code.meaning) > LONGEST_LABEL:
            continue
        words = [_usual(word) for word in _words(keyword)]
        known.by_letters.setdefault("".join(words), code)
        in_words = [_usual(word) for word in _words(code.meaning.split("(")[0])]
        for said, table in ((words, known.by_words), (in_words, by_name)):
            if len(set(said)) == len(said):
                table.setdefault(frozenset(said), code)
    for key, code in by_name.items():
        known.by_words.setdefault(key, code)
    for key in known.by_words:
        for word in key:
            known.longer[key - {word}].add(word)
    return known


@lru_cache(maxsize=len(_CATEGORIES))
def _listed(name: str) -> frozenset[str]:
    """The SNOMED CT codes in one of DICOM's lists."""
    keywords = getattr(codes, name).dir()
    return frozenset(code.value for keyword in keywords if (code := getattr(codes.SCT, keyword, None)) is not None)


def _words(name: str) -> list[str]:
    """The words of a class name or keyword, lower case, numbers with the letter before them ("l5", "12")."""
    found = re.findall(r"[A-Za-z]?\d+|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)
    return [part for word in found for part in SAME_WORDS.get(word.lower(), word.lower()).split()]


def _usual(word: str) -> str:
    """The form of a word that structures are looked up by: singular, and one of words that say the same.

    >>> [_usual(word) for word in ("kidneys", "arteries", "tumours", "pelvis", "pancreas", "abscess")]
    ['kidney', 'artery', 'tumor', 'pelvis', 'pancreas', 'abscess']
    """
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and re.search(r"[^suia]s$", word):
        word = word[:-1]
    return SAME_WORDS.get(word, word)

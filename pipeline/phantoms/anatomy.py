"""Where the structures of a human body lie and how people differ: an atlas of 70 structures and the draw of one body.

Everything is in world millimetres, RAS+: x grows towards the patient's right, y forwards, z upwards; the origin lies
between the sacrum and L5. The atlas is a sketch of an average adult made for this program, not a measurement; the names
are TotalSegmentator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.phantoms.shapes import Ellipsoid, Loft, Points, Shape, Tube, Warp

_SINGLE = (
    *("spleen", "gallbladder", "liver", "stomach", "pancreas", "lung_middle_lobe_right", "esophagus", "trachea"),
    *("small_bowel", "duodenum", "colon", "urinary_bladder", "sacrum", "heart", "aorta", "inferior_vena_cava"),
    *("spinal_cord", "brain", "skull", "sternum"),
)
_PAIRED = (
    *("lung_upper_lobe", "lung_lower_lobe", "kidney", "adrenal_gland", "iliac_artery", "humerus", "scapula"),
    *("clavicula", "femur", "hip", "gluteus_maximus", "autochthon", "ribs"),
)
# Levels of the spine from below: distance to the next level, half width and half depth of the vertebral body (mm).
_SPINE = {f"L{n}": (34.0, 24.0, 17.0) for n in range(5, 0, -1)}
_SPINE |= {f"T{n}": (18.0 + 0.8 * n, 14.5 + 0.55 * n, 13.0 + 0.25 * n) for n in range(12, 0, -1)}
_SPINE |= {f"C{n}": ({7: 17.0, 2: 22.0, 1: 14.0}.get(n, 15.5), 13.5, 10.0) for n in range(7, 0, -1)}

CLASS_NAMES: tuple[str, ...] = (
    "background",
    *_SINGLE,
    *(f"{name}_{side}" for name in _PAIRED for side in ("left", "right")),
    *(f"vertebrae_{level}" for level in _SPINE),
)
"""Background and 70 structures; the position is the value in a label map."""

_SCAN_END = np.array([0.0, 0.0, -205.0])  # scans end at the upper thigh
_AtlasShape = Ellipsoid | Tube | Loft
_Row = Sequence[float]


@dataclass(frozen=True)
class _Entry:
    """One structure of the atlas; a name that is not a class (fat, muscle, disc) is drawn without a label."""

    name: str
    shapes: tuple[_AtlasShape, ...]
    hu: float
    contrast_hu: float = 0.0  # added at full contrast agent
    core_hu: float | None = None  # intensity deeper than wall_mm: marrow, gas in the bowel
    wall_mm: float = 4.0
    shift_sd_mm: float = 2.0
    size_sd: float = 0.04


@dataclass(frozen=True)
class Structure:
    """One structure of one body: class, solids and intensities (HU); later structures override earlier ones."""

    class_index: int
    shapes: tuple[Shape, ...]
    hu: float
    core_hu: float
    """Intensity deeper than wall_mm below the surface."""
    wall_mm: float


@dataclass(frozen=True)
class Body:
    """One person: the structures in painting order, and points (n, 3) in mm that a scan of head and trunk covers."""

    structures: tuple[Structure, ...]
    reach_mm: Points


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a person: height, girth, posture, position, size and intensity of every structure, the contrast agent."""
    warp = _draw_warp(rng)
    contrast = float(rng.uniform(0.2, 1.0))
    structures, boxes = [], []
    for entry in _atlas():
        structures.append(_draw_structure(entry, warp, contrast, rng))
        if entry.name == "skin":
            boxes += [shape.box_mm() for shape in structures[-1].shapes]
    corners = np.array([[box[n, axis] for axis, n in enumerate(pick)] for box in boxes for pick in np.ndindex(2, 2, 2)])
    corners[:, 2] = np.maximum(corners[:, 2], warp.moved(_SCAN_END)[2])
    return Body(tuple(structures), corners)


def _draw_warp(rng: np.random.Generator) -> Warp:
    scale = rng.uniform(0.91, 1.07) * np.array([rng.uniform(0.93, 1.08), rng.uniform(0.93, 1.1), 1.0])
    directions = rng.normal(size=(3, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wavelengths_mm = rng.uniform(350, 700, size=(3, 1))
    phases = rng.uniform(0, 2 * np.pi, size=3)
    return Warp(scale, 2.5 * _deviate(rng, (3, 3)), directions * 2 * np.pi / wavelengths_mm, phases)


def _draw_structure(entry: _Entry, warp: Warp, contrast: float, rng: np.random.Generator) -> Structure:
    shift = entry.shift_sd_mm * _deviate(rng, (3,))
    size = np.exp(entry.size_sd * _deviate(rng, ()))
    drift = 6.0 * _deviate(rng, ())
    shapes = tuple(piece for shape in entry.shapes for piece in shape.placed(warp, shift, float(size)))
    hu = float(entry.hu + drift + contrast * entry.contrast_hu)
    index = CLASS_NAMES.index(entry.name) if entry.name in CLASS_NAMES else 0
    return Structure(index, shapes, hu, hu if entry.core_hu is None else entry.core_hu, entry.wall_mm)


def _deviate(rng: np.random.Generator, shape: tuple[int, ...]) -> Points:
    """Standard normal numbers within two deviations: nobody's liver lies outside the body."""
    return np.asarray(rng.normal(size=shape)).clip(-2, 2)


# How the atlas is written: a blob is an ellipsoid, a tube has (x, y, z, radius) per point, a loft (z, x, y, half width,
# half depth) per level; all in mm.


def _blob(centre: _Row, semi: _Row, along: _Row = (1, 0, 0), towards: _Row = (0, 1, 0)) -> Ellipsoid:
    """Ellipsoid whose first half axis lies along `along` and whose second lies as near to `towards` as it can."""
    first = np.asarray(along, float) / np.linalg.norm(along)
    second = np.asarray(towards, float) - first * np.dot(first, towards)
    second /= np.linalg.norm(second)
    axes = np.stack([first, second, np.cross(first, second)])
    return Ellipsoid(np.asarray(centre, float), np.asarray(semi, float), axes)


def _tube(*points: _Row, squash: _Row = (1, 1, 1)) -> Tube:
    table = np.asarray(points, float)
    return Tube(table[:, :3], table[:, 3], np.asarray(squash, float))


def _loft(*levels: _Row, planes: Sequence[_Row] = ()) -> Loft:
    return Loft(np.asarray(levels, float), np.asarray(planes, float).reshape(-1, 6))


def _pair(name: str, right: Sequence[_AtlasShape], hu: float, **looks: float) -> Iterator[_Entry]:
    """A structure drawn on the patient's right, and its mirror image."""
    yield _Entry(f"{name}_right", tuple(right), hu, **looks)
    yield _Entry(f"{name}_left", tuple(shape.mirrored() for shape in right), hu, **looks)


def _both(*right: _AtlasShape) -> tuple[_AtlasShape, ...]:
    return (*right, *(shape.mirrored() for shape in right))


_TRUNK = [(-300, 0, 0, 150, 95), (-120, 0, 0, 168, 107), (-60, 0, 0, 176, 112), (0, 0, 0, 168, 110)]
_TRUNK += [(80, 0, 2, 152, 108), (160, 0, 2, 154, 112), (260, 0, 0, 162, 118), (340, 0, 0, 165, 112)]
_TRUNK += [(400, 0, -12, 152, 100), (435, 0, -20, 110, 84), (465, 0, -22, 64, 70)]
# The rib cage: centre line of the ribs at each height.
_CHEST = [(100, 0, 3, 122, 84), (160, 0, 2, 131, 91), (220, 0, 0, 137, 95), (280, 0, -2, 135, 93)]
_CHEST += [(340, 0, -6, 122, 85), (390, 0, -12, 96, 68), (420, 0, -18, 68, 52), (446, 0, -22, 30, 26)]
# Sagittal curve of the spine: y of the vertebral bodies' centres over z.
_SPINE_Z = (-20.0, 0.0, 60.0, 120.0, 180.0, 240.0, 320.0, 400.0, 440.0, 500.0, 545.0)
_SPINE_Y = (-46.0, -40.0, -30.0, -34.0, -46.0, -57.0, -63.0, -54.0, -42.0, -26.0, -20.0)
_BONE, _MARROW, _MUSCLE, _FAT, _AIR, _LUNG = 620.0, 260.0, 55.0, -100.0, -990.0, -830.0


def _spine_y(z: float) -> float:
    return float(np.interp(z, _SPINE_Z, _SPINE_Y))


def _atlas() -> Iterator[_Entry]:
    """All structures in painting order: from the skin inwards."""
    yield _skin()
    yield from _flesh()
    yield from _chest()
    yield from _abdomen()
    yield from _vessels()
    yield from _spine()
    yield from _rib_cage()
    yield from _limbs()
    yield from _head()


def _skin() -> _Entry:
    neck = _tube((0, -24, 430, 63), (0, -10, 575, 54))
    head, face = _blob((0, 16, 625), (77, 98, 90)), _blob((0, 66, 570), (56, 56, 62))
    shoulders = _both(_tube((0, -20, 445, 45), (120, -14, 412, 52), (176, -8, 400, 50)))
    arms = _both(_tube((178, -8, 395, 50), (200, -16, 125, 44), (204, 20, -80, 31), (200, 40, -150, 32)))
    legs = _both(_tube((92, -4, -95, 88), (96, 0, -330, 78)), _blob((68, -72, -80), (82, 58, 85)))
    outline = (_loft(*_TRUNK), neck, head, face, *shoulders, *arms, *legs)
    return _Entry("skin", outline, _FAT, shift_sd_mm=0.0, size_sd=0.03)


def _flesh() -> Iterator[_Entry]:
    trunk = _loft(*((z, x, y, rx - 17, ry - 14) for z, x, y, rx, ry in _TRUNK))
    neck = _tube((0, -24, 430, 56), (0, -10, 575, 48))
    head, face = _blob((0, 16, 625), (72, 92, 84)), _blob((0, 64, 570), (50, 52, 56))
    shoulders = _both(_tube((0, -20, 445, 36), (120, -14, 412, 44), (174, -8, 400, 42)))
    arms = _both(_tube((176, -8, 395, 41), (200, -16, 125, 35), (204, 20, -80, 24)))
    legs = _both(_tube((92, -4, -95, 76), (96, 0, -330, 66)))
    muscles = (trunk, neck, head, face, *shoulders, *arms, *legs)
    yield _Entry("muscle", muscles, _MUSCLE, shift_sd_mm=0.0, size_sd=0.02)
    forearm = _both(_tube((207, -12, 105, 7), (209, 22, -90, 6)), _tube((193, -16, 110, 7), (197, 18, -90, 6)))
    yield _Entry("forearm", forearm, _BONE)
    cavity = [(-125, 0, 0, 50, 45), (-90, 0, 5, 75, 62), (-40, 0, 8, 88, 72), (0, 0, 8, 110, 76)]
    cavity += [(80, 0, 10, 122, 80), (200, 0, 6, 125, 84)]
    yield _Entry("abdominal fat", (_loft(*cavity),), _FAT, shift_sd_mm=0.0)


def _chest() -> Iterator[_Entry]:
    inner: list[_Row] = [(z, x, y, rx - 9, ry - 9) for z, x, y, rx, ry in _CHEST]
    inner[-1] = (440, 0, -20, 12, 12)
    fixed = {"shift_sd_mm": 0.0, "size_sd": 0.01}
    yield _Entry("mediastinal fat", (_loft(*inner, planes=[(0, 0, 170, 0, 0, 1)]),), -70.0, **fixed)
    side, base, fissure = (20, 0, 0, 1, 0, 0), (0, 0, 165, 0, 0, 1), (0, -18, 318, 0, 0.75, 0.66)
    behind, above, below = (*fissure[:3], 0, -0.75, -0.66), (0, 0, 312, 0, 0, 1), (0, 0, 312, 0, 0, -1)
    upper = _loft(*inner, planes=[side, base, fissure, above])
    yield _Entry("lung_upper_lobe_right", (upper,), _LUNG, **fixed)
    yield _Entry("lung_middle_lobe_right", (_loft(*inner, planes=[side, base, fissure, below]),), _LUNG, **fixed)
    yield _Entry("lung_upper_lobe_left", (_loft(*inner, planes=[side, base, fissure]).mirrored(),), _LUNG, **fixed)
    yield from _pair("lung_lower_lobe", [_loft(*inner, planes=[side, base, behind])], _LUNG, **fixed)
    bronchi = _both(_tube((0, -16, 366, 9), (42, -22, 332, 7)))
    windpipe = _tube((0, 10, 490, 10), (0, -2, 430, 10), (0, -16, 366, 10))
    yield _Entry("trachea", (windpipe, *bronchi), 0.0, core_hu=_AIR, wall_mm=2)
    gullet = [(0, -7, 495, 8), (0, -22, 430, 8), (-2, -38, 365, 8), (-6, -34, 300, 8), (-16, -14, 245, 8)]
    gullet += [(-30, 2, 225, 8)]
    domes = (_blob((62, 4, 190), (73, 83, 103)), _blob((-62, 4, 180), (72, 83, 94)))
    yield _Entry("diaphragm", domes, _MUSCLE)
    yield _Entry("abdominal fat", (_blob((-60, 4, 172), (66, 76, 88)), _blob((60, 4, 165), (66, 76, 70))), _FAT)
    yield _Entry("esophagus", (_tube(*gullet),), 38.0)
    yield _Entry("heart", (_blob((-16, 30, 282), (62, 47, 45), along=(-0.62, 0.45, -0.64)),), 45.0, 110.0)


def _abdomen() -> Iterator[_Entry]:
    lobe, left_lobe = _blob((66, 6, 205), (61, 72, 80), (1, 0, 0.15)), _blob((8, 46, 222), (66, 34, 38), (1, 0, 0.25))
    yield _Entry("liver", (lobe, left_lobe), 58.0, 50.0)
    spleen = _blob((-96, -32, 200), (24, 40, 54), along=(1, 0.5, 0), towards=(-0.4, 0.8, 0.4))
    yield _Entry("spleen", (spleen,), 50.0, 70.0)
    stomach = _tube((-34, 8, 232, 17), (-60, 16, 215, 33), (-58, 38, 170, 29), (-26, 56, 132, 20), (14, 48, 130, 13))
    yield _Entry("stomach", (stomach,), 45.0, core_hu=5.0, wall_mm=6)
    yield _Entry("gallbladder", (_blob((46, 50, 152), (15, 20, 26), along=(1, 0, 0)),), 8.0)
    for side, z in ((1, 108), (-1, 121)):
        name, lie = "right" if side > 0 else "left", (0.25 * side, 0, -1)
        kidney = _blob((64 * side, -36, z), (54, 27, 25), along=lie)
        yield _Entry(f"kidney_{name}", (kidney,), 35.0, 150.0)
        yield _Entry(f"adrenal_gland_{name}", (_blob((38 * side, -22, z + 60), (17, 13, 8), along=lie),), 35.0, 40.0)
    rows = [(side * (52 - 8 * (n % 3)), 44 - 16 * (n % 2), 74 - 12.0 * n, 13) for n in range(10) for side in (1, -1)]
    yield _Entry("small_bowel", (_tube(*rows),), 40.0, 30.0, core_hu=20.0)
    bend = [(24, 40, 134, 12), (44, 22, 128, 12), (44, 12, 85, 11), (16, 10, 70, 11), (-18, 16, 84, 11)]
    yield _Entry("duodenum", (_tube(*bend),), 32.0, 25.0)
    pancreas = [(28, 18, 122, 14), (0, 24, 142, 11), (-38, 6, 160, 10), (-72, -14, 174, 9)]
    yield _Entry("pancreas", (_tube(*pancreas),), 42.0, 60.0)
    colon = [(84, 18, -15, 24), (92, 6, 60, 22), (90, 8, 112, 21), (78, 40, 122, 19), (28, 72, 96, 18)]
    colon += [
        (-40, 70, 104, 18),
        (-88, 22, 158, 18),
        (-98, -8, 130, 17),
        (-98, -8, 50, 17),
        (-90, 10, -10, 17),
        (-62, 30, -48, 16),
    ]
    colon += [(-16, 8, -42, 16), (4, -30, -62, 17), (0, -50, -90, 19), (0, -46, -118, 14)]
    yield _Entry("colon", (_tube(*colon),), 35.0, core_hu=-450.0, wall_mm=6)
    yield _Entry("urinary_bladder", (_blob((0, 38, -82), (38, 32, 29)),), 10.0, size_sd=0.1)


def _vessels() -> Iterator[_Entry]:
    aorta: list[_Row] = [(4, 20, 305, 15), (16, 26, 345, 15), (6, 8, 372, 13), (-14, -22, 372, 12), (-24, -38, 340, 12)]
    aorta += [(-22, -38, 250, 11.5), (-10, -22, 180, 11), (-6, -6, 110, 10), (-3, -4, 42, 9)]
    yield _Entry("aorta", (_tube(*aorta),), 42.0, 240.0, shift_sd_mm=1)
    cava = [(20, -10, 36, 11), (24, -8, 130, 11.5), (26, 6, 220, 12), (22, 14, 258, 13)]
    yield _Entry("inferior_vena_cava", (_tube(*cava),), 42.0, 110.0, shift_sd_mm=1)
    iliac = _tube((1, -4, 42, 7), (26, -8, 4, 6.5), (52, 14, -45, 6.5), (72, 50, -82, 6), (86, 62, -130, 6))
    yield from _pair("iliac_artery", [iliac], 42.0, contrast_hu=220.0, shift_sd_mm=1)
    yield _Entry("psoas", _both(_tube((38, -34, 145, 12), (48, -22, 20, 22), (92, 14, -80, 20))), _MUSCLE)


def _spine() -> Iterator[_Entry]:
    back = [(30, _spine_y(z) - 40 + 8 * (z > 380), z, 12 + 9 * (z < 380) + 4 * (z < 160)) for z in range(-25, 500, 45)]
    yield from _pair("autochthon", [_tube(*back)], _MUSCLE, shift_sd_mm=0.5)
    column = [(0, _spine_y(z), z, 17 - 7 * (z > 430)) for z in np.linspace(2, 540, 26)]
    yield _Entry("discs", (_tube(*column, squash=(1.2, 0.8, 1)),), 90.0, shift_sd_mm=0.5)
    z, steady = 0.0, {"shift_sd_mm": 0.5, "size_sd": 0.03, "core_hu": _MARROW - 60}
    sacrum = (_tube((0, -48, -14, 24), (0, -72, -45, 19), (0, -88, -80, 13), (0, -80, -115, 8), squash=(1.7, 1, 1)),)
    yield _Entry("sacrum", sacrum, _BONE - 150, **steady)
    for level, (height, rx, ry) in _SPINE.items():
        yield _Entry(f"vertebrae_{level}", _vertebra(z, height, rx, ry), _BONE - 100, **steady)
        z += height
    cord = [(0, _canal_y(z), z, 8) for z in (60, 120, 180, 240, 320, 400, 440, 500, 556)]
    yield _Entry("spinal_cord", (_tube(*cord),), 32.0, shift_sd_mm=0.5)


def _canal_y(z: float) -> float:
    return _spine_y(z) - 25.0 + 4.0 * (z > 430)


def _vertebra(z: float, height: float, rx: float, ry: float) -> tuple[_AtlasShape, ...]:
    """Body, arch, spinous and transverse processes of the vertebra whose lower disc lies at z (mm)."""
    middle, half = z + height / 2, 0.43 * height
    y, canal, reach = _spine_y(middle), _canal_y(middle), rx + 14.0
    body = _loft((middle - half, 0, y, rx, ry), (middle, 0, y, 0.93 * rx, 0.93 * ry), (middle + half, 0, y, rx, ry))
    arch = _blob((0, canal, middle), (15, 14, 0.36 * height))
    length = 32 - 12 * (z > 430)
    spine = _tube((0, canal - 10, middle, 5), (0, canal - length, middle - 0.4 * height, 4.5))
    return body, arch, spine, *_both(_tube((10, canal + 4, middle, 5), (reach, canal - 2, middle, 4.5)))


def _rib_cage() -> Iterator[_Entry]:
    ribs = [_rib(level) for level in range(1, 13)]
    cartilage = [_tube((*_rib_point(n, 1.0), 5), (14, 82 - 4 * abs(n - 5), 405 - 21 * n, 5)) for n in range(1, 8)]
    yield _Entry("costal cartilage", _both(*cartilage), 110.0, shift_sd_mm=0.5)
    yield from _pair("ribs", ribs, _BONE - 60, core_hu=_MARROW + 60, wall_mm=3, shift_sd_mm=0.7)
    sternum = _tube((0, 62, 402, 9), (0, 78, 340, 8), (0, 92, 262, 8), squash=(2.0, 1, 1))
    yield _Entry("sternum", (sternum,), _BONE - 200, core_hu=_MARROW - 80, shift_sd_mm=1)


def _rib(level: int) -> Tube:
    return _tube(*((*_rib_point(level, share), 5.0) for share in np.linspace(0, 1, 9)))


def _rib_point(level: int, share: float) -> tuple[float, float, float]:
    """Point on the centre line of the right rib of a level (1..12), from its head (share 0) to its end (share 1)."""
    heights = np.cumsum([height for height, _, _ in _SPINE.values()])
    start = float(heights[list(_SPINE).index(f"T{level}")]) - 4
    end = np.radians(140 if level < 8 else 140 - 17 * (level - 7))
    angle = np.radians(9) + (end - np.radians(9)) * share
    z = start - (20 + 9 * min(level, 8)) * (1 - np.cos(angle)) / 2
    cy, rx, ry = (float(np.interp(z, [row[0] for row in _CHEST], [row[n] for row in _CHEST])) for n in (2, 3, 4))
    return rx * float(np.sin(angle)), cy - ry * float(np.cos(angle)), z


def _limbs() -> Iterator[_Entry]:
    bone = {"core_hu": _MARROW, "wall_mm": 5, "shift_sd_mm": 1.0}
    blade = _blob((104, -72, 345), (68, 46, 7), along=(-0.1, 0.1, 1), towards=(0.84, 0.54, 0))
    spine = _tube((72, -84, 375, 6), (135, -58, 408, 8), (162, -22, 424, 8))
    yield from _pair("scapula", [blade, spine, _tube((128, -46, 380, 9), (152, -18, 396, 14))], _BONE - 50, **bone)
    collar = _tube((18, 58, 412, 9), (70, 52, 424, 7), (120, 18, 430, 7), (158, -6, 428, 8))
    yield from _pair("clavicula", [collar], _BONE, **bone)
    upper_arm = _tube((172, -10, 400, 23), (180, -12, 370, 14), (200, -18, 150, 11), (200, -16, 122, 19))
    yield from _pair("humerus", [upper_arm], _BONE, **bone)
    wing = _blob((84, -14, -8), (72, 56, 10), along=(0.59, 0.81, 0), towards=(0.35, -0.2, 0.9))
    ring = _tube((72, -8, -84, 17), (60, -46, -128, 17), (14, 60, -104, 9), (76, 26, -74, 12))
    yield from _pair("hip", [wing, _blob((86, 0, -70), (28, 30, 34)), ring], _BONE - 80, **bone)
    thigh = _tube((94, 2, -74, 24), (124, -4, -98, 17), (132, -6, -118, 19), (124, 2, -170, 16), (112, 6, -330, 14))
    yield from _pair("femur", [thigh], _BONE + 80, **bone)
    yield from _pair("gluteus_maximus", [_blob((76, -84, -72), (54, 22, 64), along=(1, 0.3, -0.2))], _MUSCLE + 5)


def _head() -> Iterator[_Entry]:
    firm = {"shift_sd_mm": 0.5}
    face = _blob((0, 68, 588), (44, 36, 34))
    jaw = _tube((50, 30, 592, 8), (48, 42, 548, 9), (24, 90, 536, 9), (0, 98, 535, 9))
    yield _Entry("skull", (_blob((0, 14, 634), (67, 86, 72)), face, *_both(jaw)), 850.0, size_sd=0.01, **firm)
    yield _Entry("airway", (_blob((0, 72, 584), (17, 32, 24)), _tube((0, 40, 575, 11), (0, 12, 490, 10))), _AIR, **firm)
    yield _Entry("brain", (_blob((0, 14, 635), (59, 78, 63)),), 36.0, size_sd=0.01, **firm)

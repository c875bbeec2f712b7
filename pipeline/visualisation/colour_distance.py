"""How different two colours look: CIEDE2000 between sRGB colours, also as people without one kind of cone see them.

A distance of 1 is what a trained eye just notices between two fields side by side. CIELAB under D65 and CIEDE2000 as in
CIE 15 and Sharma, Wu and Dalal (2005); the missing cones as in Machado, Oliveira and Fernandes (2009), severity 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_XYZ_OF_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_LIGHTEST_LINEAR = 216 / 24389  # below it the cube root of CIELAB is a line, of the slope 24389 / 27 / 116
_MACHADO = {
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
VISIONS = ("normal", *_MACHADO)
"""How colours are seen: with all cones, or without the green or the red ones."""


def lab(rgb: ArrayLike, vision: str = "normal") -> NDArray[np.float64]:
    """CIELAB (L*, a*, b*) of sRGB colours.

    Args:
        rgb: (…, 3), 0…255.
        vision: of `VISIONS`.
    """
    encoded = np.asarray(rgb, np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    if vision != "normal":
        linear = np.clip(linear @ _MACHADO[vision].T, 0, 1)
    xyz = linear @ _XYZ_OF_SRGB.T / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > _LIGHTEST_LINEAR, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """CIEDE2000 between CIELAB colours, (…, 3) each; the shapes are broadcast.

    >>> round(float(ciede2000([50, 2.6772, -79.7751], [50, 0, -82.7485])), 4)
    2.0425
    """
    (l1, a1, b1), (l2, a2, b2) = (np.moveaxis(np.asarray(one, np.float64), -1, 0) for one in (first, second))
    grey = 1.5 - 0.5 * np.sqrt(_saturated((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    c1, c2 = np.hypot(grey * a1, b1), np.hypot(grey * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, grey * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    without_hue = c1 * c2 == 0
    turn = np.where(without_hue, 0.0, (h2 - h1 + 180) % 360 - 180)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = np.where(without_hue, h1 + h2, _mean_angle(h1, h2))
    t = 1 - 0.17 * _cos(hue - 30) + 0.24 * _cos(2 * hue) + 0.32 * _cos(3 * hue + 6) - 0.20 * _cos(4 * hue - 63)
    rotation = -np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))) * 2 * np.sqrt(_saturated(chroma))
    by_lightness = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    return np.asarray(np.sqrt(by_lightness**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue))


def _saturated(chroma: NDArray[np.float64]) -> NDArray[np.float64]:
    return chroma**7 / (chroma**7 + 25.0**7)


def _mean_angle(h1: NDArray[np.float64], h2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between two hues, on the shorter way round."""
    total = h1 + h2
    beyond = np.where(total < 360, total + 360, total - 360)
    return np.where(np.abs(h1 - h2) <= 180, total, beyond) / 2


def _cos(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.cos(np.radians(degrees)))

"""Pixels of the demo world: outlines, fills, backgrounds and rendering styles. Words and captions live in `world`.

A shape is drawn on a canvas of twice the final size and averaged down, which gives smooth edges; the rendering style then
changes the 48x48 picture as a whole. Pictures are float arrays [height, width, 3] in 0..1 until the last step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


IMAGE_SIZE = 48
"""Side of every image in pixels."""

_OVERSAMPLING = 2
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_ROWS, _COLUMNS = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
_FINE = ((np.arange(IMAGE_SIZE * _OVERSAMPLING) + 0.5) / _OVERSAMPLING).astype(np.float32)
"""Position of each oversampled row or column, in pixels."""

Colour = tuple[int, int, int]


# --- shapes: closed polygons [points, 2] in a frame where 1 is the radius, x to the right, y down -----------------------


def _polar(degrees: np.ndarray, radii: float | np.ndarray = 1.0) -> np.ndarray:
    """Return the points at these angles (0 is up, clockwise) and radii."""
    radians = np.deg2rad(degrees)
    return np.stack([radii * np.sin(radians), -radii * np.cos(radians)], axis=1)


def _regular(corners: int, turn: float = 0.0) -> np.ndarray:
    return _polar(np.arange(corners) * 360.0 / corners + turn)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], axis=1) / 16


def _crescent() -> np.ndarray:
    inner = 0.8 * _polar(np.linspace(300, 60, 32)) + [0.42, 0.0]
    return np.concatenate([_polar(np.linspace(52, 308, 48)), inner]) + [0.2, 0.0]


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([0.95 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], axis=1)


def _cross(arm: float = 0.34) -> np.ndarray:
    corner = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm], [1.0, arm]])
    quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


OUTLINES: dict[str, np.ndarray] = {
    "circle": 0.92 * _regular(48),
    "oval": _regular(48) * [1.0, 0.52],
    "semicircle": _polar(np.linspace(-90, 90, 32)) + [0.0, 0.45],
    "triangle": 1.1 * _regular(3) + [0.0, 0.2],
    "square": 1.12 * _regular(4, turn=45),
    "diamond": _regular(4) * [0.64, 1.08],
    "pentagon": _regular(5),
    "star": 1.1 * _polar(np.arange(10) * 36.0, np.where(np.arange(10) % 2, 0.42, 1.0)),
    "heart": _heart(),
    "cross": _cross(),
    "crescent": _crescent(),
    "arrow": np.array([[-1, -0.3], [0.1, -0.3], [0.1, -0.8], [1, 0], [0.1, 0.8], [0.1, 0.3], [-1, 0.3]]),
    "drop": _drop(),
    "bolt": np.array([[0.25, -1.1], [-0.62, 0.18], [-0.08, 0.18], [-0.3, 1.1], [0.62, -0.28], [0.06, -0.28]]),
}


# --- fills: the share of the second colour at (u, v) in the shape's own frame -------------------------------------------


def _striped(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (2.1 * v) % 1 < 0.5


def _dotted(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return ((2 * u) % 1 - 0.5) ** 2 + ((2 * v) % 1 - 0.5) ** 2 < 0.1


def _checkered(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.floor(2.1 * u) + np.floor(2.1 * v)) % 2 == 0


def _ringed(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (2.1 * np.hypot(u, v)) % 1 < 0.5


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "ringed": _ringed,
}

FILLS = ("solid", "hollow", *PATTERNS)


# --- rendering styles ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How a scene is rendered; the defaults change nothing.

    Args:
        outline: Width of a dark contour around the shape, in pixels.
        shading: Strength of a light-to-dark gradient over the picture, 0..1.
        blur: Radius of a Gaussian blur, in pixels.
        pixel: Side of the squares of a mosaic, in pixels (1: none).
        levels: Number of brightness levels per channel (0: no posterisation).
        noise: Standard deviation of Gaussian noise, 0..1.
        wash: Share of white mixed into the picture, 0..1.
        saturation: Factor on the distance of each colour from gray.
        hue: Rotation of all hues in degrees.
        brightness: Factor on all channels.
        invert: Share of the negative mixed into the picture, 0..1.
        light: Colour of the light; white leaves the picture as it is.
        grain: Strength of a woven texture laid over the picture, 0..1.
    """

    outline: float = 0.0
    shading: float = 0.0
    blur: float = 0.0
    pixel: int = 1
    levels: int = 0
    noise: float = 0.0
    wash: float = 0.0
    saturation: float = 1.0
    hue: float = 0.0
    brightness: float = 1.0
    invert: float = 0.0
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grain: float = 0.0


def _shade(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * _COLUMNS + np.sin(angle) * _ROWS) * (2 / IMAGE_SIZE)
    return picture * (1 + 0.7 * strength * (slope - slope.mean()))[..., None]


def _rotate_hue(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate all colours about the gray axis (Rodrigues' formula)."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)) / np.sqrt(3)
    third = (1 - cosine) / 3
    rotation = third + np.array([[cosine, -sine, sine], [sine, cosine, -sine], [-sine, sine, cosine]])
    return picture @ rotation.T


def _recolour(picture: np.ndarray, style: Style) -> np.ndarray:
    if style.invert:
        picture = picture + style.invert * (1 - 2 * picture)
    if style.hue:
        picture = _rotate_hue(picture, style.hue)
    if style.saturation != 1:
        gray = (picture @ _LUMINANCE)[..., None]
        picture = gray + style.saturation * (picture - gray)
    picture = picture + style.wash * (1 - picture)
    return picture * (style.brightness * np.asarray(style.light))


def _weave(strength: float) -> np.ndarray:
    return 1 + strength * np.where((_COLUMNS // 2 + _ROWS // 2) % 2, 0.5, -0.5)[..., None]


def _filter(picture: np.ndarray, style: Style) -> np.ndarray:
    """Apply the effects that Pillow has: blur and mosaic."""
    if not style.blur and style.pixel == 1:
        return picture
    image = _to_image(picture)
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur))
    if style.pixel > 1:
        image = image.resize((IMAGE_SIZE // style.pixel,) * 2, Image.Resampling.BOX)
        image = image.resize((IMAGE_SIZE,) * 2, Image.Resampling.NEAREST)
    return np.asarray(image, dtype=np.float32) / 255


def _stylise(picture: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    if style.shading:
        picture = _shade(picture, style.shading, rng)
    picture = np.clip(_recolour(picture, style), 0, 1)
    if style.levels:
        picture = np.round(picture * (style.levels - 1)) / (style.levels - 1)
    picture = _filter(picture, style)
    if style.grain:
        picture = picture * _weave(style.grain)
    if style.noise:
        picture = picture + rng.normal(0, style.noise, picture.shape)
    return picture


def _to_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


# --- the picture --------------------------------------------------------------------------------------------------------


def _coverage(points: np.ndarray, width: float = 0.0) -> np.ndarray:
    """Share of each pixel inside the polygon (or under its contour, when `width` is positive): [height, width, 1]."""
    image = Image.new("L", (IMAGE_SIZE * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(image)
    corners = [tuple(point) for point in points * _OVERSAMPLING]
    if width:
        pen.line([*corners, *corners[:2]], fill=255, width=max(1, round(width * _OVERSAMPLING)), joint="curve")
    else:
        pen.polygon(corners, fill=255)
    return np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32)[..., None] / 255


def _mix(first: np.ndarray | float, second: np.ndarray | float, share: np.ndarray | float) -> Any:
    return first + share * (second - first)


def _paint_ground(ground: str, paper: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the background, [height, width, 3]."""
    if ground == "plain":
        share = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    elif ground == "lined":
        share = _ROWS % 6 == 0
    elif ground == "grid":
        share = (_ROWS % 7 == 0) | (_COLUMNS % 7 == 0)
    elif ground == "speckled":
        share = rng.random((IMAGE_SIZE // 2,) * 2, dtype=np.float32).repeat(2, 0).repeat(2, 1) ** 2
    else:
        raise ValueError(f"Expected ground 'plain', 'lined', 'grid' or 'speckled'. Received: {ground!r}.")
    return _mix(paper, _second_shade(paper, 0.35), share[..., None].astype(np.float32))


def _second_shade(colour: np.ndarray, amount: float) -> np.ndarray:
    """Return a lighter version of a dark colour, a darker version of a light one."""
    return _mix(colour, 0.0 if colour @ _LUMINANCE > 0.5 else 1.0, amount)


def _pattern_share(fill: str, frame: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Share of each pixel that has the second colour, for a shape frame [2, 2] (rows: its axes, in pixels)."""
    (ux, vx), (uy, vy) = np.linalg.inv(frame).astype(np.float32)
    x, y = _FINE[None, :] - np.float32(centre[0]), _FINE[:, None] - np.float32(centre[1])
    share = PATTERNS[fill](ux * x + uy * y, vx * x + vy * y).astype(np.float32)
    return share.reshape(IMAGE_SIZE, _OVERSAMPLING, IMAGE_SIZE, _OVERSAMPLING).mean(axis=(1, 3))[..., None]


def _random_frame(radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a slightly rotated, perhaps mirrored frame [2, 2] of this radius, and a centre [2] within the picture."""
    room = min(0.06 * IMAGE_SIZE, IMAGE_SIZE / 2 - radius)
    centre = IMAGE_SIZE / 2 + rng.uniform(-room, room, 2)
    angle = np.deg2rad(rng.uniform(-12, 12))
    frame = radius * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return frame * [[rng.choice([-1, 1])], [1]], centre


def draw(
    shape: str,
    fill: str,
    colour: Colour,
    background: Colour,
    ground: str,
    radius: float,
    style: Style,
    rng: np.random.Generator,
) -> Image.Image:
    """Draw one shape.

    Args:
        shape: A key of `OUTLINES`.
        fill: One of `FILLS`.
        colour: Main colour of the shape, RGB in 0..255.
        background: Main colour of the background, RGB in 0..255.
        ground: Background texture: `"plain"`, `"lined"`, `"grid"` or `"speckled"`.
        radius: Radius of the shape in pixels.
        style: Rendering style.
        rng: Source of the free details: position, rotation, mirror image, shades and noise.

    Returns:
        An RGB image of `IMAGE_SIZE` x `IMAGE_SIZE` pixels.

    Raises:
        ValueError: If `ground` is unknown.
        KeyError: If `shape` or `fill` is unknown.
    """
    ink, paper = (np.asarray(c, dtype=np.float32) / 255 + rng.normal(0, 0.025, 3) for c in (colour, background))
    frame, centre = _random_frame(radius, rng)
    contour = OUTLINES[shape] @ frame + centre

    picture = _paint_ground(ground, paper, rng)
    if fill == "hollow":
        picture = _mix(picture, ink, _coverage(contour, width=0.24 * radius))
    else:
        paint = ink if fill == "solid" else _mix(ink, _second_shade(ink, 0.7), _pattern_share(fill, frame, centre))
        picture = _mix(picture, paint, _coverage(contour))
    if style.outline:
        picture = _mix(picture, 0.08, _coverage(contour, width=style.outline))
    return _to_image(_stylise(picture, style, rng))

"""The demo world: what a scene can contain, how scenes are drawn at random, and the captions that describe them.

A scene is one coloured, filled shape of some size on a background, in a rendering style and sometimes in coloured light.
Everything is drawn from a seeded generator; the same seed gives the same pictures and captions.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .drawing import FILLS, IMAGE_SIZE, OUTLINES, Colour, Style, draw


COLOURS: dict[str, Colour] = {
    "red": (214, 32, 38),
    "orange": (245, 132, 31),
    "yellow": (250, 218, 44),
    "green": (44, 160, 62),
    "cyan": (48, 198, 205),
    "blue": (38, 82, 205),
    "purple": (126, 44, 160),
    "pink": (246, 138, 180),
    "brown": (122, 74, 38),
    "black": (24, 24, 26),
    "white": (246, 246, 244),
    "gray": (134, 136, 138),
}

BACKGROUNDS: dict[str, Colour] = {
    "white": (240, 240, 238),
    "black": (22, 22, 24),
    "gray": (150, 150, 150),
    "cream": (232, 218, 180),
    "navy": (22, 34, 82),
    "mint": (172, 222, 196),
}

GROUNDS: dict[str, str] = {"plain": "background", "lined": "lined paper", "grid": "grid", "speckled": "stone"}
"""Background texture -> its word in captions."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.24, 0.28), "medium": (0.3, 0.36), "large": (0.38, 0.44)}
"""Size word -> range of the radius, as a share of the side of the picture."""

STYLES: dict[str, Style] = {
    "photo": Style(shading=0.35, noise=0.02, blur=0.4),
    "drawing": Style(),
    "sketch": Style(outline=1.2, saturation=0.6, wash=0.2),
    "painting": Style(levels=4, blur=0.6),
    "cartoon": Style(outline=1.7, saturation=1.3),
    "pastel": Style(wash=0.45, blur=0.3),
    "blurry photo": Style(blur=1.4, shading=0.3),
    "grainy photo": Style(noise=0.11, shading=0.3),
    "dark photo": Style(brightness=0.5, shading=0.4, noise=0.02),
    "faded photo": Style(saturation=0.45, wash=0.25, shading=0.2),
    "mosaic": Style(pixel=3),
    "tapestry": Style(grain=0.45),
}
"""Rendering styles of the pretraining world -> their look. The key is the noun of the caption: "a mosaic of ..."."""

CLEAN_STYLES = ("photo", "drawing", "sketch", "cartoon")
"""Styles in which shape and fill are easy to see."""

LIGHTS: dict[str, tuple[float, float, float]] = {
    "red": (1.15, 0.72, 0.72),
    "blue": (0.72, 0.8, 1.2),
    "green": (0.76, 1.12, 0.72),
    "golden": (1.15, 0.98, 0.6),
}

SYNONYMS: dict[str, str] = {
    "red": "crimson",
    "orange": "tangerine",
    "yellow": "golden",
    "green": "emerald",
    "cyan": "turquoise",
    "blue": "azure",
    "purple": "violet",
    "pink": "rose",
    "gray": "silver",
    "circle": "disc",
    "oval": "ellipse",
    "triangle": "wedge",
    "square": "box",
    "diamond": "rhombus",
    "cross": "plus",
    "crescent": "moon",
    "drop": "teardrop",
    "bolt": "lightning bolt",
    "striped": "lined",
    "dotted": "spotted",
    "checkered": "tiled",
    "hollow": "open",
    "ringed": "banded",
    "solid": "plain",
    "small": "tiny",
    "large": "big",
}
"""Words that captions use now and then instead of the common one."""
SYNONYM_RATE = 0.15
"""Share of the places where a caption uses the synonym."""

GENERIC_NOUNS = ("picture", "image")
"""Caption nouns that say nothing about the style."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Every field is a key of the tables above; `light` may be None."""

    shape: str
    colour: str
    fill: str
    size: str
    background: str
    ground: str
    style: str
    light: str | None = None


def _pick(rng: np.random.Generator, options) -> str:
    options = tuple(options)
    return options[rng.integers(len(options))]


def contrasting_backgrounds(colour: Colour, least: float = 120.0) -> list[str]:
    """Return the backgrounds on which this colour is easy to see (Euclidean RGB distance of at least `least`)."""
    return [name for name, other in BACKGROUNDS.items() if np.linalg.norm(np.subtract(colour, other)) >= least]


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of the pretraining world: all attributes independent, the background in contrast to the colour."""
    colour = _pick(rng, COLOURS)
    return Scene(
        shape=_pick(rng, OUTLINES),
        colour=colour,
        fill=_pick(rng, FILLS),
        size=_pick(rng, SIZES),
        background=_pick(rng, contrasting_backgrounds(COLOURS[colour])),
        ground=_pick(rng, GROUNDS) if rng.random() < 0.5 else "plain",
        style=_pick(rng, STYLES),
        light=_pick(rng, LIGHTS) if rng.random() < 0.25 else None,
    )


def simplify(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the same shape, colour and fill, large enough, on a plain ground, in plain light and a clean style."""
    style = _pick(rng, CLEAN_STYLES)
    return replace(scene, size=_pick(rng, ("medium", "large")), ground="plain", style=style, light=None)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw the scene; position, rotation, exact radius, shades and noise come from `rng`."""
    style = STYLES[scene.style]
    if scene.light is not None:
        style = replace(style, light=LIGHTS[scene.light])
    return draw(
        scene.shape,
        scene.fill,
        colour=COLOURS[scene.colour],
        background=BACKGROUNDS[scene.background],
        ground=scene.ground,
        radius=IMAGE_SIZE * rng.uniform(*SIZES[scene.size]),
        style=style,
        rng=rng,
    )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption of the scene, such as "a sketch of a small striped red triangle on a grid".

    Colour, shape and (except "solid") fill are always named; size, style, background and light only sometimes.
    """

    def word(name: str) -> str:
        return SYNONYMS[name] if name in SYNONYMS and rng.random() < SYNONYM_RATE else name

    words = [word(scene.colour), word(scene.shape)]
    if scene.fill != "solid" or rng.random() < 0.3:
        words.insert(0, word(scene.fill))
    if scene.size != "medium" and rng.random() < 0.4:
        words.insert(0, word(scene.size))
    caption = _with_article(" ".join(words))

    opening = rng.random()
    if opening < 0.65:
        caption = f"{_with_article(scene.style)} of {caption}"
    elif opening < 0.8:
        caption = f"{_with_article(_pick(rng, GENERIC_NOUNS))} of {caption}"
    if rng.random() < 0.3:
        caption += f" on {_with_article(_background_words(scene))}"
    if scene.light is not None and rng.random() < 0.75:
        caption += f" in {scene.light} light"
    return caption + ("." if rng.random() < 0.5 else "")


def _background_words(scene: Scene) -> str:
    return f"{scene.background} {GROUNDS[scene.ground]}"


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

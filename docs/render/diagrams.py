"""Draw docs/images/house.svg and docs/images/data_flow.svg: `python docs/render/diagrams.py` (`--check` only compares).

The house is read from the code: one floor per folder with the first line of its docstring, one arrow per import between
folders. Arrows that others imply are left out; an import that points upward is drawn in red.
"""

import argparse
import ast
import sys
import textwrap
from dataclasses import dataclass, field
from html import escape
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "peft_vprompt"
IMAGES = ROOT / "docs" / "images"

#: Folders from the ground up. A folder that is not there has no floor.
FLOORS = (
    "utils",
    "losses",
    "data",
    "metrics",
    "core",
    "backbones",
    "models",
    "prompts",
    "readouts",
    "tuners",
    "peft_models",
    "training",
    "demo",
    "experiments",
    "convert",
    "export",
    "app",
    "cli",
)
#: Files beside the folders that belong to a floor.
FILES = {"errors": "utils", "version": "utils"}

INK, GREY, RED = "#1f2933", "#7b8794", "#c81e1e"
#: Fill and line: what is learned, what stays frozen, what is passed on, and the ground of a picture.
LEARNED, FROZEN, DATA, PAPER = ("#fde8d0", "#d9730d"), ("#dbe9f9", "#2f6fb5"), ("#ffffff", "#9aa5b1"), "#fbfbf9"
ARROWS = ("#2f6fb5", "#d9730d", "#3f8f5b", "#8a5fb0", "#b04a6f", "#5b7083")
SANS, MONO = "Helvetica, Arial, sans-serif", "Menlo, Consolas, 'DejaVu Sans Mono', monospace"


# ---- imports ------------------------------------------------------------------------------------------------------


def floors() -> list[str]:
    """The folders of the package, from the ground up.

    Raises:
        ValueError: If the package has a folder that `FLOORS` does not order.
    """
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    if unknown := sorted(found - set(FLOORS)):
        raise ValueError(
            f"Expected every folder of {PACKAGE.name} in FLOORS of {Path(__file__).name}. Missing: {unknown}."
        )
    return [name for name in FLOORS if name in found]


def floor_of(module: tuple[str, ...]) -> str:
    """Floor of a module, given without the package's name."""
    return FILES.get(module[0], module[0])


def imported(path: Path) -> set[str]:
    """Floors that a file imports from, its own among them."""
    module = path.relative_to(PACKAGE).with_suffix("").parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = node.module.split(".") if node.module else []
            if node.level:
                names = [*module[: len(module) - node.level], *names]
            elif names[0] == PACKAGE.name:
                names = names[1:]
            else:
                continue
            targets = [tuple(names)] if names else [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            targets = [tuple(names[1:]) for names in parts if names[0] == PACKAGE.name and len(names) > 1]
        else:
            continue
        found |= {floor_of(target) for target in targets}
    return found


def imports() -> set[tuple[str, str]]:
    """Pairs of floors of which the first imports the second."""
    known, pairs = floors(), set()
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        source = floor_of(path.relative_to(PACKAGE).parts)
        pairs |= {(source, target) for target in imported(path) if target in known and target != source}
    return pairs


def reduced(pairs: set[tuple[str, str]], order: list[str]) -> list[tuple[str, str]]:
    """The downward pairs that no chain of others implies, and all upward ones."""
    rank = {name: index for index, name in enumerate(order)}
    down = {pair for pair in pairs if rank[pair[0]] > rank[pair[1]]}
    reach: dict[str, set[str]] = {}
    for name in order:
        below = {target for source, target in down if source == name}
        reach[name] = below | {far for near in below for far in reach[near]}
    implied = {
        (source, target)
        for source, target in down
        if any(target in reach[near] for first, near in down if first == source and near != target)
    }
    return sorted(pairs - implied, key=lambda pair: (rank[pair[0]], rank[pair[1]]))


def summary(folder: str) -> str:
    """First paragraph of a folder's docstring, without code marks."""
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("`", "")


# ---- drawing ------------------------------------------------------------------------------------------------------


@dataclass
class Drawing:
    """An SVG in the making. Lengths are pixels."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, width: float, height: float, colours: tuple[str, str], dashed: bool = False
    ) -> None:
        """Draw a rectangle with round corners."""
        fill, line = colours
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" '
            f'stroke="{line}" stroke-width="1.4"{dash}/>'
        )

    def text(self, x: float, y: float, words: str, size: float = 13, colour: str = INK, **style) -> None:
        """Write one line; `anchor`, `family`, `weight` and `slant` as in SVG."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" font-family="{style.get("family", SANS)}" '
            f'text-anchor="{style.get("anchor", "start")}" font-weight="{style.get("weight", "normal")}" '
            f'font-style="{style.get("slant", "normal")}">{escape(words)}</text>'
        )

    def arrow(self, path: str, colour: str, dashed: bool = False) -> None:
        """Draw a path that ends in an arrowhead."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#{colour[1:]})"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        colours = sorted({part.split('marker-end="url(#')[1][:6] for part in self.parts if "marker-end" in part})
        heads = "".join(
            f'<marker id="{colour}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6.5" markerHeight="6.5" '
            f'orient="auto"><path d="M0,0.6 L10,5 L0,9.4 z" fill="#{colour}"/></marker>'
            for colour in colours
        )
        size = f'width="{self.width:g}" height="{self.height:g}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width:g} {self.height:g}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<defs>{heads}</defs>",
            f'<rect {size} rx="12" fill="{PAPER}"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def lanes(spans: list[tuple[float, float]]) -> list[int]:
    """A lane for each vertical span, so that none in one lane touch; short spans get the inner lanes."""
    taken: list[list[tuple[float, float]]] = []
    chosen = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0]):
        top, bottom = spans[index]
        lane = next(
            (n for n, used in enumerate(taken) if all(bottom + 4 < a or b + 4 < top for a, b in used)), len(taken)
        )
        if lane == len(taken):
            taken.append([])
        taken[lane].append((top, bottom))
        chosen[index] = lane
    return chosen


def house() -> str:
    """The folders as floors, and the imports between them."""
    order = floors()
    arrows = reduced(imports(), order)
    rank = {name: index for index, name in enumerate(order)}
    left, wall, text_left, gap = 24, 690, 158, 10
    lines = {name: textwrap.wrap(summary(name), 72) for name in order}
    heights = {name: max(26 + 16 * len(lines[name]), 22 + 13 * _ends(name, arrows)) for name in order}
    top, y = {}, 64.0
    for name in reversed(order):
        top[name] = y
        y += heights[name] + gap
    # Ports on a floor's right side, from the top: arrows from above (the nearest source first), then those that leave
    # (the farthest target first). Nested arrows then do not cross at their ends.
    ports: dict[tuple[tuple[str, str], str], float] = {}
    for name in order:
        above = [p for p in arrows if name in p and rank[_other(p, name)] > rank[name]]
        below = [p for p in arrows if name in p and rank[_other(p, name)] < rank[name]]
        ends = sorted(above, key=lambda p: rank[_other(p, name)]) + sorted(below, key=lambda p: rank[_other(p, name)])
        for index, pair in enumerate(ends, 1):
            ports[pair, name] = top[name] + heights[name] * index / (len(ends) + 1)
    spans = [tuple(sorted((ports[pair, pair[0]], ports[pair, pair[1]]))) for pair in arrows]
    chosen = lanes(spans)
    drawing = Drawing(
        wall + 40 + 15 * (max(chosen, default=0) + 1) + 24, y + 14, "The folders of peft_vprompt and their imports"
    )
    drawing.text(left, 30, "peft_vprompt", 18, weight="bold", family=MONO)
    drawing.text(left, 50, "A floor imports from those below it. Arrows that others imply are left out.", 12.5, GREY)
    for index, name in enumerate(reversed(order)):
        tint = "#eef3f8" if index % 2 else "#f6f8fa"
        drawing.box(left, top[name], wall - left, heights[name], (tint, "#c3ccd5"))
        middle = top[name] + heights[name] / 2
        drawing.text(left + 14, middle + 5, f"{name}/", 14, weight="bold", family=MONO)
        first = middle - 8 * (len(lines[name]) - 1) + 4.5
        for number, line in enumerate(lines[name]):
            drawing.text(text_left, first + 16 * number, line, 12.5)
    for pair, lane in zip(arrows, chosen, strict=True):
        start, end = ports[pair, pair[0]], ports[pair, pair[1]]
        upward = rank[pair[0]] < rank[pair[1]]
        colour = RED if upward else ARROWS[rank[pair[0]] % len(ARROWS)]
        x, radius = wall + 30 + 15 * lane, 7 if end > start else -7
        path = (
            f"M{wall:g},{start:g} H{x - 7:g} Q{x:g},{start:g} {x:g},{start + radius:g} V{end - radius:g} "
            f"Q{x:g},{end:g} {x - 7:g},{end:g} H{wall + 2:g}"
        )
        drawing.arrow(path, colour, dashed=upward)
    return drawing.svg()


def _other(pair: tuple[str, str], name: str) -> str:
    return pair[1] if pair[0] == name else pair[0]


def _ends(name: str, arrows: list[tuple[str, str]]) -> int:
    return sum(name in pair for pair in arrows)


def data_flow() -> str:
    """From class names and pixels to logits and loss."""
    drawing = Drawing(1180, 470, "From class names and pixels to logits and loss")
    drawing.text(24, 30, "One call on class names", 18, weight="bold")
    height, text_y, image_y, middle = 54.0, 78.0, 300.0, 189.0
    columns = {"input": (24, 128), "tokens": (224, 158), "loop": (420, 190), "pool": (650, 132), "feature": (820, 140)}

    def node(x: float, y: float, width: float, title: str, below: str, colours: tuple[str, str]) -> None:
        drawing.box(x, y, width, height, colours)
        drawing.text(x + width / 2, y + 23, title, 13.5, anchor="middle", weight="bold")
        drawing.text(x + width / 2, y + 41, below, 11.5, GREY, anchor="middle")

    rows = (
        (text_y, ("class names", "list of str"), ("class prompts", "packed tokens"), ("text encoder", "layer loop"), "text features"),
        (image_y, ("pixel_values", "[b, 3, h, w]"), ("image tokens", "[b, s, d]"), ("image encoder", "layer loop"), "image features"),
    )  # fmt: skip
    for y, given, tokens, loop, feature in rows:
        sizes = "[c, e]" if y == text_y else "[b, e]"
        cells = {
            "input": (*given, DATA),
            "tokens": (*tokens, DATA),
            "loop": (*loop, FROZEN),
            "pool": ("pool, project", "rows to a vector", FROZEN),
            "feature": (feature, f"{sizes}, normalised", DATA),
        }
        names = list(columns)
        for name in names:
            x, width = columns[name]
            node(x, y, width, *cells[name])
        for near, far in zip(names, names[1:], strict=False):
            start = sum(columns[near])
            drawing.arrow(f"M{start:g},{y + height / 2:g} H{columns[far][0] - 2:g}", INK)
        verb = "tokenize" if y == text_y else "embed"
        drawing.text(
            (sum(columns["input"]) + columns["tokens"][0]) / 2, y + height / 2 - 7, verb, 11, GREY, anchor="middle"
        )

    x, width = columns["loop"]
    node(x, middle, width, "prompt modules", "coupled or free", LEARNED)
    drawing.arrow(f"M{x + width / 2:g},{middle:g} V{text_y + height + 2:g}", LEARNED[1])
    drawing.arrow(f"M{x + width / 2:g},{middle + height:g} V{image_y - 2:g}", LEARNED[1])
    for y in ((text_y + height + middle) / 2, (middle + height + image_y) / 2):
        drawing.text(x + width / 2 + 8, y + 4, "insert, replace or add", 11, GREY)

    left, right = 1002, 1156
    node(left, middle, right - left, "readout", "cosine, pairs, linear", LEARNED)
    end = sum(columns["feature"])
    for y, edge in ((text_y, middle - 2), (image_y, middle + height + 2)):
        drawing.arrow(f"M{end:g},{y + height / 2:g} H{left + 40:g} Q{left + 50:g},{y + height / 2:g} {left + 50:g},"
                      f"{y + height / 2 + (10 if y == text_y else -10):g} V{edge:g}", INK)  # fmt: skip
    node(left, 392, right - left, "loss + aux_loss", "logits [b, c]", DATA)
    drawing.arrow(f"M{right - 40:g},{middle + height:g} V390", INK)

    x = columns["pool"][0]
    node(x, 392, 290, "regularisers", "features against FrozenFeatures, weighted sum", DATA)
    drawing.arrow(f"M{x + 290:g},419 H{left - 2:g}", INK)
    drawing.arrow(f"M{columns['feature'][0] + 63:g},{image_y + height:g} V390", INK)
    drawing.text(columns["feature"][0] + 71, image_y + height + 24, "Features", 11, GREY)

    for index, (label, colours) in enumerate(
        (("learned", LEARNED), ("frozen, Hugging Face's own layers", FROZEN), ("passed on", DATA))
    ):
        position = (24, 410 + 20 * index)
        drawing.box(position[0], position[1] - 11, 22, 14, colours)
        drawing.text(position[0] + 32, position[1], label, 12, GREY)
    return drawing.svg()


PICTURES = {"house.svg": house, "data_flow.svg": data_flow}


def main() -> int:
    """Write the pictures, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 if a picture is stale")
    check = parser.parse_args().check
    stale = []
    for name, draw in PICTURES.items():
        path, new = IMAGES / name, draw()
        if not path.exists() or path.read_text(encoding="utf-8") != new:
            stale.append(name)
        if not check:
            path.write_text(new, encoding="utf-8")
    if check and stale:
        print(f"Stale: {', '.join(stale)}. Run `python docs/render/diagrams.py`.", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

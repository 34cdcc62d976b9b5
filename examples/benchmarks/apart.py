"""Sections of `docs/benchmarks.md` on what is measured by programs of its own: tuning, a step's parts, the loader, the start.

A section is there once its program has written its file.
"""

from __future__ import annotations

import json
from pathlib import Path

from .cases import TITLES
from .profile import KINDS, OUTSIDE, REST
from .tables import DASH, markdown, number


TUNING_TEXT = """## Test-time tuning

Milliseconds per image with {views} views, one step, float32, {threads} threads: the tuning of the context and the prediction,
features of the views given. *Authors' way* is one image after another with padded class prompts (azshue/TPT). *Together*
is {images} images at a time; *one by one* is this package with one image at a time. The views are encoded alike on all sides;
the last column counts them in. Logits and first gradients agree to {worst:.0e} of their largest value. From
`python -m examples.benchmarks.test_time`; {cpu}, commit {commit}.

{table}"""

PROFILE_TEXT = """## Where the time of a step goes

A training step with {shape} shapes, {dtype}, {threads} threads: a bare loop, the matrix products alone, and the stock `Trainer`
(from the end of a step to the end of the next one, images in memory). Then what the operators of a step take by themselves under
`torch.profiler`, in milliseconds; what is left is Python, the dispatcher and the profiler. What the `Trainer` adds is the
difference of two timings, whose noise is larger than it where it is below zero ({dash}). From
`python -m examples.benchmarks.profile`; {cpu}, commit {commit}.

{table}"""

LOADER_TEXT = """## Loading images

Images a second that are decoded, augmented and put into batches of {batches}, by the number of processes, whole and as drafts
(`--draft-jpeg`), on {cores} cores. The steps of this machine take {steps}, so that a CPU's step
hardly waits for images. *Fed* is the share of its speed that a step reaches which takes {fed:.0%} of what the loader gives, none of
the processor's time and the next batch meanwhile, as on a graphics card, with the processes that `--workers auto` chooses there.
From `python -m examples.benchmarks.loader`; {cpu}, commit {commit}.

{table}"""

STARTUP_TEXT = """## Start

Processes of their own; milliseconds of the processor, and of the wall clock where another process is loaded beside. From
`python -m examples.benchmarks.startup`; {cpu}, commit {commit}.

{bars}"""


def sections_apart(folder: Path) -> str:
    """All sections whose files are in `folder`."""
    parts = []
    for name, section in SECTIONS.items():
        path = folder / name
        if path.is_file():
            parts.append(section(json.loads(path.read_text(encoding="utf-8"))))
    return "\n\n".join(part for part in parts if part)


def tuning_section(file: dict) -> str:
    """What `examples.benchmarks.test_time` measured."""
    rows = []
    for cell in file["cells"]:
        times, faster = cell["milliseconds_per_image"], cell["times_faster"]
        row = [str(cell["classes"])]
        row += [f"{times[name]:,.0f}" for name in ("together", "one by one", "authors' way", "views")]
        rows.append([*row, *(f"{value:.1f}x" for value in faster.values())])
    headings = ("Classes", "Together", "One by one", "Authors' way", "Encoding the views")
    headings += ("Faster than one by one", "Faster than theirs", "Faster than theirs, views encoded")
    first = file["cells"][0]
    return TUNING_TEXT.format(
        views=first["views"],
        images=first["images"],
        threads=file["threads"],
        worst=max(error for cell in file["cells"] for error in cell["agreement"].values()),
        **_place(file),
        table=markdown(headings, rows),
    )


def profile_section(file: dict) -> str:
    """What `examples.benchmarks.profile` measured last."""
    run = file.get("after") or file["before"]
    kinds = (*KINDS, REST, OUTSIDE)
    rows = []
    for key, cell in run["cells"].items():
        method, _, classes, batch = key.split("/")
        added = cell["trainer_ms"] - cell["ms"]
        row = [f"{TITLES[method]}, {classes}, {batch}", *(number(cell[name]) for name in ("ms", "floor_ms"))]
        row += [number(cell["floor_ratio"], ".2f"), number(added if added > 0 else None)]
        rows.append([*row, f"{cell['calls']:,}", *(number(cell["kinds"][kind]) for kind in kinds)])
    headings = ("Step", "Bare loop, ms", "Products alone, ms", "x floor", "Trainer adds, ms", "Operators")
    named = {name: run[name] for name in ("shape", "dtype", "threads")} | _place(run) | {"dash": DASH}
    return PROFILE_TEXT.format(**named, table=markdown((*headings, *(kind.capitalize() for kind in kinds)), rows))


def _place(file: dict) -> dict[str, str]:
    """Processor and commit that figures are from."""
    return {"cpu": file["environment"]["machine"]["cpu"], "commit": file["commit"]}


def loader_section(file: dict) -> str:
    """What `examples.benchmarks.loader` measured."""
    sizes = file["sizes"]
    counts = list(next(iter(sizes.values()))["images_per_second"]["whole"])
    rows = [
        [
            name,
            kind,
            *(f"{cell['images_per_second'][kind][count]:,.0f}" for count in counts),
            f"{cell['fed']['share']:.0%} by {cell['fed']['workers']}" if kind == "whole" else DASH,
        ]
        for name, cell in sizes.items()
        for kind in ("whole", "draft")
    ]
    steps = " and ".join(f"{speed:.1f} ({TITLES[method]})" for method, speed in file["steps"].items())
    headings = (
        "JPEGs",
        "Read",
        *({"0": "In the step's own", "1": "1 process"}.get(count, f"{count} processes") for count in counts),
    )
    return LOADER_TEXT.format(
        batches=" and ".join(str(cell["batch_size"]) for cell in sizes.values()),
        cores=file["cores"],
        steps=steps,
        fed=file["fed"],
        **_place(file),
        table=markdown((*headings, "Fed"), rows),
    )


def startup_section(file: dict) -> str:
    """The bars of `examples.benchmarks.startup`, and what was measured for them."""
    rows = []
    for bar in file["bars"]:
        in_ms = bar["metric"].endswith("_ms")
        limit, value = (
            DASH if one is None else f"{one:,.0f} ms" if in_ms else f"{one:.2f}x"
            for one in (bar["limit"], bar["value"])
        )
        verdict = {True: "reached", False: "**missed**", None: "not measured"}[bar["passed"]]
        rows.append([bar["text"], f"≤ {limit}", value, verdict])
    return STARTUP_TEXT.format(**_place(file), bars=markdown(("Bar", "Limit", "Measured", ""), rows))


#: What makes a section of a file, by the file's name.
SECTIONS = {
    "test_time_cpu_float32.json": tuning_section,
    "profile.json": profile_section,
    "loader.json": loader_section,
    "startup.json": startup_section,
}

"""Render docs/reliability.md from docs/results/reliability.json, which examples/studies/reliability.py writes.

python docs/render/reliability.py
"""

import json
from pathlib import Path

from peft_vprompt.utils.io import atomic_path


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE = DOCS / "results" / "reliability.json", DOCS / "reliability.md"

TEXT = """<!-- Written by docs/render/reliability.py from docs/results/reliability.json: change those. -->
# Reliability

What is written is written whole, a run is known by what goes into it, and what cannot be done is said in one line.

## A run is known by its content

`results.json` has an `identity`: digests of the base model's weights and config, of its tokenizer and image processor, of
the bytes of every image that is trained or tested on, the labels, the class names, the settings and the version of this
package. Paths are no part of it. Started again with the same identity, `train`, `sweep`, `noise-study` and `demo` go on
where they were, or read what is done. With another one they say what changed and train afresh; the adapter and the results
of the earlier run are kept in `previous/`. Of few shots only the images that are taken count.

Digests cost {share:.2f} % of a 16-shot run of CoOp on the embedded model.

Labels by `vprompt pseudo-label` name their images and are refused for others, and for the same ones in another order.
Cached features are those of one image encoder, one preprocessing and the bytes of the images, and the cached answers of a
teacher those of one teacher, too; their files have a checksum, and a damaged one is moved to `*.damaged` with a warning and
made anew.

A model that computes the features of its classes keeps them, and before each use compares all that they depend on: every
bit of the weights, attributes, parts, hooks, the functions of `torch.nn.functional` and of transformers' attention. Only a
function that is replaced elsewhere, such as `torch.matmul`, is not seen: replace it before the model is called.

## One writer

A folder that is written to has a file `.vprompt.lock` with process, host and start time of its owner, who touches it every
ten seconds. A second start says who that is, and ends; with `--wait` it waits. Of `sweep` and `noise-study` it takes part
instead, see [Grids on several workers](scaling.md#grids-on-several-workers): there each run has a lock. The lock of a dead owner is taken over: at
once on the same host, after half a minute without a touch from another host that shares the file system. A process that
stood still so long that another took over writes nothing more.

## Files

* An adapter's config, weights and card change together. They are written to a hidden folder, to the disk, which is then
  renamed to `.saving-complete`: from then on the adapter is the new one. Whoever loads it with this package, or saves
  there, finishes what a kill cut off; plain PEFT, which does not, may find the new config with the old weights then, if the
  kill came between two renames.
* `adapter_model.safetensors` has a digest of its tensors in its metadata, and damaged weights are refused. Adapters without
  one load as before.
* A checkpoint is sealed (`complete.json` lists its files with their digests) when all its parts are there. One that lacks a
  part is passed over with a warning.
* A full disk or a read-only folder is one line and exit status 2, in Python a `CannotWriteError`, whatever wrote. No file
  is half written under its own name, and the next start goes on.
* What a folder holds of something else, an adapter, its card or results, is copied to `previous/` with a warning before
  `train`, `sweep`, `noise-study`, `demo` or `convert` write there; a model, before `convert-clip` does. `evaluate` and `pseudo-label` write over nothing but
  their own files.
* A training that diverged is not saved over an adapter that can be loaded: its last finite values go to `diverged/`.

## Measured

Each command was killed (`kill -9`) at random moments, several times in a row, and started again until it got through;
what it left was compared with what an uninterrupted run leaves, in everything but times.

| | Kills | Chains | Equal to the uninterrupted run | Broken files after a kill |
|---|--:|--:|--:|--:|
{kills}

Files could not grow beyond a few bytes or kilobytes, in the place of a full disk:

| | Disks | One line, no broken file | Went on with room |
|---|--:|--:|--:|
{disks}

Memory: {switches:,} switches of adapters, {switches_mb[0]:.0f} MB after a tenth of them and {switches_mb[1]:.0f} MB at the
end; {lists:,} class lists, {lists_mb[0]:.0f} MB and {lists_mb[1]:.0f} MB.

On {cpu}, {cores} cores, Python {python}, torch {torch}. Measure again with `python -m examples.studies.reliability`; the
tests do the same with two kills each, and with twenty under `./dev test-nightly`.
"""


def render(results: dict) -> str:
    """Return the page."""
    kills = [
        f"| `{name}` | {row['kills']} | {row['chains']} | {row['equal']} | {row['broken']} |"
        for name, row in results["kills"].items()
    ]
    disks = [
        f"| `{name}` | {row['disks']} | {row['clear']} | {row['went_on']} |"
        for name, row in results["full_disks"].items()
    ]
    memory, machine = results["memory"], results["environment"]["machine"]
    return TEXT.format(
        share=100 * results["fingerprint_share"],
        kills="\n".join(kills),
        disks="\n".join(disks),
        switches=memory["adapter_switches"],
        switches_mb=memory["switches_mb"],
        lists=memory["class_lists"],
        lists_mb=memory["lists_mb"],
        cpu=machine["cpu"],
        cores=machine["cores"],
        python=results["environment"]["versions"]["python"],
        torch=results["environment"]["versions"]["torch"],
    )


def main() -> None:
    """Write the page."""
    with atomic_path(PAGE) as partial:
        partial.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()

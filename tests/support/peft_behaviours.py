"""What people know of PEFT, on every row of the method table: which behaviours there are, and which are refused and why.

`docs/render/tables.py` writes the table of docs/peft.md from this; `tests/peft_models/test_behaviours.py` tries each cell.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel, ViTForImageClassification

from peft_vprompt.tuners.base.registry import METHODS
from tests.support.models import CLASS_NAMES, disturb, tiny_clip, tiny_vit


#: The behaviours: name of the test -> heading of the column.
BEHAVIOURS = {
    "save_and_load": "Save, load",
    "several": "Several",
    "switch_off": "Disable",
    "delete": "Delete",
    "wrap_again": "Wrap again",
    "merge": "Merge",
    "mixed_batch": "Mixed batch",
    "weighted": "Weighted sum",
    "two_at_once": "Two at once",
    "hot_swap": "Hot-swap",
    "transformers_api": "transformers' API",
    "texts": "Own texts",
    "image_features": "Image features",
}

#: Rows of the table by the models that they are tried on. A LoRA is PEFT's own, on class names with our PEFT model.
PROMPTS = [name for name, spec in METHODS.items() if not spec.is_baseline and spec.recipe]
BASELINES = [name for name, spec in METHODS.items() if spec.is_baseline]
ROWS = {
    **dict.fromkeys(PROMPTS, "CLIPModel"),
    "lora-on-class-names": "CLIPModel",
    "vpt-on-encoder": "ViTModel",
    **dict.fromkeys(BASELINES, "ViTForImageClassification"),
}

CLASSIFIER = [name for name, model in ROWS.items() if model != "CLIPModel"]
PROMPTED = [
    *(name for name in PROMPTS if name not in ("tenc-ft", "ln-tuning", "2sfs", "clip-lora")),
    *("vpt-on-encoder", "vpt-shallow", "vpt-deep"),
]
LORA = ["lora", "lora-on-class-names", "clip-lora"]
#: What trains copies of modules and has no prompts.
COPIES = ["tenc-ft", "ln-tuning", "2sfs"]

#: What `set_support` would tell an adapter.
SUPPORT = {
    **dict.fromkeys(("tip-adapter", "tip-adapter-f"), {"num_support_images": 10}),
    "clap": {"class_penalties": [0.5] * len(CLASS_NAMES)},
}

#: What is refused: behaviour -> (rows, reason).
REFUSED: dict[str, list[tuple[list[str], str]]] = {
    "merge": [
        (PROMPTED, "prompts are tokens: there are no weights that they could be merged into"),
        (COPIES, "`merge_and_unload()` puts the trained copies into the base model; they cannot be merged in place"),
        (["adapter", "sidetune"], "it is a module of its own, which the base model has no place for"),
    ],
    "weighted": [(["lora"], "PEFT averages no trained heads")],
    "two_at_once": [
        ([row for row in ROWS if row not in LORA], "one adapter is active at a time; a weighted sum is one adapter"),
    ],
    "hot_swap": [
        (
            [row for row in ROWS if row not in ("lora", "lora-on-class-names")],
            "PEFT's function knows its own LoRA alone; `load_adapter(folder, name)` puts other values into an adapter in place",
        ),
    ],
    "texts": [
        (
            ["class-name", "full-prompt", "cocoop", "tcp", "mmrl", "mmrlpp", "alignednorm", "rpo", "mrpo"],
            "the prompts have to know where the class name is, or are read out themselves",
        ),
        (
            ["classifier-r", "classifier-c", "tip-adapter-f", "clap", "zs-lp"],
            "something is learned for each class, which says nothing of other texts",
        ),
        (["promptkd"], "each class has a feature of the teacher's in the place of a text"),
    ],
    "image_features": [
        (["rpo", "mrpo"], "an image has one feature for each prompt: `model.encode_images` gives them"),
    ],
}

#: What has no meaning.
EMPTY = {"texts": CLASSIFIER, "image_features": CLASSIFIER}


def base_of(row: str):
    """Return a new tiny base model of a row."""
    if ROWS[row] == "CLIPModel":
        return tiny_clip()
    return tiny_vit(bare=ROWS[row] == "ViTModel")


def config_of(row: str, base, tokenizer: str, **options):
    """Return a new config of a row."""
    if row == "lora-on-class-names":
        return LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj", "v_proj"], **options)
    if row == "vpt-on-encoder":
        return METHODS["vpt"].configure(base, is_classifier=True, **options)
    if ROWS[row] == "CLIPModel":
        options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer} | SUPPORT.get(row, {}) | options
    return METHODS[row].configure(base, **options)


def save_row(path, row: str, base: str, tokenizer: str, **options) -> str:
    """A folder with an adapter of a row, moved away from its start, on the model that lies in the folder `base`."""
    loaded = (CLIPModel if ROWS[row] == "CLIPModel" else ViTForImageClassification).from_pretrained(base)
    torch.manual_seed(0)
    model = disturb(get_peft_model(loaded, config_of(row, loaded, tokenizer, **options)))
    if row == "lora-on-class-names":
        model.set_class_names(CLASS_NAMES)
    model.save_pretrained(path)
    return str(path)


def refusal(row: str, behaviour: str) -> str | None:
    """Return why a behaviour is refused on a row; None where it works."""
    return next((reason for rows, reason in REFUSED.get(behaviour, ()) if row in rows), None)


def table() -> str:
    """Return the table of docs/peft.md."""
    rows = ["| Method | " + " | ".join(BEHAVIOURS.values()) + " |", "|---" * (len(BEHAVIOURS) + 1) + "|"]
    notes: list[str] = []
    for row, model in ROWS.items():
        cells = []
        for behaviour in BEHAVIOURS:
            reason = refusal(row, behaviour)
            if reason is not None and reason not in notes:
                notes.append(reason)
            empty = row in EMPTY.get(behaviour, ())
            cells.append(f"– ({notes.index(reason) + 1})" if reason else "" if empty else "✓")
        rows.append(f"| `{row}` on `{model}` | " + " | ".join(cells) + " |")
    return "\n".join(
        [*rows, "", *(f"({number}) {note[0].upper()}{note[1:]}.\n" for number, note in enumerate(notes, 1))]
    )

"""Write the generated tables of README.md and of pages of docs/: `python docs/render/tables.py` (`--check` only compares).

Every cell is computed: parameter counts on ViT-B/16 shapes without weights, support by wrapping a tiny model of each
class, accuracies from docs/results/real_data.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import CLIPConfig, CLIPModel

from peft_vprompt import (
    CLAPConfig,
    ClassHeadConfig,
    CLIPLoraConfig,
    CoCoOpConfig,
    ContextOptConfig,
    KgCoOpConfig,
    MaPLeConfig,
    MMRLConfig,
    MRPOConfig,
    NormTuningConfig,
    ProGradConfig,
    PromptKDConfig,
    PromptSRCConfig,
    ReadOnlyPromptConfig,
    TCPConfig,
    TextEncoderConfig,
    TipAdapterConfig,
    TwoStageConfig,
    VisualPromptConfig,
)
from peft_vprompt.backbones.supported import (
    DUAL_ENCODERS,
    ENCODER_VIEWS,
    ENCODERS,
    OPAQUE,
    UNSUPPORTED,
    SwinView,
    view,
)
from peft_vprompt.data import TASKS, PromptingTask
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.tuners.base.recipe import Averaging
from peft_vprompt.tuners.base.registry import METHODS, PROMPT_METHODS, unsupported
from peft_vprompt.tuners.base.spec import Paper
from tests.support import peft_behaviours
from tests.support.backbones import DUAL_MODELS, OPAQUE_ENCODERS, OPAQUE_MODELS, VISION_MODELS, frame, tiny
from tests.support.models import CLASS_NAMES, CONFIGS, tiny_tokenizer


HUNDRED = [f"class {i}" for i in range(100)]

#: Rows of titles that are not the first of their config class.
ROWS = {"IVLP": "ivlp", "Tip-Adapter-F": "tip-adapter-f"}

#: Rows of the method table: the name people know, and its published configuration on CLIP ViT-B/16. Words only change
#: the start of a prompt, not its size, and need a tokenizer: left out here, as is the start of CLAP (`inference_mode`).
PUBLISHED = {
    "VPT (8 tokens, deep)": VisualPromptConfig(num_virtual_tokens=8, deep=True),
    "CoOp (M=16)": ContextOptConfig(),
    "CoCoOp (M=4)": CoCoOpConfig(prompt_init="random"),
    "KgCoOp (M=4)": KgCoOpConfig(prompt_init="random"),
    "ProGrad (M=16)": ProGradConfig(prompt_init="random"),
    "MaPLe (n=2, depth 9)": MaPLeConfig(prompt_init="random"),
    "IVLP (n=2, depth 9)": MaPLeConfig(prompt_init="random", coupling="none"),
    "PromptSRC (n=4, depth 9)": PromptSRCConfig(prompt_init="random"),
    "TCP (M=4)": TCPConfig(),
    "MMRL (K=5, layers 6-12)": MMRLConfig(),
    "MMRL++ (K=5, rank 4)": MMRLConfig(low_rank=4),
    "PromptKD (n=4, depth 9, ViT-L/14's 768)": PromptKDConfig(
        class_names=[f"class {i}" for i in range(100)], teacher_dim=768
    ),
    "RPO (K=24)": ReadOnlyPromptConfig(),
    "MRPO (K=4, depth 9)": MRPOConfig(),
    "Classifier-R, -C (100 classes)": ClassHeadConfig(class_names=HUNDRED),
    "Tip-Adapter-F (16 shots, 100 classes)": TipAdapterConfig(
        class_names=HUNDRED, train_keys=True, num_support_images=1600
    ),
    "CLAP, ZS-LP (100 classes)": CLAPConfig(class_names=HUNDRED, inference_mode=True),
    "TEnc-FT": TextEncoderConfig(),
    "LN tuning": NormTuningConfig(),
    "2SFS, first stage": TwoStageConfig(),
    "CLIP-LoRA (r=2)": CLIPLoraConfig(),
}


def vit_b16() -> CLIPModel:
    """CLIP ViT-B/16's shapes, without storage."""
    text = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 12}
    vision = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16}
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))


def sizes(config) -> tuple[int, int]:
    """Number of parameters an adapter trains on CLIP ViT-B/16, and bytes of its tensors."""
    model = get_peft_model(vit_b16(), config, low_cpu_mem_usage=True)
    model.set_adapter("default")
    saved = get_peft_model_state_dict(model, save_embedding_layers=False).values()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(tensor.numel() * tensor.element_size() for tensor in saved)


def linked(paper: Paper) -> str:
    """Return a short citation with a link to the paper, or with its title where no address is known."""
    authors, *title, venue = paper.citation.split(", ")
    if paper.link is None:
        return paper.citation
    return f'[{authors}, {venue}]({paper.link} "{", ".join(title)}")'


def method_table() -> str:
    """Method, class, paper, what is learned, how much."""
    rows = ["| Method | Config | Learns | Parameters | File | Paper |", "|---|---|---|--:|--:|---|"]
    for title, config in PUBLISHED.items():
        row = ROWS.get(title.split(" (")[0])
        method = METHODS[row] if row else PROMPT_METHODS[config.peft_type.value.lower()]
        count, size = sizes(config)
        file = f"{size / 1024:,.0f} KB" if size < 2**20 else f"{size / 2**20:.1f} MB"
        cells = (title, f"`{type(config).__name__}`", method.learns, f"{count:,}", file, linked(method.paper))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def accuracy_table() -> str:
    """Base and novel accuracy on real drawings, with chance and zero-shot beside it."""
    results = json.loads((ROOT / "docs/results/real_data.json").read_text(encoding="utf-8"))["tasks"]["emoji"]
    groups: dict[str, list[dict]] = {}
    for run in results["runs"]:
        start = ", from words" if run["variant"] == "words" else ""
        groups.setdefault(run["title"] + start, []).append(run["accuracy"])
    chance = {split: 100 / len(results["classes"][split]) for split in ("base", "novel")}
    chance["hm"] = statistics.harmonic_mean(chance.values())
    groups = {"Chance": [chance], "Zero-shot": groups.pop("Zero-shot"), **groups}
    rows = ["| | Base classes | Novel classes | Harmonic mean |", "|---|--:|--:|--:|"]
    for title, runs in groups.items():
        means = (statistics.mean(run[split] for run in runs) for split in ("base", "novel", "hm"))
        rows.append(f"| {title} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(rows)


#: Well-known weights on the Hub by class; none for a class whose weights are another row's.
CHECKPOINTS: dict[str, tuple[str, ...]] = {
    "CLIPModel": ("openai/clip-vit-base-patch16", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "MetaClip2Model": ("facebook/metaclip-2-worldwide-huge-quickgelu",),
    "SiglipModel": ("google/siglip-base-patch16-224", "google/siglip2-base-patch16-224"),
    "Siglip2Model": ("google/siglip2-base-patch16-naflex",),
    "ChineseCLIPModel": ("OFA-Sys/chinese-clip-vit-base-patch16",),
    "AltCLIPModel": ("BAAI/AltCLIP",),
    "VisionTextDualEncoderModel": ("clip-italian/clip-italian",),
    "ResNetCLIPModel": ("timm/resnet50_clip.openai",),
    "AlignModel": ("kakaobrain/align-base",),
    "CLIPSegModel": ("CIDAS/clipseg-rd64-refined",),
    "OwlViTModel": ("google/owlvit-base-patch32",),
    "Owlv2Model": ("google/owlv2-base-patch16-ensemble",),
    "Tipsv2Model": ("google/tipsv2-b14",),
    "Aimv2Model": ("apple/aimv2-large-patch14-224-lit",),
    "GroupViTModel": ("nvidia/groupvit-gcc-yfcc",),
    "OpaqueCLIPModel": (
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
        "timm/PE-Core-B-16",
    ),
    "Aimv2VisionModel": ("apple/aimv2-large-patch14-native",),
    "MLCDVisionModel": ("DeepGlint-AI/mlcd-vit-bigG-patch14-448",),
    "RadioModel": ("nvidia/C-RADIOv4-H",),
    "PixioModel": ("facebook/pixio-huge",),
    "ConvNextModel": ("facebook/convnext-tiny-224",),
    "ConvNextV2Model": ("facebook/convnextv2-tiny-1k-224",),
    "DINOv3ConvNextModel": ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m",),
    "ViTModel": ("google/vit-base-patch16-224",),
    "SwinModel": ("microsoft/swin-tiny-patch4-window7-224",),
    "Swinv2Model": ("microsoft/swinv2-tiny-patch4-window8-256",),
    "DeiTModel": ("facebook/deit-base-distilled-patch16-224",),
    "ViTMAEModel": ("facebook/vit-mae-base",),
    "Dinov2Model": ("facebook/dinov2-base",),
    "Dinov2WithRegistersModel": ("facebook/dinov2-with-registers-base",),
    "DINOv3ViTModel": ("facebook/dinov3-vitb16-pretrain-lvd1689m",),
    "BeitModel": ("microsoft/beit-base-patch16-224",),
    "Data2VecVisionModel": ("facebook/data2vec-vision-base",),
    "IJepaModel": ("facebook/ijepa_vith14_1k",),
    "ViTMSNModel": ("facebook/vit-msn-small",),
}


def checkpoints(model: str) -> str:
    """The names of a class's weights, as they are written in a table."""
    return ", ".join(f"`{name}`" for name in CHECKPOINTS.get(model, ()))


class Support:
    """The support tables. Every cell is found out by putting an adapter on a tiny model of the class."""

    def __init__(self, folder: str):
        self.folder = folder
        for name in DUAL_ENCODERS:
            tiny_tokenizer(frame(name)).save_pretrained(f"{folder}/{frame(name)}")

    def reason(self, build, model: str) -> str | None:
        """Why an adapter is refused on a model class; None where it is not."""
        options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": f"{self.folder}/{frame(model)}"}
        try:
            get_peft_model(tiny(model), build(**options))
        except UnsupportedModelError as error:
            return str(error)
        return None

    def dual_encoders(self) -> list[str]:
        """Methods against the models with two towers."""
        titles = [method.title for method in PROMPT_METHODS.values()]
        rows = ["| Base model | " + " | ".join([*titles, "For example"]) + " |", "|---" * (len(titles) + 2) + "|"]
        notes: list[str] = []
        for model in (*DUAL_MODELS, *OPAQUE_MODELS):
            cells = []
            for method, spec in PROMPT_METHODS.items():
                if self.reason(next(iter(CONFIGS[method].values())), model) is None:
                    cells.append("✓")
                    continue
                note = f"its image encoder {OPAQUE[model]}" if model in OPAQUE else DUAL_ENCODERS[model].no_read_only
                if (other := spec.tuner_class.method.without_image_layers) and model in OPAQUE:
                    note = f"with {other}"
                notes += [] if note in notes else [note]
                cells.append(f"{'in part' if note.startswith('with ') else '–'} ({notes.index(note) + 1})")
            rows.append(f"| `{model}` | " + " | ".join(cells) + f" | {checkpoints(model)} |")
        return [*rows, "", *(f"({number}) {note[0].upper()}{note[1:]}.\n" for number, note in enumerate(notes, 1))]

    def image_encoders(self) -> list[str]:
        """What VPT can do on each image encoder, bare and with a head."""
        rows = [
            "| Image encoder | With a head | Prompts stand | One per token | Pixels | Read-only | For example |",
            "|---|---|---|---|---|---|---|",
        ]
        known = [*VISION_MODELS, *OPAQUE_ENCODERS]
        for model in (name for name in ENCODERS if name in known):
            names = [f"{model.removesuffix(end)}ForImageClassification" for end in ("Model", "VisionModel")]
            head = next((name for name in names if name in known), None)
            classes = [model, head] if head else [model]
            cells = []
            for variant in ("shallow", "added", "border", "read-only"):
                refused = [self.reason(CONFIGS["visual_prompt"][variant], name) is not None for name in classes]
                cells.append("–" if all(refused) else "✓")
            if cells[0] == "–" and model not in OPAQUE:
                raise ValueError(f"{model} is listed as supported and refuses prompts.")
            shown = f"`{head}`" if head else ""
            examples = checkpoints(model)
            rows.append(f"| `{model}` | {shown} | {place(model)} | " + " | ".join(cells[1:]) + f" | {examples} |")
        return rows


def text_methods() -> str:
    """The methods that every model without a text tower refuses; `tests/backbones/test_support.py` tries each."""
    refused = [
        m.title for name, m in PROMPT_METHODS.items() if all(unsupported(name, model) for model in VISION_MODELS)
    ]
    return f"They have no text tower: {'; '.join(refused)} are refused there."


def place(model: str) -> str:
    """Where prompts stand in an image encoder, from its view."""
    if model in OPAQUE:
        return "around the image"
    module = next(m for m in tiny(model).modules() if type(m).__name__ in ENCODER_VIEWS and hasattr(m, "embeddings"))
    tower = view(module)
    if isinstance(tower, SwinView):
        return "in every window"
    if not tower.prompts_first:
        return "after the patches"
    count = tower.num_prefix_tokens
    return {0: "in front of the patches", 1: "after the class token"}.get(count, "after the special tokens")


def support_table() -> str:
    """Base model classes against what works on them."""
    with tempfile.TemporaryDirectory() as folder:
        support = Support(folder)
        lines = support.dual_encoders()
        lines += [f"VPT works on image encoders by themselves, too. {text_methods()}", ""]
        lines += support.image_encoders()
    lines += ["", "Refused as a whole:", ""]
    for reason in dict.fromkeys(UNSUPPORTED.values()):
        names = ", ".join(f"`{name}`" for name, why in UNSUPPORTED.items() if why == reason)
        lines.append(f"* {names}: {reason}.")
    return "\n".join(lines)


def task_table() -> str:
    """Tasks of prompt learning against what is read of them."""
    rows = ["| `--benchmark` | Data set | Folder | Read | Template | Copy on the Hub |", "|---|---|---|---|---|---|"]
    for task in TASKS.values():
        if isinstance(task, PromptingTask):
            images = f"{task.folder}/{task.image_folder}".rstrip("/")
            copy = f"`{task.hub_id}`" if task.hub_id else "–"
            rows.append(
                f"| `{task.full_name}` | {task.title} | `{images}` | `{task.source}` | {task.template} | {copy} |"
            )
    return "\n".join(rows)


def variation_table() -> str:
    """What authors vary on published data."""
    rows = ["| Method | Data sets | Protocols | Theirs |", "|---|---|---|---|"]
    shared: dict[tuple, list[str]] = {}
    for spec in METHODS.values():
        for variation in spec.variations:
            values = [f"`{name}={shown_value(value)}`" for name, value in variation.changes.items()]
            place = (", ".join(variation.tasks) or "all", ", ".join(variation.protocols) or "all", ", ".join(values))
            shared.setdefault(place, []).append(spec.title)
    rows += [f"| {', '.join(titles)} | {' | '.join(place)} |" for place, titles in shared.items()]
    return "\n".join(rows)


def shown_value(value) -> str:
    """A value in few words: an average as in the papers, a list of texts by its length."""
    if isinstance(value, Averaging):
        return f"N({value.mean:g}, {value.std:g})"
    return f"{len(value)} texts" if isinstance(value, list) else str(value)


#: The generated tables of each page.
PAGES = {
    "README.md": {"accuracy": accuracy_table, "methods": method_table},
    "docs/backbones.md": {"support": support_table},
    "docs/your_data.md": {"tasks": task_table},
    "docs/protocols.md": {"variations": variation_table},
    "docs/peft.md": {"behaviours": peft_behaviours.table},
}


def render(text: str, tables: dict) -> str:
    """A page with each of its tables replaced by a fresh one.

    Raises:
        ValueError: If the page has no place for a table.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}: generated by docs/render/tables.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"Expected the lines {begin!r} and {end!r} in the page.")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


def main() -> int:
    """Write the pages, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 if the tables are stale")
    check = parser.parse_args().check
    stale = []
    for name, tables in PAGES.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = render(old, tables)
        if new != old:
            stale.append(name)
        if not check:
            path.write_text(new, encoding="utf-8")
    if check and stale:
        print(f"Stale: {', '.join(stale)}. Run `python docs/render/tables.py`.", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

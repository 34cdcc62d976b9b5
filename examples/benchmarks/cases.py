"""What is measured: the cells of each experiment, and the bars they have to reach. Nothing is computed here."""

from __future__ import annotations

from dataclasses import dataclass, replace


#: Methods on a CLIP, by short name -> title.
CLIP_METHODS = {
    "coop": "CoOp (M=16)",
    "cocoop": "CoCoOp (M=4)",
    "maple": "MaPLe (n=2, depth 9)",
    "ivlp": "IVLP (n=2, depth 9)",
    "vpt-clip": "VPT on CLIP (8, deep)",
    "rpo": "RPO (K=24)",
    "mrpo": "MRPO (K=4, depth 9)",
}
#: Methods on a ViT.
VIT_METHODS = {"vpt-shallow": "VPT-shallow", "vpt-deep": "VPT-deep"}
#: Newer methods on a CLIP.
FIELD_METHODS = {
    "kgcoop": "KgCoOp (M=4)",
    "prograd": "ProGrad (M=16)",
    "promptsrc": "PromptSRC (n=4, depth 9)",
    "mmrl": "MMRL (K=5, layers 6-12)",
    "tcp": "TCP (M=4, layer 9)",
    "clip-lora": "CLIP-LoRA (r=2, no dropout)",
}
TITLES = CLIP_METHODS | VIT_METHODS | FIELD_METHODS

#: What one run of a side does.
PARTS = {
    "step": "a training step: both towers, loss, backward",
    "text": "the text side: class features and their backward",
    "cached": "a training step with the image features given",
    "inference": "logits of a batch, class features cached",
    "adapters": "logits of a batch by many read-only adapters in one pass; ten classes each, class features cached",
}


@dataclass(frozen=True)
class Case:
    """One cell.

    Attributes:
        method: a key of `TITLES`.
        part: a key of `PARTS`.
        classes, batch: numbers of classes and images.
        tokens: prompts or context tokens; None for the method's usual number.
        sides: what is timed beside ours: "plain" (the authors' way), "bare" (the base model alone), "one" (a single
            adapter), "compiled", "transformers" and "open_clip" (see `alternatives`), "bf16" (ours in bfloat16),
            "bf16_floor" (its matrix products alone), "fixed" (ours, told that nobody writes weights).
        adapters: how many, where there are several.
        timed: False for a cell that is run a single time, for its memory.
    """

    method: str
    part: str = "step"
    classes: int = 100
    batch: int = 4
    tokens: int | None = None
    sides: tuple[str, ...] = ("plain",)
    adapters: int = 1
    timed: bool = True

    @property
    def key(self) -> str:
        """Name of the cell within its experiment."""
        tokens = "" if self.tokens is None else f"/{self.tokens} tokens"
        return f"{self.method}/{self.part}/{self.classes} classes/batch {self.batch}{tokens}"


@dataclass(frozen=True)
class Bar:
    """A number that a cell has to reach.

    Attributes:
        case: key of the cell.
        metric: field of the cell's result.
        limit: the number.
        at_least: True where more is better.
        text: the bar in words.
    """

    case: str
    metric: str
    limit: float
    text: str
    at_least: bool = True


@dataclass(frozen=True)
class Experiment:
    """Cells that belong together: one JSON file."""

    name: str
    title: str
    cases: tuple[Case, ...]
    bars: tuple[Bar, ...] = ()


def grid(case: Case, **axes) -> tuple[Case, ...]:
    """`case` with every combination of the given fields, the first field varying slowest."""
    cases = [case]
    for name, values in axes.items():
        cases = [replace(one, **{name: value}) for one in cases for value in values]
    return tuple(dict.fromkeys(cases))


STEP = "step/100 classes/batch 4"
GIGABYTE = 10**9
#: Sides of a comparison of precisions.
BF16 = ("bf16", "bf16_floor")

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "methods",
            "A training step of every method",
            grid(Case("coop"), classes=(100, 10, 1000), batch=(4, 1, 32), method=CLIP_METHODS),
            (
                Bar(f"coop/{STEP}", "ratio", 7, "CoOp, whole step, 7x"),
                Bar(f"cocoop/{STEP}", "ratio", 15, "CoCoOp, whole step, 15x"),
                Bar(f"cocoop/{STEP}", "memory_ratio", 8, "CoCoOp, at most 1/8 of the memory"),
                Bar(f"maple/{STEP}", "ratio", 4, "MaPLe, whole step, 4x"),
                Bar(f"rpo/{STEP}", "ratio", 6, "RPO (K=24), whole step, 6x"),
                Bar(f"mrpo/{STEP}", "ratio", 8, "MRPO (K=4, depth 9), whole step, 8x"),
                Bar(
                    "coop/step/1000 classes/batch 4",
                    "process_bytes",
                    6 * GIGABYTE,
                    "CoOp with 1,000 classes, whole process below 6 GB",
                    at_least=False,
                ),
            ),
        ),
        Experiment(
            "field",
            "A training step of the newer methods, with all terms of their losses",
            grid(Case("kgcoop"), classes=(100, 10), batch=(4, 32), method=FIELD_METHODS),
        ),
        Experiment(
            "text_side",
            "The text side alone",
            grid(
                Case("coop", "text", batch=1), classes=(100, 10, 1000), method=("coop", "maple", "ivlp", "rpo", "mrpo")
            ),
            (
                Bar("coop/text/100 classes/batch 1", "ratio", 15, "CoOp, text side, 15x"),
                Bar(
                    "coop/text/100 classes/batch 1",
                    "floor_ratio",
                    1.8,
                    "CoOp, text side, within 1.8x of its matrix products",
                    at_least=False,
                ),
            ),
        ),
        Experiment(
            "cached_features",
            "CoOp and CoCoOp with cached image features",
            grid(Case("coop", "cached"), method=("coop", "cocoop"), classes=(100, 10, 1000), batch=(4, 32)),
            (Bar("coop/cached/100 classes/batch 4", "ratio", 15, "CoOp with cached image features, 15x"),),
        ),
        Experiment(
            "vit",
            "VPT on ViT-B/16 against Hugging Face's layers over as many tokens",
            grid(Case("vpt-deep", sides=("plain", "bare")), batch=(4, 1, 32), tokens=(50, 10), method=VIT_METHODS),
            tuple(
                Bar(
                    f"vpt-deep/{STEP}/{tokens} tokens",
                    "bare_ratio",
                    1.0,
                    f"VPT-deep ({tokens}), no slower than the bare layers",
                    at_least=False,
                )
                for tokens in (50, 10)
            ),
        ),
        Experiment(
            "inference",
            "Classification with cached class features against the bare image tower",
            grid(
                Case("coop", "inference", sides=("bare", "fixed")),
                batch=(4, 1, 32),
                method=[name for name in CLIP_METHODS if name != "cocoop"],
            ),
            tuple(
                Bar(
                    f"coop/inference/100 classes/batch {batch}",
                    "bare_ratio",
                    1.03,
                    f"cached class features, batch {batch}, within 3 % of the bare image tower",
                    at_least=False,
                )
                for batch in (1, 4, 32)
            ),
        ),
        Experiment(
            "many_adapters",
            "A hundred RPO adapters in one pass against one adapter",
            grid(Case("rpo", "adapters", classes=10, sides=("one",), adapters=100), tokens=(4, 1)),
            tuple(
                Bar(
                    f"rpo/adapters/10 classes/batch 4/{tokens} tokens",
                    "one_ratio",
                    limit,
                    f"100 RPO adapters (K={tokens}), at most {limit} times the cost of one",
                    at_least=False,
                )
                for tokens, limit in ((4, 3.2), (1, 1.6))
            )
            + (
                Bar(
                    "rpo/adapters/10 classes/batch 4/4 tokens",
                    "one_by_one_ratio",
                    25,
                    "100 RPO adapters (K=4), 25x faster than one by one",
                ),
            ),
        ),
        Experiment(
            "alternatives",
            "CoOp beside what one would pick instead, on the same weights",
            grid(Case("coop", sides=("plain", "transformers", "open_clip")), classes=(100, 10)),
        ),
        Experiment(
            "precision",
            "bfloat16 against float32, for processors that multiply in it",
            grid(Case("coop", sides=BF16), method=CLIP_METHODS | FIELD_METHODS)
            + (Case("vpt-deep", tokens=50, sides=BF16),)
            + grid(Case("coop", "text", batch=1, sides=BF16), method=("coop", "maple", "rpo", "mrpo"))
            + grid(Case("coop", "inference", sides=BF16), batch=(4, 32), method=("coop", "maple", "vpt-clip", "rpo")),
        ),
        Experiment(
            "compile",
            "A training step compiled by torch.compile against the same step as it stands",
            (
                Case("coop", sides=("compiled",)),
                Case("maple", sides=("compiled",)),
                Case("vpt-deep", tokens=50, sides=("compiled",)),
            ),
        ),
        Experiment(
            "many_classes",
            "CoOp with all 21,841 classes of ImageNet-21k, in bounded memory",
            (Case("coop", classes=21841, sides=(), timed=False),),
        ),
        Experiment(
            "scaling",
            "CoOp as classes, context and batch grow",
            grid(Case("coop", "text", batch=1), classes=(10, 30, 100, 300))
            + grid(Case("coop", "text", batch=1), classes=(1000, 3000), sides=((),))
            + grid(Case("coop", "text", batch=1), tokens=(1, 4, 16, 48))
            + grid(Case("coop"), batch=(1, 4, 16, 32)),
        ),
    )
}


def quick(experiment: Experiment) -> Experiment:
    """The same experiment with one small cell for each part, in some for each method, and no bars."""
    cases = {
        case.method if experiment.name in ("methods", "field", "precision") else case.part: replace(
            case, classes=5, batch=2, tokens=case.tokens and min(case.tokens, 3), adapters=min(case.adapters, 3)
        )
        for case in experiment.cases
    }
    return replace(experiment, cases=tuple(cases.values()), bars=())

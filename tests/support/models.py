"""Tiny models, tokenizers and inputs, built in memory. Nothing here is trained; everything is deterministic."""

from __future__ import annotations

import copy
import functools
import string
from collections.abc import Callable, Iterable

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

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


CLASS_NAMES = ["cat", "sea lion", "boeing 737-800", "herbaceous land", "dog"]
NEW_NAMES = ["fox", "wolf pack", "airbus"]
NUM_LABELS = len(CLASS_NAMES)
IMAGE_SIZE = 32

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}


#: How tokenizers frame a text: start, end and padding token.
FRAMES = {
    "clip": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "siglip": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "bert": {"cls_token": "<|startoftext|>", "sep_token": "<|endoftext|>", "pad_token": "!"},
    "tips": {"pad_token": "!"},
    "roberta": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!"},
}


def tiny_tokenizer(frame: str = "clip") -> PreTrainedTokenizerFast:
    """One token per character, started, ended and padded as a family of models has it."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = len(vocabulary) - 2, len(vocabulary) - 1
    single = {"siglip": "$A <|endoftext|>", "tips": "$A"}.get(frame, "<|startoftext|> $A <|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>", **FRAMES[frame])


VOCABULARY_SIZE = len(tiny_tokenizer())


def remembered(build: Callable) -> Callable:
    """Let a function that makes a model copy what it made before, with the random numbers that follow."""
    made: dict[str, tuple] = {}

    @functools.wraps(build)
    def copied(*args, **options):
        key = repr((args, sorted(options.items())))
        if key not in made:
            made[key] = (build(*args, **options), torch.get_rng_state())
        model, state = made[key]
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return copied


@remembered
def tiny_clip(seed: int = 0, **config) -> CLIPModel:
    """A three-layer CLIP with random weights."""
    torch.manual_seed(seed)
    text = TEXT | {"vocab_size": VOCABULARY_SIZE, "eos_token_id": VOCABULARY_SIZE - 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16, **config)).eval()


@remembered
def tiny_vit(seed: int = 0, bare: bool = False) -> ViTModel | ViTForImageClassification:
    """A three-layer ViT with random weights, with a head or without."""
    torch.manual_seed(seed)
    config = ViTConfig(**VISION, num_labels=NUM_LABELS)
    return (ViTModel(config) if bare else ViTForImageClassification(config)).eval()


def tiny_clip_vision(cls, seed: int = 0):
    """CLIP's vision tower alone, in one of its three classes."""
    torch.manual_seed(seed)
    if cls is CLIPForImageClassification:
        text = TEXT | {"vocab_size": VOCABULARY_SIZE}
        return cls(CLIPConfig(text_config=text, vision_config=VISION, num_labels=NUM_LABELS)).eval()
    return cls(CLIPVisionConfig(**VISION, projection_dim=16)).eval()


BACKBONES = {
    "CLIPModel": tiny_clip,
    "CLIPForImageClassification": lambda: tiny_clip_vision(CLIPForImageClassification),
    "CLIPVisionModel": lambda: tiny_clip_vision(CLIPVisionModel),
    "CLIPVisionModelWithProjection": lambda: tiny_clip_vision(CLIPVisionModelWithProjection),
    "ViTModel": lambda: tiny_vit(bare=True),
    "ViTForImageClassification": tiny_vit,
}


def held_prototypes(**options) -> CLAPConfig:
    """CLAP as it is after its support set was seen."""
    return CLAPConfig(class_penalties=[0.5] * len(options["class_names"]), **options)


#: Several configurations of every registered method, by the method's PEFT name.
CONFIGS = {
    "visual_prompt": {
        "shallow": lambda **kw: VisualPromptConfig(num_virtual_tokens=3, **kw),
        "deep": lambda **kw: VisualPromptConfig(num_virtual_tokens=2, deep=True, **kw),
        "two-layers": lambda **kw: VisualPromptConfig(num_virtual_tokens=2, deep=True, num_deep_layers=2, **kw),
        "shared": lambda **kw: VisualPromptConfig(num_virtual_tokens=2, deep=True, deep_shared=True, **kw),
        "projected": lambda **kw: VisualPromptConfig(num_virtual_tokens=3, deep=True, projection_dim=6, **kw),
        "added": lambda **kw: VisualPromptConfig(location="add", pooling="img_pool", **kw),
        "last-layers": lambda **kw: VisualPromptConfig(num_virtual_tokens=2, deep=True, first_layer=1, **kw),
        "pixels": lambda **kw: VisualPromptConfig(
            num_virtual_tokens=2, location="prepend-pixel", pooling="prompt_pool", **kw
        ),
        "border": lambda **kw: VisualPromptConfig(num_virtual_tokens=2, location="pad", **kw),
        "channels": lambda **kw: VisualPromptConfig(num_virtual_tokens=1, location="below", **kw),
        "read-only": lambda **kw: VisualPromptConfig(num_virtual_tokens=3, read_only=True, **kw),
    },
    "context_opt": {
        "end": lambda **kw: ContextOptConfig(num_virtual_tokens=4, **kw),
        "middle": lambda **kw: ContextOptConfig(num_virtual_tokens=5, class_token_position="middle", **kw),
        "front": lambda **kw: ContextOptConfig(num_virtual_tokens=3, class_token_position="front", **kw),
        "class-specific": lambda **kw: ContextOptConfig(num_virtual_tokens=2, class_specific=True, **kw),
        "words": lambda **kw: ContextOptConfig(prompt_init="text", prompt_init_text="a photo of a", **kw),
        "names": lambda **kw: ContextOptConfig(**{"tune": "class_name", "class_names": CLASS_NAMES} | kw),
        "full": lambda **kw: ContextOptConfig(
            **{"tune": "full", "num_virtual_tokens": 3, "class_names": CLASS_NAMES} | kw
        ),
        "full-middle-words": lambda **kw: ContextOptConfig(
            **{"tune": "full", "prompt_init": "text", "prompt_init_text": "two photos"}
            | {"class_token_position": "middle", "class_names": CLASS_NAMES}
            | kw
        ),
    },
    "cocoop": {
        "random": lambda **kw: CoCoOpConfig(prompt_init="random", num_virtual_tokens=3, **kw),
        "words": lambda **kw: CoCoOpConfig(**kw),
    },
    "kgcoop": {
        "words": lambda **kw: KgCoOpConfig(**kw),
        "random": lambda **kw: KgCoOpConfig(prompt_init="random", num_virtual_tokens=3, **kw),
        "class-specific": lambda **kw: KgCoOpConfig(
            **{"prompt_init": "random", "class_specific": True, "class_names": CLASS_NAMES} | kw
        ),
    },
    "prograd": {
        "words": lambda **kw: ProGradConfig(num_virtual_tokens=5, **kw),
        "random": lambda **kw: ProGradConfig(prompt_init="random", num_virtual_tokens=3, **kw),
        "class-specific-words": lambda **kw: ProGradConfig(
            **{"num_virtual_tokens": 5, "class_specific": True, "class_names": CLASS_NAMES} | kw
        ),
    },
    "promptsrc": {
        "independent": lambda **kw: PromptSRCConfig(
            # Not from words: where texts start at the frozen ones the mean difference has no gradient, but rounding has.
            **{"prompt_depth": 2, "prompt_init": "random", "text_consistency_weight": 2.5} | kw
        ),
        "full-depth": lambda **kw: PromptSRCConfig(prompt_depth=3, num_virtual_tokens=1, **kw),
        "coupled": lambda **kw: PromptSRCConfig(prompt_depth=2, coupling="linear", **kw),
    },
    "mmrl": {
        "one-layer": lambda **kw: MMRLConfig(
            representation_layers=[2], representation_dim=8, num_virtual_tokens=2, logit_scale=None, **kw
        ),
        "mmrl": lambda **kw: MMRLConfig(representation_layers=[2, 3], representation_dim=12, **kw),
        "low-rank": lambda **kw: MMRLConfig(
            representation_layers=[2, 3], representation_dim=12, low_rank=2, readout_rank=4, **kw
        ),
        "aligned": lambda **kw: MMRLConfig(
            representation_layers=[2, 3],
            representation_dim=12,
            low_rank=2,
            readout_rank=4,
            feature_norm_weight=0.1,
            sequence_norm_weight=0.1,
            **kw,
        ),
    },
    "tcp": {
        "random": lambda **kw: TCPConfig(class_token_layer=1, **kw),
        "words": lambda **kw: TCPConfig(
            class_token_layer=1, num_class_tokens=2, prompt_init="text", prompt_init_text="a photo of a", **kw
        ),
    },
    "promptkd": {
        "own-space": lambda **kw: PromptKDConfig(
            **{"class_names": CLASS_NAMES, "num_virtual_tokens": 2, "prompt_depth": 2} | kw
        ),
    },
    "class_head": {
        "random": lambda **kw: ClassHeadConfig(**{"class_names": CLASS_NAMES} | kw),
        "text": lambda **kw: ClassHeadConfig(**{"class_names": CLASS_NAMES, "head_init": "text"} | kw),
    },
    "tip_adapter": {
        "trained": lambda **kw: TipAdapterConfig(
            **{"class_names": CLASS_NAMES} | kw, train_keys=True, num_support_images=10, logit_scale=None
        ),
    },
    "clap": {"held": lambda **kw: held_prototypes(**{"class_names": CLASS_NAMES} | kw)},
    "text_encoder": {"whole": lambda **kw: TextEncoderConfig(**kw)},
    "norm_tuning": {"both": lambda **kw: NormTuningConfig(**kw)},
    "two_stage": {"first": lambda **kw: TwoStageConfig(**kw)},
    # Both factors at random: at its start the second one is zero, and the first one has no gradient.
    "clip_lora": {
        "both": lambda **kw: CLIPLoraConfig(
            **{"lora_dropout": 0.0, "init_lora_weights": False, "logit_scale": None} | kw
        )
    },
    "read_only_prompt": {
        "rpo": lambda **kw: ReadOnlyPromptConfig(num_virtual_tokens=4, **kw),
        "one": lambda **kw: ReadOnlyPromptConfig(num_virtual_tokens=1, **kw),
    },
    "mrpo": {
        "replace": lambda **kw: MRPOConfig(prompt_depth=2, **kw),
        "full-depth": lambda **kw: MRPOConfig(prompt_depth=3, num_virtual_tokens=1, **kw),
        "accumulate": lambda **kw: MRPOConfig(prompt_depth=3, prompt_update="accumulate", **kw),
        "free": lambda **kw: MRPOConfig(prompt_depth=2, coupling="none", prompt_update="accumulate", **kw),
        "depth-one": lambda **kw: MRPOConfig(prompt_depth=1, num_virtual_tokens=2, **kw),
    },
    "maple": {
        "maple": lambda **kw: MaPLeConfig(prompt_depth=2, **kw),
        "full-depth": lambda **kw: MaPLeConfig(prompt_depth=3, num_virtual_tokens=5, **kw),
        "ivlp": lambda **kw: MaPLeConfig(
            prompt_depth=3, coupling="none", text_num_virtual_tokens=1, vision_num_virtual_tokens=4, **kw
        ),
        "text-only": lambda **kw: MaPLeConfig(prompt_depth=2, vision_prompt_depth=0, **kw),
        "vision-only": lambda **kw: MaPLeConfig(prompt_depth=2, coupling="none", text_prompt_depth=0, **kw),
        "regularised": lambda **kw: MaPLeConfig(
            prompt_depth=2,
            text_consistency_weight=25.0,
            image_consistency_weight=10.0,
            logit_consistency_weight=1.0,
            consistency_distance="l1",
            **kw,
        ),
    },
}


def often(cases: Iterable, chosen: Iterable) -> list:
    """Return the parameters of a test, a value or a tuple of values each; those that are not `chosen` run nightly."""
    chosen = list(chosen)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if case in chosen else pytest.mark.nightly
        )
        for case in cases
    ]


#: Every configuration of every method; a method's first one is tested in every run.
PAIRS = [(method, case) for method, cases in CONFIGS.items() for case in cases]
FIRST_PAIRS = [(method, next(iter(cases))) for method, cases in CONFIGS.items()]
every_config = pytest.mark.parametrize(("method", "case"), often(PAIRS, FIRST_PAIRS))


def class_by_class() -> list[tuple[str, str]]:
    """Configurations that learn something for each class."""
    return [(m, c) for m, c in PAIRS if CONFIGS[m][c](class_names=CLASS_NAMES).belongs_to_classes]


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Random images [count, 3, 32, 32]."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Random labels [count]."""
    return torch.randint(NUM_LABELS, (count,), generator=torch.Generator().manual_seed(seed))


def towers(model) -> list:
    """The encoders of a PEFT model, whatever its tuner is: of the images first."""
    adapted = model.class_name_classifier.adapted
    return [encoder for encoder in (adapted.vision, adapted.text) if encoder is not None]


def disturb(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Move every trainable parameter away from its start, as training would; in evaluation mode then."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """What a model says of the random images."""
    return model(pixel_values=images()).logits

"""The sides of a cell: functions that each run the same work once, ours, the authors' way, or the base model's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_vprompt import (
    CoCoOpConfig,
    ContextOptConfig,
    MaPLeConfig,
    MRPOConfig,
    PeftModelForImageClassification,
    ReadOnlyPromptConfig,
    VisualPromptConfig,
)
from peft_vprompt.tuners.base.registry import get_method
from peft_vprompt.utils.precision import autocast, hold

from .alternatives import ALTERNATIVES, missing_alternatives
from .cases import FIELD_METHODS, VIT_METHODS, Case
from .floor import Product, Products, layer_products
from .inputs import Inputs, twin
from .plain import PLAIN, PlainCLIP, PlainMRPO, PlainViT, learn
from .plain_field import PLAIN_FIELD, PlainPromptSRC


@dataclass
class Sides:
    """What one cell compares.

    Attributes:
        run: side -> a function that does the work once (with the backward pass, where there is one) and returns
            logits or features. "floor" does the matrix products alone.
        trained: the tensors whose gradients are compared.
        layers: side -> tower -> its Hugging Face layers, to count rows in.
        rows: what a side takes, for an estimate: rows of text, rows of images, and whether the latter learn.
        products: matrix products that a side takes.
        model: the PEFT model of our side.
        own: side -> its trained tensors, where it does not share `trained`.
        weights: side -> bytes of its base model.
        missing: side -> why it cannot be measured here.
    """

    run: dict[str, Callable[[], Tensor]]
    trained: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, nn.ModuleList]] = field(default_factory=dict)
    rows: dict[str, tuple[int, int, bool]] = field(default_factory=dict)
    products: dict[str, list[Product]] = field(default_factory=dict)
    model: PeftModelForImageClassification | None = None
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def config_of(case: Case, model: PreTrainedModel) -> PeftConfig:
    """The published configuration of a method, with another number of prompts where the cell wants one.

    A newer method's is that of the method table, with published layers cut to those of the model; as the plain sides have
    it, without dropout and with few templates; and off the words that KgCoOp starts from, where its term has no gradient.
    """
    if case.method in FIELD_METHODS:
        changes = {
            "kgcoop": {"prompt_init": "random", "prompt_init_text": None},
            "promptsrc": {"frozen_template": list(PlainPromptSRC.templates)},
            "clip-lora": {"lora_dropout": 0.0},
        }
        return get_method(case.method).configure(model, **changes.get(case.method, {}))
    tokens = {} if case.tokens is None else {"num_virtual_tokens": case.tokens}
    configs = {
        "coop": lambda: ContextOptConfig(**tokens),
        "cocoop": lambda: CoCoOpConfig(),
        "maple": lambda: MaPLeConfig(**tokens),
        "ivlp": lambda: MaPLeConfig(coupling="none", **tokens),
        "vpt-clip": lambda: VisualPromptConfig(**{"num_virtual_tokens": 8} | tokens, deep=True),
        "rpo": lambda: ReadOnlyPromptConfig(**tokens),
        "mrpo": lambda: MRPOConfig(prompt_depth=PlainMRPO.depth, **tokens),
        "vpt-shallow": lambda: VisualPromptConfig(**tokens),
        "vpt-deep": lambda: VisualPromptConfig(**tokens, deep=True),
    }
    return configs[case.method]()


def build(case: Case, inputs: Inputs) -> Sides:
    """Make the models of a cell, all over the same weights."""
    return build_vit(case, inputs) if case.method in VIT_METHODS else build_clip(case, inputs)


def learned(model: PeftModelForImageClassification) -> dict[str, Tensor]:
    """Return the trained tensors by tower and name, and those of a head; PEFT's own by the module that they change."""
    tuner = model.base_model
    if not hasattr(tuner, "text_encoder"):
        named = (
            (name.removeprefix("base_model.model."), p) for name, p in model.named_parameters() if p.requires_grad
        )
        return {name.removesuffix(".default.weight"): parameter for name, parameter in named}
    trained = {}
    for side, encoder in (("text", tuner.text_encoder), ("vision", tuner.vision_encoder)):
        if encoder is not None and (prompts := encoder.prompts_of("default")) is not None:
            trained |= {f"{side}.{name}": tensor for name, tensor in prompts.named_parameters()}
    if (head := getattr(model.get_base_model(), "classifier", None)) is not None:
        own = head.modules_to_save["default"]
        trained |= {"head.weight": own.weight, "head.bias": own.bias}
    return trained


def _leave_zero(trained: dict[str, Tensor]) -> None:
    """Let a LoRA's second factors start from small values: where they are zero, so are the first ones' gradients."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in trained.items():
        if name.endswith(".lora_B"):
            values = torch.randn(tensor.shape, generator=generator)
            tensor.data.copy_(0.02 * values)


def clip_layers(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Layers of both towers, wrapped or not."""
    return {"text": model.text_model.encoder.layers, "vision": model.vision_model.encoder.layers}


def build_clip(case: Case, inputs: Inputs) -> Sides:
    """A method on a CLIP."""
    clip = inputs.clip()
    bare = twin(clip)
    config = config_of(case, clip)
    config.class_names, config.tokenizer_name_or_path = inputs.class_names(case.classes), inputs.tokenizer_path
    lower = hold(copy.deepcopy(clip), "bf16") if "bf16" in case.sides else None
    model = get_peft_model(clip, config)
    trained = learned(model)
    _leave_zero(trained)
    plain = (PLAIN | PLAIN_FIELD)[case.method](bare, inputs.load_tokenizer(), config.class_names, trained)
    pixel_values, labels = inputs.images(case.batch), inputs.labels(case.batch, case.classes)
    if case.part == "adapters":
        return Sides(_adapters(model, case, pixel_values), layers={"ours": clip_layers(model.get_base_model())})
    make = {"step": _steps, "text": _text_sides, "cached": _cached_steps, "inference": _inference}[case.part]
    run = make(model, plain, pixel_values, labels)
    run |= _compiled(model, inputs, pixel_values, labels)
    missing = missing_alternatives()
    for name in set(ALTERNATIVES) & set(case.sides) - set(missing):
        run[name] = functools.partial(ALTERNATIVES[name](plain).step, pixel_values, labels)
    products = {"ours": clip_products(case, plain, config), "plain": plain_products(case, plain)}
    if products["ours"]:
        run["floor"] = Products(products["ours"], inputs.device)
    text_rows, vision_rows = plain_rows(case, plain)
    result = Sides(
        run,
        {} if case.part == "inference" else trained,
        {"ours": clip_layers(model.get_base_model()), "plain": clip_layers(bare), "bare": clip_layers(bare)},
        {"plain": (text_rows, vision_rows, plain.learns_vision), "ours": our_rows(case, plain)},
        products,
        model,
        missing={name: why for name, why in missing.items() if name in case.sides},
    )
    if lower is not None:
        _add_bf16(result, case, lower, config, lambda twin: make(twin, plain, pixel_values, labels)["ours"])
    return result


def _add_bf16(sides: Sides, case: Case, lower: nn.Module, config: PeftConfig, make: Callable) -> None:
    """Add our side over a base model that is held, or computes, in bfloat16, from the same trained values."""
    weights = list(lower.parameters())
    sides.weights = {
        "ours": sum(4 * weight.numel() for weight in weights),
        "bf16": sum(weight.nbytes for weight in weights),
    }
    model = get_peft_model(lower, copy.deepcopy(config))
    model.load_state_dict(
        {name: tensor for name, tensor in sides.model.state_dict().items() if "default" in name}, strict=False
    )
    sides.own["bf16"] = {} if case.part == "inference" else dict(learned(model))
    sides.run["bf16"] = make(model)
    products = [replace(product, weight=product.weight.bfloat16()) for product in sides.products.get("ours", [])]
    if products:
        sides.run["bf16_floor"] = Products(products, str(weights[0].device))


def _steps(model, plain, pixel_values, labels):
    return {
        "ours": lambda: _step(model, pixel_values, labels),
        "plain": lambda: plain.step(pixel_values, labels),
    }


def _step(model, pixel_values, labels):
    output = model(pixel_values=pixel_values, labels=labels)
    output.loss.backward()
    return output.logits.detach()


def _compiled(model, inputs, pixel_values, labels):
    """Compiled at the first call: the compiler is not even imported where this side is not measured."""
    compiled = functools.cache(lambda: torch.compile(model, backend=inputs.compiler))
    return {"compiled": lambda: _step(compiled(), pixel_values, labels)}


def _text_sides(model, plain, pixel_values, labels):
    with torch.no_grad():
        features = model.encode_classes()
    # A fixed direction to differentiate in: features lie on a sphere, so their sum would have hardly any gradient.
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)

    def differentiate(features):
        (features * direction).sum().backward()
        return features.detach()

    return {
        "ours": lambda: differentiate(model.encode_classes()),
        "plain": lambda: differentiate(plain.text_features()),
    }


def _cached_steps(model, plain, pixel_values, labels):
    with torch.no_grad():
        images = model.encode_images(pixel_values)

    def ours():
        output = model(image_features=images, labels=labels)
        output.loss.backward()
        return output.logits.detach()

    return {"ours": ours, "plain": lambda: learn(plain.classify(images), labels)}


def _inference(model, plain, pixel_values, labels):
    model.eval()

    @torch.no_grad()
    def ours():
        return model(pixel_values=pixel_values).logits

    @torch.no_grad()
    def bare():
        return plain.clip.visual_projection(plain.clip.vision_model(pixel_values).pooler_output)

    def fixed():
        with model.fixed_weights():
            return ours()

    return {"ours": ours, "bare": bare, "fixed": fixed}


def _adapters(model, case, pixel_values):
    names = [f"adapter {k}" for k in range(case.adapters)]
    for name in names:
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    model.eval()

    def classify(names):
        with torch.no_grad():
            return torch.stack(
                [output.logits for output in model.classify_with_adapters(pixel_values, names).values()]
            )

    return {"ours": lambda: classify(names), "one": lambda: classify(names[:1])}


def plain_rows(case: Case, plain: PlainCLIP) -> tuple[int, int]:
    """Rows of text and of images that the plain side sends through the layers."""
    text = plain.ids.numel() * (case.batch if plain.per_image else 1)
    image = plain.clip.vision_model.embeddings.num_positions + plain.num_extra_vision_rows
    with_text, with_images = case.part in ("step", "text", "cached"), case.part in ("step", "inference")
    return text * with_text * (case.method != "vpt-clip"), case.batch * image * with_images


def our_rows(case: Case, plain: PlainCLIP) -> tuple[int, int, bool]:
    """The same for ours, from the definition of the packed sequence."""
    _, vision = plain_rows(case, plain)
    if case.method in ("rpo", "mrpo"):
        text = case.classes * plain.num_extra_vision_rows
    else:
        text = plain.needed_rows * (case.batch if plain.per_image else 1)
    return text * bool(plain_rows(case, plain)[0]), vision, plain.learns_vision and case.method not in ("rpo", "mrpo")


def plain_products(case: Case, plain: PlainCLIP) -> list[Product]:
    """The matrix products of all rows that the plain side computes."""
    rows = plain_rows(case, plain)
    learns = (True, plain.learns_vision)
    text, vision = clip_layers(plain.clip).values()
    runs = list(zip((text, vision), rows, learns, strict=True))
    if plain.runs_frozen_images:
        runs.append((vision, case.batch * plain.clip.vision_model.embeddings.num_positions, False))
    return [
        product
        for layers, count, backward in runs
        for product in layer_products(layers, count, count, count, backward and case.part != "inference")
    ]


def clip_products(case: Case, plain: PlainCLIP, config: PeftConfig) -> list[Product]:
    """The matrix products that the tokens which must be computed take, both towers, forward and backward."""
    text, vision = clip_layers(plain.clip).values()
    has_text, has_images = (bool(rows) for rows in plain_rows(case, plain))
    patches = case.batch * plain.clip.vision_model.embeddings.num_positions
    learns = case.part != "inference"
    products = []
    if case.method in ("rpo", "mrpo"):
        count, first = config.num_virtual_tokens, 0 if case.method == "rpo" else config.prompt_depth - 1
        if has_text and learns:
            read_only = case.classes * count
            products += layer_products(text[first:], 0, read_only, read_only, backward=True)
        if has_images:
            products += layer_products(vision, patches, patches, 0, backward=False)
            read_only = case.batch * count
            products += layer_products(vision[first:], 0, read_only, read_only, backward=learns)
        return products
    if has_text and learns:
        images = case.batch if plain.per_image else 1
        rows = images * plain.needed_rows
        products += layer_products(text, rows, rows, images * case.classes, backward=True)
    if has_images:
        rows = patches + case.batch * plain.num_extra_vision_rows
        products += layer_products(vision, rows, rows, case.batch, backward=learns and plain.learns_vision)
        if plain.runs_frozen_images:
            products += layer_products(vision, patches, patches, case.batch, backward=False)
    return products


def build_vit(case: Case, inputs: Inputs) -> Sides:
    """VPT on a ViT classifier. The bare side runs the layers, forward and backward to its input tokens."""
    vit = inputs.vit(case.classes)
    bare = twin(vit)
    config = config_of(case, vit)
    lower = copy.deepcopy(vit) if "bf16" in case.sides else None
    model = get_peft_model(vit, config)
    trained = learned(model)
    plain = PlainViT(bare, trained)
    pixel_values, labels = inputs.images(case.batch), inputs.labels(case.batch, case.classes)
    patches = bare.vit.embeddings.patch_embeddings.num_patches
    rows = 1 + case.tokens + patches
    tokens = torch.randn(case.batch, rows, bare.config.hidden_size).to(pixel_values).requires_grad_()

    def run_bare():
        tokens.grad = None
        hidden = tokens
        for layer in bare.vit.layers:
            hidden = layer(hidden)
        return learn(bare.classifier(bare.vit.layernorm(hidden)[:, 0]), labels)

    products = layer_products(bare.vit.layers, case.batch * rows, case.batch * rows, case.batch, backward=True)
    run = _steps(model, plain, pixel_values, labels)
    run |= {"bare": run_bare, "floor": Products(products, inputs.device)}
    run |= _compiled(model, inputs, pixel_values, labels)
    layers = {"vision": model.get_base_model().vit.layers}
    plain_layers = {"vision": bare.vit.layers}
    count = (0, case.batch * rows, True)
    result = Sides(
        run,
        trained,
        {"ours": layers, "plain": plain_layers, "bare": plain_layers},
        {"ours": count, "plain": count},
        {"ours": products},
        model,
    )
    if lower is not None:
        autocast(lower, "bf16", torch.device(inputs.device))
        _add_bf16(result, case, lower, config, lambda twin: _steps(twin, plain, pixel_values, labels)["ours"])
    return result

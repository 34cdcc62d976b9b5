"""The plain way of the newer methods, as `plain` has that of the older ones: what the authors' code computes in a step.

Terms of the loss beside the cross-entropy are here too, and what the frozen model says of the same images, which the
authors compute anew in every step; what it says of the classes is computed once, before training. Kept free of everything
in `peft_vprompt`.

Shapes: b = images, c = classes, n = prompts of a layer, d = width of a tower, e = size of the joint space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .plain import PlainCLIP, PlainCoOp, PlainMaPLe


class PlainFrozen(PlainCLIP):
    """A method that is held near the frozen model: `frozen_texts` [c, e] are that model's features of the classes."""

    #: What the frozen model reads; the name stands in the braces.
    templates: tuple[str, ...] = ("a photo of a {}.",)

    def __init__(self, clip, tokenizer, names, trained):
        super().__init__(clip, tokenizer, names, trained)
        features = []
        with torch.no_grad():
            for template in self.templates:
                zero_shot = PlainCLIP(clip, tokenizer, names, {}, template)
                ends = zero_shot.encode_texts(zero_shot.with_context(zero_shot.word_vectors))
                ends = ends[zero_shot.rows, zero_shot.ends]
                features.append(clip.text_projection(clip.text_model.final_layer_norm(ends)))
        self.frozen_texts = F.normalize(torch.stack(features).mean(0), dim=-1)

    @torch.no_grad()
    def frozen_images(self, pixel_values: Tensor) -> Tensor:
        """What the frozen model makes of the images, [b, e]."""
        return PlainCLIP.image_features(self, pixel_values)


def distance(features: Tensor, frozen: Tensor) -> Tensor:
    """1 minus the mean cosine."""
    return 1 - F.cosine_similarity(features, frozen, dim=-1, eps=1e-7).mean()


class PlainKgCoOp(PlainCoOp, PlainFrozen):
    """htyao89/KgCoOp `trainers/kgcoop.py`."""

    weight = 8.0

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, and the distance of all class features to the frozen ones."""
        texts = self.text_features()
        logits = self.compare(self.image_features(pixel_values), texts)
        loss = F.cross_entropy(logits.float(), labels) + self.weight * distance(texts, self.frozen_texts)
        loss.backward()
        return logits.detach()


class PlainProGrad(PlainCoOp, PlainFrozen):
    """BeierZhu/Prompt-align `trainers/prograd.py`: two backward passes, then the projection."""

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Leave the cross-entropy's gradient, without what goes against the frozen model's predictions."""
        (context,) = self.trained.values()
        with torch.no_grad():
            images = self.image_features(pixel_values)
            wanted = self.compare(images, self.frozen_texts).float().softmax(-1)
        logits = self.compare(images, self.text_features())
        F.cross_entropy(logits.float(), wanted).backward(retain_graph=True)
        direction = context.grad / context.grad.norm()
        context.grad = None
        F.cross_entropy(logits.float(), labels).backward()
        along = (context.grad * direction).sum()
        if along < 0:
            context.grad -= along * direction
        return logits.detach()


class PlainPromptSRC(PlainMaPLe, PlainFrozen):
    """muzairkhattak/PromptSRC `trainers/promptsrc.py`, with two of its sixty templates, which are read once."""

    templates = ("a photo of a {}.", "a drawing of a {}.")
    runs_frozen_images = True
    weights = (25.0, 10.0)

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, mean differences of features, divergence of predictions."""
        texts, images = self.text_features(), self.image_features(pixel_values)
        logits = self.compare(images, texts)
        frozen = self.frozen_images(pixel_values)
        wanted = self.compare(frozen, self.frozen_texts)
        for_texts, for_images = self.weights
        loss = F.cross_entropy(logits.float(), labels)
        loss = loss + for_texts * F.l1_loss(texts, self.frozen_texts) + for_images * F.l1_loss(images, frozen)
        divergence = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="sum", log_target=True)
        (loss + divergence / logits.numel()).backward()
        return logits.detach()


class PlainMMRL(PlainFrozen):
    """yunncheng/MMRL `trainers/mmrl.py`: tokens of one space behind the first row of both towers' late layers."""

    learns_vision = True
    runs_frozen_images = True
    alpha, weight, scale = 0.7, 1.0, 100.0

    @property
    def num_extra_vision_rows(self) -> int:
        """Tokens of the shared space."""
        return self.get("text.tokens").shape[0]

    def tokens_of(self, tower: str) -> list[Tensor]:
        """The tokens [n, d] of each late layer."""
        maps = zip(self.get(f"{tower}.maps.weight"), self.get(f"{tower}.maps.bias"), strict=True)
        return [F.linear(self.get("text.tokens"), weight, bias) for weight, bias in maps]

    def run(self, layers: nn.ModuleList, hidden: Tensor, tokens: list[Tensor], **options) -> Tensor:
        """Run a tower, into whose last layers the tokens come."""
        first = len(layers) - len(tokens)
        for index, layer in enumerate(layers):
            if index >= first:
                new = tokens[index - first].expand(len(hidden), -1, -1)
                rest = 1 if index == first else 1 + new.shape[1]
                hidden = torch.cat([hidden[:, :1], new, hidden[:, rest:]], dim=1)
            hidden = layer(hidden, None, **options)
        return hidden

    def text_features(self) -> Tensor:
        """[c, e], read at the end tokens."""
        tokens = self.tokens_of("text")
        hidden = self.with_context(self.word_vectors)
        hidden = self.run(self.clip.text_model.encoder.layers, hidden, tokens, is_causal=True)
        return self.project_text(hidden[self.rows, self.ends + len(tokens[0])])

    def two_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The class token's feature and the tokens', [b, e] each."""
        vision, tokens = self.clip.vision_model, self.tokens_of("vision")
        hidden = vision.pre_layrnorm(vision.embeddings(pixel_values))
        hidden = vision.post_layernorm(self.run(vision.encoder.layers, hidden, tokens))
        own = F.normalize(self.clip.visual_projection(hidden[:, 0]), dim=-1)
        mean = hidden[:, 1 : 1 + len(tokens[0])].mean(1)
        return own, F.normalize(mean @ self.get("vision.projection"), dim=-1)

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Both predictions' cross-entropies, and the distances of class token and class features."""
        texts = self.text_features()
        own, of_tokens = self.two_features(pixel_values)
        logits = [self.scale * images @ texts.t() for images in (own, of_tokens)]
        shares = (self.alpha, 1 - self.alpha)
        parts = [s * F.cross_entropy(one.float(), labels) for s, one in zip(shares, logits, strict=True)]
        held = distance(own, self.frozen_images(pixel_values)) + distance(texts, self.frozen_texts)
        (sum(parts) + self.weight * held).backward()
        return (shares[0] * logits[0] + shares[1] * logits[1]).detach()


class PlainTCP(PlainCoOp, PlainFrozen):
    """htyao89/Textual-based_Class-aware_prompt_tuning `trainers/tcp.py`."""

    weight, layer = 8.0, 8

    @property
    def needed_rows(self) -> int:
        """All rows up to the end tokens: class tokens come in before the names, so nothing is shared."""
        return int((self.ends + 1).sum())

    def text_features(self) -> Tensor:
        """A context, and from one layer on tokens of each class in its place."""
        hidden = F.linear(self.frozen_texts, self.get("text.meta_net.0.weight"), self.get("text.meta_net.0.bias"))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        tokens = F.linear(hidden, self.get("text.meta_net.2.weight"), self.get("text.meta_net.2.bias"))
        tokens = tokens.view(len(self.names), -1, self.word_vectors.shape[-1])
        hidden = self.put_context(self.get("text.tokens")[0])
        for index, layer in enumerate(self.clip.text_model.encoder.layers):
            if index == self.layer:
                hidden = torch.cat([hidden[:, :1], tokens, hidden[:, 1 + tokens.shape[1] :]], dim=1)
            hidden = layer(hidden, None, is_causal=True)
        return self.read_ends(hidden)

    step = PlainKgCoOp.step


class PlainCLIPLora(PlainCLIP):
    """MaxZanella/CLIP-LoRA `loralib`, without dropout: low-rank changes of queries, keys and values in both towers."""

    learns_vision = True
    scale = 100.0

    def __init__(self, clip, tokenizer, names, trained):
        super().__init__(clip, tokenizer, names, trained)
        for place in {name.partition(".lora_")[0] for name in trained}:
            clip.get_submodule(place).register_forward_hook(self.change(place))

    def change(self, place: str):
        """What adds the product of one layer's factors; alpha is 1."""

        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            down, up = (self.get(f"{place}.lora_{name}") for name in "AB")
            return output + F.linear(F.linear(inputs[0], down), up) / down.shape[0] ** 0.5

        return add

    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits [b, c], by a constant."""
        return self.scale * images @ texts.t()


PLAIN_FIELD = {
    "kgcoop": PlainKgCoOp,
    "prograd": PlainProGrad,
    "promptsrc": PlainPromptSRC,
    "mmrl": PlainMMRL,
    "tcp": PlainTCP,
    "clip-lora": PlainCLIPLora,
}

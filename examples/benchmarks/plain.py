"""The plain way, written on Hugging Face's layers: what the authors' code computes, in the order it does.

Every class prompt is padded to 77 tokens and carries its own copy of the context; prompts and images are one sequence
under a mask; CoCoOp runs the text encoder once for each image. Kept free of everything in `peft_vprompt`.

Shapes: b = images, c = classes, n = prompts of a layer, d = width of a tower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedTokenizerBase, ViTForImageClassification


def learn(logits: Tensor, labels: Tensor) -> Tensor:
    """Leave the gradients of the cross-entropy; return the logits."""
    F.cross_entropy(logits.float(), labels).backward()
    return logits.detach()


class PlainCLIP:
    """Zero-shot CLIP; methods override what they change.

    Args:
        clip: the model, not wrapped.
        tokenizer: reads the class prompts.
        names: class names.
        trained: the tensors that are learned, by name (`text.tokens`, `vision.weight`, ...).
        template: what stands around each name; None: `prefix` before it and a full stop.
    """

    words = "a photo of a"
    #: Images x classes text sequences instead of classes.
    per_image = False
    #: Whether gradients flow through the image tower.
    learns_vision = False
    #: Whether every step also runs the image tower as it is.
    runs_frozen_images = False

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        names: list[str],
        trained: dict[str, Tensor],
        template: str | None = None,
    ):
        self.clip, self.trained, self.names = clip, trained, names
        template = template or f"{self.prefix} {{}}."
        texts = [template.format(name.replace("_", " ")) for name in names]
        length = clip.config.text_config.max_position_embeddings
        batch = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
        self.ids = batch.input_ids.to(clip.device)
        self.ends = (self.ids == tokenizer.eos_token_id).int().argmax(1)
        self.rows = torch.arange(len(names), device=clip.device)
        with torch.no_grad():
            self.word_vectors = clip.text_model.embeddings.token_embedding(self.ids)

    @property
    def prefix(self) -> str:
        """The text before the name."""
        return self.words

    @property
    def num_extra_vision_rows(self) -> int:
        """Prompts in an image's sequence."""
        return 0

    @property
    def needed_rows(self) -> int:
        """Rows that must be computed under causal attention: beginnings that class prompts share count once."""
        prompts = [tuple(ids[: end + 1]) for ids, end in zip(self.ids.tolist(), self.ends.tolist(), strict=True)]
        return len({prompt[:length] for prompt in prompts for length in range(1, len(prompt) + 1)})

    def get(self, name: str) -> Tensor:
        """A learned tensor in the model's precision."""
        return self.trained[name].to(self.word_vectors.dtype)

    def text_features(self) -> Tensor:
        """[c, e], L2-normalised."""
        return self.read_ends(self.encode_texts(self.with_context(self.word_vectors)))

    def with_context(self, vectors: Tensor) -> Tensor:
        """Word vectors [c, 77, d] with the learned ones in place and positions added."""
        return vectors + self.clip.text_model.embeddings.position_embedding.weight

    def put_context(self, context: Tensor) -> Tensor:
        """A context [n, d] after the start token of every class, positions added."""
        context = context.expand(len(self.names), -1, -1)
        suffix = self.word_vectors[:, 1 + context.shape[1] :]
        vectors = torch.cat([self.word_vectors[:, :1], context, suffix], dim=1)
        return vectors + self.clip.text_model.embeddings.position_embedding.weight

    def encode_texts(self, hidden: Tensor, deep: list[Tensor] | None = None) -> Tensor:
        """The text layers; `deep[k]` [n, d] replaces the rows after the start token before layer k >= 1."""
        for index, layer in enumerate(self.clip.text_model.encoder.layers):
            if deep and 0 < index < len(deep):
                new = deep[index].expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :1], new, hidden[:, 1 + new.shape[1] :]], dim=1)
            hidden = layer(hidden, None, is_causal=True)
        return hidden

    def read_ends(self, hidden: Tensor) -> Tensor:
        """Features at the end tokens."""
        return self.project_text(hidden[self.rows, self.ends])

    def project_text(self, hidden: Tensor) -> Tensor:
        """Final norm and projection."""
        return F.normalize(self.clip.text_projection(self.clip.text_model.final_layer_norm(hidden)), dim=-1)

    def encode_images(self, pixel_values: Tensor, prompts: list[Tensor] | None = None, mask: Tensor | None = None):
        """The image layers over `[CLS, patches, prompts]`; `prompts[k]` [n, d] come in before layer k."""
        vision = self.clip.vision_model
        hidden = vision.embeddings(pixel_values)
        if prompts:
            hidden = torch.cat([hidden, prompts[0].expand(len(hidden), -1, -1)], dim=1)
        hidden = vision.pre_layrnorm(hidden)
        for index, layer in enumerate(vision.encoder.layers):
            if prompts and 0 < index < len(prompts):
                new = prompts[index].expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, : -new.shape[1]], new], dim=1)
            hidden = layer(hidden, mask)
        return hidden

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """[b, e], L2-normalised."""
        return self.project_image(self.encode_images(pixel_values)[:, 0])

    def project_image(self, hidden: Tensor) -> Tensor:
        """Final norm and projection."""
        return F.normalize(self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden)), dim=-1)

    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits [b, c] of features."""
        return self.clip.logit_scale.exp() * images @ texts.t()

    def classify(self, images: Tensor) -> Tensor:
        """Logits [b, c] of image features."""
        return self.compare(images, self.text_features())

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Logits [b, c]."""
        return self.classify(self.image_features(pixel_values))

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a training step; return the logits [b, c]."""
        return learn(self.logits(pixel_values), labels)


class PlainCoOp(PlainCLIP):
    """KaiyangZhou/CoOp `trainers/coop.py`, the name at the end."""

    @property
    def prefix(self) -> str:
        """As many placeholders as context tokens."""
        return " ".join(["X"] * self.trained["text.tokens"].shape[1])

    def text_features(self) -> Tensor:
        """One sequence per class."""
        return self.read_ends(self.encode_texts(self.put_context(self.get("text.tokens")[0])))


class PlainCoCoOp(PlainCLIP):
    """KaiyangZhou/CoOp `trainers/cocoop.py`: the text encoder runs for one image after another."""

    per_image = True

    def classify(self, images: Tensor) -> Tensor:
        """Logits [b, c] of image features."""
        hidden = F.relu(F.linear(images, self.get("text.meta_net.0.weight"), self.get("text.meta_net.0.bias")))
        shifts = F.linear(hidden, self.get("text.meta_net.2.weight"), self.get("text.meta_net.2.bias"))
        rows = []
        for image, shift in zip(images, shifts, strict=True):
            texts = self.read_ends(self.encode_texts(self.put_context(self.get("text.tokens")[0] + shift)))
            rows.append(self.compare(image, texts))
        return torch.stack(rows)


class PlainMaPLe(PlainCLIP):
    """muzairkhattak/multimodal-prompt-learning `trainers/maple.py`; IVLP and VPT where the visual prompts are free."""

    learns_vision = True

    @property
    def num_extra_vision_rows(self) -> int:
        """Prompts of a layer."""
        return self.visual_prompts()[0].shape[0]

    def visual_prompts(self) -> list[Tensor]:
        """One [n, d] for each prompted layer."""
        if "vision.tokens" in self.trained:
            return list(self.get("vision.tokens"))
        maps = zip(self.get("text.tokens"), self.get("vision.weight"), self.get("vision.bias"), strict=False)
        return [F.linear(tokens, weight, bias) for tokens, weight, bias in maps]

    def text_features(self) -> Tensor:
        """Deep prompts in the place of the first words."""
        deep = list(self.get("text.tokens"))
        return self.read_ends(self.encode_texts(self.put_context(deep[0]), deep))

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Deep prompts after the patches."""
        return self.project_image(self.encode_images(pixel_values, self.visual_prompts())[:, 0])


class PlainVPT(PlainMaPLe):
    """muzairkhattak/multimodal-prompt-learning `trainers/vpt.py`: text features are computed once, before training."""

    def __init__(self, *args):
        super().__init__(*args)
        with torch.no_grad():
            self.fixed = PlainCLIP.text_features(self)

    def text_features(self) -> Tensor:
        """The fixed ones."""
        return self.fixed


class PlainRPO(PlainCLIP):
    """mlvlab/RPO `trainers/rpo.py`: read-only prompts and plain tokens in one sequence under a mask."""

    learns_vision = True

    @property
    def num_extra_vision_rows(self) -> int:
        """Read-only prompts."""
        return self.text_prompts()[0].shape[0]

    def text_prompts(self) -> list[Tensor]:
        """One [n, d] for each prompted layer."""
        return list(self.get("text.tokens"))

    def visual_prompts(self) -> list[Tensor]:
        """One [n, d] for each prompted layer."""
        return list(self.get("vision.tokens"))

    def text_features(self) -> Tensor:
        """[c, n, e]."""
        prompts = self.text_prompts()
        places = self.ends[:, None] + 1 + torch.arange(prompts[0].shape[0], device=self.ends.device)
        hidden = self.with_context(self.word_vectors)
        length = hidden.shape[1]
        columns = torch.arange(length, device=self.ends.device)
        visible = (columns <= columns[:, None]) & (columns <= self.ends[:, None, None])
        mask = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(
            ~visible, float("-inf")
        )
        for index, layer in enumerate(self.clip.text_model.encoder.layers):
            if index < len(prompts):
                hidden = hidden.index_put((self.rows[:, None], places), prompts[index].expand(len(hidden), -1, -1))
            hidden = layer(hidden, mask[:, None])
        return self.project_text(hidden[self.rows[:, None], places])

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """[b, n, e]."""
        prompts = self.visual_prompts()
        count = prompts[0].shape[0]
        length = self.clip.vision_model.embeddings.num_positions + count
        mask = torch.zeros(1, 1, length, length, dtype=pixel_values.dtype, device=pixel_values.device)
        mask[..., -count:] = float("-inf")
        return self.project_image(self.encode_images(pixel_values, prompts, mask)[:, -count:])

    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """Mean over the pairs of prompts."""
        scale = self.clip.logit_scale.exp()
        pairs = [scale * images[:, k] @ texts[:, k].t() for k in range(images.shape[1])]
        return torch.stack(pairs).mean(0)


class PlainMRPO(PlainRPO):
    """MRPO, equations 2-7: layers 1 to `depth` each drop the prompts' outputs and insert new ones.

    The prompts of the layers before the last insertion change nothing; they are here because the method has them.
    """

    depth = 9

    def __init__(self, *args):
        super().__init__(*args)
        text, weight, bias = (self.trained[name] for name in ("text.tokens", "vision.weight", "vision.bias"))
        generator = torch.Generator().manual_seed(0)
        shape = (self.depth - 1, *text.shape[1:])
        earlier = torch.randn(shape, generator=generator).mul(0.02).to(text)
        self.earlier = nn.Parameter(earlier)
        self.earlier_weight = nn.Parameter(weight.detach().repeat(self.depth - 1, 1, 1))
        self.earlier_bias = nn.Parameter(bias.detach().repeat(self.depth - 1, 1))

    def text_prompts(self) -> list[Tensor]:
        """Those that are dropped later, then the ones that stay."""
        return [*self.earlier.to(self.word_vectors.dtype), self.get("text.tokens")[0]]

    def visual_prompts(self) -> list[Tensor]:
        """Linear images of the text prompts, one map per layer."""
        weights = torch.cat([self.earlier_weight, self.trained["vision.weight"]]).to(self.word_vectors.dtype)
        biases = torch.cat([self.earlier_bias, self.trained["vision.bias"]]).to(self.word_vectors.dtype)
        return [F.linear(*three) for three in zip(self.text_prompts(), weights, biases, strict=True)]


PLAIN = {
    "coop": PlainCoOp,
    "cocoop": PlainCoCoOp,
    "maple": PlainMaPLe,
    "ivlp": PlainMaPLe,
    "vpt-clip": PlainVPT,
    "rpo": PlainRPO,
    "mrpo": PlainMRPO,
}


class PlainViT:
    """KMnP/vpt `src/models/vit_prompt/vit.py`: prompts between the class token and the patches."""

    def __init__(self, model: ViTForImageClassification, trained: dict[str, Tensor]):
        self.model, self.trained = model, trained

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Logits [b, c] by the trained head."""
        hidden = self.model.vit.embeddings(pixel_values)
        prompts = self.trained["vision.tokens"].to(hidden.dtype)
        count = prompts.shape[1]
        hidden = torch.cat([hidden[:, :1], prompts[0].expand(len(hidden), -1, -1), hidden[:, 1:]], dim=1)
        for index, layer in enumerate(self.model.vit.layers):
            if 0 < index < len(prompts):
                new = prompts[index].expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :1], new, hidden[:, 1 + count :]], dim=1)
            hidden = layer(hidden)
        return self.classify(hidden)

    def step(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a training step; return the logits [b, c]."""
        return learn(self.logits(pixel_values), labels)

    def classify(self, hidden: Tensor) -> Tensor:
        """The class token through the final norm and the head."""
        hidden = self.model.vit.layernorm(hidden)[:, 0]
        head = (self.trained["head.weight"], self.trained["head.bias"])
        return F.linear(hidden, *(tensor.to(hidden.dtype) for tensor in head))

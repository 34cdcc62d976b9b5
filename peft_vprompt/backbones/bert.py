"""BERT and RoBERTa, by themselves and as the text encoders of Chinese-CLIP, ALIGN and AltCLIP; they read in both directions."""

from __future__ import annotations

from torch import Tensor, nn

from .text import PaddedTextView


class ChineseCLIPTextView(PaddedTextView):
    """`ChineseCLIPTextModel`, `AlignTextModel`: the text's feature is the last state of the class token in front."""

    parts = ("word_embeddings", "position_embeddings", "token_type_embeddings", "embeddings.LayerNorm", "encoder")

    @property
    def layers(self) -> nn.ModuleList:
        """`ChineseCLIPTextLayer`s."""
        return self.module.encoder.layer

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the layer's `ChineseCLIPTextSelfAttention`."""
        return layer.attention.self

    @property
    def token_embedding(self) -> nn.Module:
        """`nn.Embedding` over the vocabulary."""
        return self.module.embeddings.word_embeddings

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Take the class token's state out of [c, l, d]: [c, d]."""
        return hidden[:, 0]

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the class token's state [c, d] for ids and mask [c, l]."""
        return self.module(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state[:, 0]


class BertTextView(ChineseCLIPTextView):
    """`BertModel`: the class token's last state goes through the model's pooler, where it has one.

    A config with `text_pooling="mean"` (open_clip's mean pooler) has the mean of the real tokens read.
    """

    parts = (*ChineseCLIPTextView.parts, "pooler")

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Run the pooler on [c, l, d], take the class token's state, or average: [c, d]."""
        if getattr(self.module.config, "text_pooling", None) == "mean":
            kept = mask.to(hidden.dtype).unsqueeze(-1)
            return (hidden * kept).sum(dim=1) / kept.sum(dim=1)
        return hidden[:, 0] if self.module.pooler is None else self.module.pooler(hidden)

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled output [c, d] for ids and mask [c, l]."""
        output = self.module(input_ids=token_ids, attention_mask=mask.long())
        return self.pool(output.last_hidden_state, mask)


class RobertaTextView(BertTextView):
    """`RobertaModel`, `XLMRobertaModel`: as BERT, with positions that are counted from behind the padding's."""

    @property
    def max_positions(self) -> int:
        """Positions left of the padding's."""
        config = self.module.config
        return config.max_position_embeddings - config.pad_token_id - 1


class AltCLIPTextView(PaddedTextView):
    """`AltCLIPTextModel`: an XLM-RoBERTa whose class token goes through a norm and a linear map."""

    parts = ("roberta", "transformation", "pre_LN")

    @property
    def layers(self) -> nn.ModuleList:
        """`AltRobertaLayer`s."""
        return self.module.roberta.encoder.layers

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the layer's `AltRobertaSelfAttention`."""
        return layer.attention.self

    @property
    def token_embedding(self) -> nn.Module:
        """`nn.Embedding` over the vocabulary."""
        return self.module.roberta.embeddings.word_embeddings

    @property
    def max_positions(self) -> int:
        """Positions are counted from behind the padding's."""
        config = self.module.config
        return config.max_position_embeddings - config.pad_token_id - 1

    def embed(self, vectors: Tensor) -> Tensor:
        """Make the first layer's input [c, l, d] from token vectors of the same shape."""
        return self.module.roberta.embeddings(inputs_embeds=vectors)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Normalise and map the class token's state of [c, l, d]: [c, e]."""
        return self.module.transformation(self.module.pre_LN(hidden[:, 0]))

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled output [c, e] for ids and mask [c, l]."""
        return self.module(input_ids=token_ids, attention_mask=mask.long()).pooler_output

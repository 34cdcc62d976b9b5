"""`DualEncoderView`: how a model brings the features of its two towers into one space, and compares them.

Shapes: d = width of a tower, e = size of the joint space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.offloading import computing_device, tensor_of


class DualEncoderView:
    """How `CLIPModel` and those built like it compare images with texts: both features are projected.

    Attributes:
        text, vision: names of the towers.
        no_read_only: why read-only prompts have no place in this model; None where they have.
        no_class_token: why tokens cannot come in behind a first one in late layers of both towers; None where they can.
    """

    text, vision = "text_model", "vision_model"
    no_read_only: str | None = None
    no_class_token: str | None = None

    def __init__(self, module: nn.Module):
        self.module = module

    @property
    def text_projection(self) -> nn.Module:
        """What maps a text's feature into the joint space."""
        return self.module.text_projection

    @property
    def image_projection(self) -> nn.Module:
        """What maps an image's feature into the joint space."""
        return self.module.visual_projection

    @property
    def scale_parameter(self) -> Tensor:
        """What the model learned of its scale."""
        return self.module.logit_scale

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the joint space: that of the scale, which stays a float where weights are quantised."""
        return self.scale_parameter.dtype

    @property
    def device(self) -> torch.device:
        """Where the joint space is: with the scale."""
        return computing_device(self.module, self.scale_parameter)

    @property
    def feature_dim(self) -> int:
        """Size of the joint space."""
        return self.module.config.projection_dim

    @property
    def logit_scale(self) -> Tensor:
        """What similarities are multiplied by, a scalar: the inverse of the softmax's temperature."""
        return tensor_of(self.module, "logit_scale").exp()

    @property
    def bias(self) -> Tensor | None:
        """What is added to scaled similarities, a scalar; None where nothing is."""
        return None

    def project_text(self, pooled: Tensor, normalize: bool = True) -> Tensor:
        """Project text features [..., d] to the joint space, L2-normalised or not: [..., e]."""
        return self._project(self.text_projection, pooled, normalize)

    def project_image(self, pooled: Tensor, normalize: bool = True) -> Tensor:
        """Project image features [..., d] to the joint space, L2-normalised or not: [..., e]."""
        return self._project(self.image_projection, pooled, normalize)

    def _project(self, projection: nn.Module, pooled: Tensor, normalize: bool) -> Tensor:
        # An encoder that is trained is kept in float32, its frozen projection in the precision it was loaded in.
        weight = next((each for each in projection.parameters() if each.is_floating_point()), None)
        projected = projection(pooled if weight is None else pooled.to(weight.dtype)).to(self.dtype)
        return F.normalize(projected, dim=-1) if normalize else projected

    def scaled(self, similarity: Tensor, scale: float | None = None, bias: float | None = None) -> Tensor:
        """Return the logits for similarities of images and classes, of any shape.

        Args:
            similarity: what is scaled.
            scale: the factor; None for the model's own.
            bias: what is added; None for the model's own, if it has one, which stands for the same cosine under any scale.
        """
        logits = (self.logit_scale if scale is None else scale) * similarity
        added = self.bias if bias is None else bias
        if added is not None and bias is None and scale is not None:
            added = added * (scale / self.logit_scale)
        return logits if added is None else logits + added


class BertDualEncoderView(DualEncoderView):
    """Chinese-CLIP and AltCLIP: CLIP's image encoder beside a BERT."""

    no_read_only = (
        "its text encoder reads both ways, and read-only prompts take the place of an end token that has read the "
        "whole text"
    )
    no_class_token = "its text encoder reads both ways and padded, and does not take more tokens in a late layer"


class AnyTwoDualEncoderView(DualEncoderView):
    """`VisionTextDualEncoderModel`: an image encoder and a text encoder of any kind, each with a projection."""

    no_read_only = "it joins encoders of any kind, and read-only prompts are for those of CLIP. Use a CLIPModel"
    no_class_token = "it joins encoders of any kind, and tokens of late layers are for those of CLIP. Use a CLIPModel"


class ResNetCLIPDualEncoderView(DualEncoderView):
    """CLIP with a ResNet, whose attention pool ends in the joint space."""

    @property
    def image_projection(self) -> nn.Module:
        """None of its own: the image tower ends in the joint space."""
        return nn.Identity()


class GroupViTDualEncoderView(DualEncoderView):
    """GroupViT: projections with a BatchNorm inside, which takes features as rows alone."""

    def project_text(self, pooled: Tensor, normalize: bool = True) -> Tensor:
        """Project text features [..., d] to the joint space, L2-normalised or not: [..., e]."""
        return super().project_text(pooled.flatten(0, -2), normalize).unflatten(0, pooled.shape[:-1])

    def project_image(self, pooled: Tensor, normalize: bool = True) -> Tensor:
        """Project image features [..., d] to the joint space, L2-normalised or not: [..., e]."""
        return super().project_image(pooled.flatten(0, -2), normalize).unflatten(0, pooled.shape[:-1])


class AlignDualEncoderView(ResNetCLIPDualEncoderView):
    """ALIGN: an EfficientNet that ends in the joint space, beside a BERT; it learned the temperature itself."""

    @property
    def scale_parameter(self) -> Tensor:
        """The temperature."""
        return self.module.temperature

    @property
    def logit_scale(self) -> Tensor:
        """One over the temperature."""
        return 1 / tensor_of(self.module, "temperature")


class Tipsv2DualEncoderView(AlignDualEncoderView):
    """TIPSv2: the towers' features are the joint space, and logits are divided by a temperature."""

    no_read_only = "its text encoder reads both ways, and a text's feature is the mean of all its tokens"
    no_class_token = BertDualEncoderView.no_class_token

    @property
    def text_projection(self) -> nn.Module:
        """None of its own."""
        return nn.Identity()

    @property
    def feature_dim(self) -> int:
        """Width of both towers."""
        return self.module.config.text_config.hidden_size


class Aimv2DualEncoderView(DualEncoderView):
    """AIMv2: as CLIP, with a scale that is bounded."""

    no_read_only = "its attention modules cannot be told who reads whom"
    no_class_token = "its image encoder has no class token beside which the tokens could be read"

    @property
    def logit_scale(self) -> Tensor:
        """What similarities are multiplied by, a scalar."""
        return tensor_of(self.module, "logit_scale").clamp(0.0, self.module.max_log_logit_scale).exp()


class SiglipDualEncoderView(DualEncoderView):
    """SigLIP: the towers' own heads end in the joint space, and logits have a bias.

    The bias is the same for all classes. It does not change which class wins, nor the softmax over the classes.
    """

    no_read_only = (
        "its text encoder reads both ways, and the features of both towers come from pooling heads, not from tokens "
        "that a prompt could stand beside"
    )
    no_class_token = "its image encoder has no class token beside which the tokens could be read"

    @property
    def text_projection(self) -> nn.Module:
        """None of its own: the text tower ends with it."""
        return nn.Identity()

    @property
    def feature_dim(self) -> int:
        """Size of the text head's output."""
        return self.module.config.text_config.projection_size

    @property
    def bias(self) -> Tensor:
        """SigLIP's learned bias, a scalar."""
        return tensor_of(self.module, "logit_bias")

    @property
    def image_projection(self) -> nn.Module:
        """None of its own: the image tower ends in the joint space."""
        return nn.Identity()

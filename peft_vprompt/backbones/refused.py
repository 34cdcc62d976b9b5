"""Models that look like those that can be prompted and cannot -> why, and what to use. By class name."""

from __future__ import annotations


#: What compares images with texts all the same.
DUAL = "Use a model that gives one vector for each image and each text, such as CLIPModel or SiglipModel"

#: An image encoder of layers that take prompts; for class prompts, what gives one vector for each image is enough.
PLAIN = "Use an image encoder of plain layers, such as ViTModel or Dinov2Model"
POOLED = (
    "For class prompts, pool its output to one vector for each image and join it with CLIP's text encoder "
    "(peft_vprompt.models.OpaqueCLIPModel). For prompts that are tokens: " + PLAIN
)

#: Why there is no place for tokens.
CONVNET = "it is a ConvNet, which has no tokens that a prompt could stand beside"
STAGES = "its stages merge tokens by their places in the image, and a prompt has none"

UNSUPPORTED: dict[str, str] = {
    "ViTMAEForPreTraining": "its decoder rebuilds patches that were dropped at random, and a prompted encoder drops none. "
    "Use its encoder, ViTMAEModel, or load the weights into ViTForImageClassification",
    "TimmWrapperForImageClassification": "timm's network and its head are one module, whose layers are not transformers'. "
    "Use TimmWrapperModel, alone or beside CLIP's text encoder (peft_vprompt.models.OpaqueCLIPModel), or the same network's own class, "
    "such as ViTForImageClassification, Dinov2Model or BeitModel",
    # ---- images and texts ----
    "BlipModel": "no published weights hold its text encoder and its projections, which transformers makes anew at random. "
    + DUAL,
    "BlipForImageTextRetrieval": "it joins each image with each text in one encoder. " + DUAL,
    **dict.fromkeys(
        ("Blip2Model", "Blip2ForImageTextRetrieval"),
        "an image is as many vectors as it has queries, of which the nearest counts. " + DUAL,
    ),
    "FlavaModel": "its call gives no logits of images and texts, and its text encoder takes no vectors in the place of words. "
    + DUAL,
    **dict.fromkeys(
        ("BridgeTowerModel", "BridgeTowerForContrastiveLearning", "ViltModel", "ViltForImageAndTextRetrieval"),
        "image and text read each other, so there are no features of a text alone. " + DUAL,
    ),
    "XCLIPModel": "its images are videos, and each video changes the features of the texts. " + DUAL,
    **dict.fromkeys(("VideoPrismClipModel", "PeVideoModel", "PeAudioVideoModel"), "its images are videos. " + DUAL),
    **dict.fromkeys(("ClapModel", "ClvpModelForConditionalGeneration", "PeAudioModel"), "it has no images. " + DUAL),
    **dict.fromkeys(
        ("Sam3Model", "Sam3LiteTextModel"),
        "its texts ask for masks, and there is no feature of a whole image. " + DUAL,
    ),
    # ---- images ----
    **dict.fromkeys(
        (
            "HieraModel",
            "HieraForImageClassification",
            "CvtModel",
            "CvtForImageClassification",
            "DinatModel",
            "DinatForImageClassification",
            "DonutSwinModel",
            "DonutSwinForImageClassification",
            "FocalNetModel",
            "FocalNetForImageClassification",
            "LevitModel",
            "LevitForImageClassification",
            "LevitForImageClassificationWithTeacher",
            "MobileViTModel",
            "MobileViTForImageClassification",
            "MobileViTV2Model",
            "MobileViTV2ForImageClassification",
            "PoolFormerModel",
            "PoolFormerForImageClassification",
            "PvtModel",
            "PvtForImageClassification",
            "PvtV2Model",
            "PvtV2ForImageClassification",
            "SegformerModel",
            "SegformerForImageClassification",
            "SwiftFormerModel",
            "SwiftFormerForImageClassification",
        ),
        f"{STAGES}. {POOLED}, or SwinModel",
    ),
    **dict.fromkeys(
        (
            "BitModel",
            "BitForImageClassification",
            "EfficientNetModel",
            "EfficientNetForImageClassification",
            "HGNetV2ForImageClassification",
            "MobileNetV1Model",
            "MobileNetV1ForImageClassification",
            "MobileNetV2Model",
            "MobileNetV2ForImageClassification",
            "PPLCNetForImageClassification",
            "RegNetModel",
            "RegNetForImageClassification",
            "ResNetModel",
            "ResNetForImageClassification",
            "TextNetModel",
            "TextNetForImageClassification",
        ),
        f"{CONVNET}. {POOLED}; for prompts that are pixels, ConvNextModel",
    ),
    **dict.fromkeys(
        (
            "PerceiverForImageClassificationLearned",
            "PerceiverForImageClassificationFourier",
            "PerceiverForImageClassificationConvProcessing",
        ),
        "its layers carry latent vectors, not patches. " + PLAIN,
    ),
    **dict.fromkeys(
        ("ImageGPTModel", "ImageGPTForImageClassification"), "it reads pixels one after another, as words. " + PLAIN
    ),
    "ShieldGemma2ForImageClassification": "it is a language model that answers yes or no. " + PLAIN,
    **dict.fromkeys(
        ("SamModel", "Sam2Model", "SamHQModel", "VitDetModel", "YolosModel"),
        "its tokens are a grid in which every row and column counts, and no feature of a whole image is read. "
        + PLAIN,
    ),
    **dict.fromkeys(
        ("VideoMAEModel", "VivitModel", "TimesformerModel", "VJEPA2Model", "VideoPrismVisionModel"),
        "its images are videos. " + PLAIN,
    ),
}

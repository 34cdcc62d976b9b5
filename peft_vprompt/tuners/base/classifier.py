"""`ClassNameClassifier`: images against class names, above any tuner.

The half of a PEFT model that users call: class lists, features of images and classes, logits and loss. It asks the method
of the active adapter where methods differ, and works above PEFT's own tuners too (a LoRA of both towers, say), whose class
prompts are the template's.

Shapes: b = images, c = classes, e = size of the joint space, k = read-only prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput

from ...backbones.supported import class_name
from ...errors import OutputNotFiniteError
from ...losses.multi_label import BinaryCrossEntropy
from ...losses.regularizers import Features, FrozenFeatures, weighted_terms
from ...utils.name_keys import all_known
from .adapted_model import AdaptedModel
from .adapter_names import check_names
from .class_encoder import ClassEncoder
from .class_list import ClassList
from .classes_in_use import ClassesInUse, ClassMemory
from .image_encoder import ImageEncoder
from .input_checks import check_features, check_inputs, check_unit_length
from .method import FrozenText, PromptMethod
from .prompted_encoder import READOUT
from .switching import answering_for
from .tuned_module import full_precision


if TYPE_CHECKING:
    from peft import PeftModel


_SIGMOID_LOSS = BinaryCrossEntropy()


@dataclass
class ClassificationOutput(ImageClassifierOutput):
    """What the classification call gives.

    Attributes:
        loss: mean cross-entropy, or the sigmoid loss where images have several labels, plus `aux_loss`; with labels alone.
        logits: [b, c].
        aux_loss: weighted sum of the method's further terms; in training, where it has some.
        aux_losses: the same terms one by one, by name.
    """

    aux_loss: Tensor | None = None
    aux_losses: dict[str, Tensor] | None = None


def text_classifier(model: PeftModel) -> ClassNameClassifier | None:
    """Return what classifies by class names in a PEFT model; None where its base model has no text tower."""
    classifier = getattr(model, "class_name_classifier", None)
    return None if classifier is None or classifier.adapted.backbone.dual is None else classifier


class ClassNameClassifier:
    """Classifies images by class names with the active adapter of a PEFT model.

    Args:
        model: the PEFT model.
        memory: what to keep between calls; default: nothing yet.
    """

    def __init__(self, model: PeftModel, memory: ClassMemory | None = None):
        self.model = model
        self.memory = memory or ClassMemory()
        self.adapted = AdaptedModel(model)
        self.in_use = ClassesInUse(self.adapted, self.memory)
        self.images = ImageEncoder(self.adapted)
        self.texts = ClassEncoder(self.adapted, self.memory.features, self.memory.frozen)

    # ---- classes ----------------------------------------------------------------------------------------------

    def add_adapter(self, adapter_name: str) -> None:
        """Take up a new adapter: its class names, and first values that take the model to compute."""
        config = self.adapted.config_of(adapter_name)
        self.in_use.take(adapter_name)
        if self.adapted.text is None or config.inference_mode:
            return
        readout = self.adapted.text.module_of(adapter_name, READOUT)
        if readout is not None and not any(parameter.is_meta for parameter in readout.parameters()):
            method = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].method
            with torch.no_grad():
                method.initialize(config, readout, self.frozen_text_of(adapter_name))

    def frozen_text_of(self, adapter_name: str) -> FrozenText:
        """Return what gives the frozen model's features of an adapter's own classes, where it belongs to some."""
        classes: Any = self.memory.class_lists[adapter_name]
        if classes is not None and classes.rows is not None:
            classes = ClassList(list(self.adapted.config_of(adapter_name).own_classes))
        return FrozenText(
            normalized=lambda: self.texts.encode_frozen(classes, adapter_name),
            projected=lambda verbatim: self.texts.projected_frozen(classes, adapter_name, verbatim),
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter's classes."""
        self.in_use.forget(adapter_name)
        self.adapted.forget(adapter_name)

    def compare(self, names: Sequence[str], **inputs) -> ClassificationOutput:
        """Classify images by other names than the adapter's classes, which stay what they are; calls by other threads wait.

        Args:
            names: one name for each class.
            inputs: keyword arguments of `classify`.
        """
        with self.adapted.lock.change(), self.in_use.replaced_by(names):
            return self.classify(**inputs)

    def start_class_head(self) -> None:
        """Begin the second stage of the active adapter: a vector for each class is learned, and nothing else.

        Raises:
            OutputNotFiniteError: the first stage diverged.
            ValueError: the adapter does not learn in two stages, is in the second one, or is disabled.
        """
        adapted = self.adapted
        config: Any = adapted.config
        if not adapted.method.has_second_stage:
            raise ValueError(
                "Expected an adapter that learns in two stages. Received: "
                f"{type(config).__name__}. Use TwoStageConfig, or ClassHeadConfig for a head alone."
            )
        if adapted.method.in_second_stage(config) or adapted.disabled:
            what = "is disabled" if adapted.disabled else "is in its second stage already"
            raise ValueError(
                f"Expected an active adapter in its first stage. Received {adapted.adapter_name!r}, which {what}."
            )
        classes = self.classes
        with torch.no_grad():
            features = self.texts.encode(classes, None)
            if not bool(features.isfinite().all()):
                raise OutputNotFiniteError(
                    "Expected finite class features to start the head from. Received NaN or infinity: the first stage diverged. "
                    "Train it with a lower learning rate."
                )
            config.head_classes = list(classes.names)
            readout = adapted.method.readout(config, self.texts.text.view, features.shape[-1])
            readout.get_parameter("weight").copy_(features)
            readout.to(full_precision(features.dtype))  # as PEFT has what is trained beside a base in half precision
        tuner: Any = adapted.tuner
        tuner.put_readout(adapted.adapter_name, readout)
        self.in_use.save_names()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in use by the active adapter."""
        return self.in_use.names

    @property
    def classes(self) -> ClassList:
        """The active adapter's classes, tokenised.

        Raises:
            ClassNamesError: there are none yet.
        """
        return self.in_use.tokenised

    # ---- the call ---------------------------------------------------------------------------------------------

    def classify(
        self,
        labels: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        output_aux_loss: bool | None = None,
        **options,
    ) -> ClassificationOutput:
        """Return logits [b, c] over the class names, and the loss where there are labels.

        Args:
            labels: integers [b] (-100: not counted; the loss is zero where none is) or probabilities [b, c]; with
                `problem_type="multi_label_classification"` 1 or 0 for each class [b, c] (-100: not counted).
            pixel_values: images, as the image encoder takes them.
            image_features: L2-normalised image features [b, e] in their place, where no visual prompt is learned.
            output_aux_loss: compute the method's further terms; default: in training.
            options: further arguments of the image encoder.

        Raises:
            ValueError: images of another shape than the encoder takes, or none; labels of another shape; several
                classes for an image (rows that are no probabilities); images with NaN, labels out of range (checked
                where the tensors are on the CPU).
            UnsupportedModelError: image features, where they depend on what is trained.
            TypeError: arguments that the image encoder does not take.
        """
        classes = self.classes
        wants_terms = self.model.training if output_aux_loss is None else output_aux_loss
        of_labels: dict = {"num_classes": len(classes.names), "multi_label": self.adapted.multi_label}
        if image_features is None:
            self.images.check(pixel_values, options)
            # pyrefly: ignore[bad-argument-type]  # images, or they were refused
            check_inputs(pixel_values, labels, **of_labels)
            inputs = {"pixel_values": pixel_values, **options}
            details: dict = {}
            vision = self.adapted.vision
            if vision.has_second_feature:
                # pyrefly: ignore[bad-argument-type]  # likewise
                image = self.images.two_features(pixel_values, options, details if wants_terms else None)
            else:
                # pyrefly: ignore[bad-argument-type]  # likewise
                image = self.images.feature(pixel_values, options)
        else:
            self.images.require_fixed()
            if options:
                raise TypeError(
                    f"A call with image_features got unexpected keyword arguments: {', '.join(options)}. They are for the "
                    "image encoder, which does not run. Leave them out, or give pixel_values."
                )
            check_features(image_features, self.adapted.dual.feature_dim)
            check_inputs(image_features, labels, name="image_features", **of_labels)
            check_unit_length(image_features)
            inputs, details = None, {}
            image = image_features.to(self.adapted.dual.dtype)
        text = self.texts.encode(classes, image)
        frozen = self.frozen_features(image, inputs)
        logits = self.scaled_by_method(self._similarities(image, text))
        added = self._method.added_logits(self.adapted.config, self.adapted.readout, image)
        logits = logits if added is None else logits + classes.pick(added, dim=1)
        features = Features(
            image, text, logits, frozen, self.adapted.multi_label, readout=self.adapted.readout, **details
        )
        return self._output(features, labels, wants_terms)

    @property
    def _method(self) -> PromptMethod:
        """Method of what answers: the active adapter's, or the plain one where it is disabled."""
        return PromptMethod() if self.adapted.disabled else self.adapted.method

    def _similarities(self, image: Tensor, text: Tensor) -> Tensor:
        config = self.adapted.config
        trained = lambda: all_known(self.in_use.known.names, config.class_names or [])  # noqa: E731 - few methods ask
        # They differ where weights are: FSDP casts all of them, or those of some modules alone.
        precise = torch.promote_types(image.dtype, text.dtype)
        return self._method.similarities(config, self.adapted.readout, image.to(precise), text.to(precise), trained)

    def scaled_by_method(self, similarities: Tensor) -> Tensor:
        """Return the logits of similarities of any shape, by the method's scale, or by the model's own where it has none."""
        return self.scaled(similarities, self._method.scale(self.adapted.config))

    def _output(self, features: Features, labels: Tensor | None, wants_terms: bool) -> ClassificationOutput:
        """Return logits and loss; remember the classes that are learned on."""
        logits = features.logits
        training = self.model.training
        if training and logits.requires_grad and self.class_names != self.adapted.config.class_names:
            self.in_use.save_names()
        if training and logits.requires_grad:
            logits = self._guided(features)
        terms: dict[str, Tensor] = {}
        if wants_terms and not self.adapted.disabled:
            terms = weighted_terms(self.adapted.method.regularizers(self.adapted.config), features)
        aux_loss: Any = sum(terms.values()) if terms else None
        loss = None
        if labels is not None:
            loss = self._classification_loss(replace(features, logits=logits), labels)
            loss = loss if aux_loss is None else loss + aux_loss
        return ClassificationOutput(loss=loss, logits=logits, aux_loss=aux_loss, aux_losses=terms or None)

    def _guided(self, features: Features) -> Tensor:
        """Return the logits, whose backward pass the method may change.

        Raises:
            ValueError: it does, and this is one of `DataParallel`'s copies, whose parameters are none of the model's.
        """
        if getattr(self.model, "_is_replica", False) and type(self._method).guide is not PromptMethod.guide:
            raise ValueError(
                f"{type(self.adapted.config).__name__} changes the gradients of the model's parameters, which copies of "
                "torch.nn.DataParallel do not have. Start a process for each card (torchrun --nproc_per_node 2 train.py), or "
                "show one card alone (CUDA_VISIBLE_DEVICES=0)."
            )
        trained = (p for p in self.model.parameters() if p.requires_grad)
        return self._method.guide(self.adapted.config, features, trained)

    def _classification_loss(self, features: Features, labels: Tensor) -> Tensor:
        """Return the method's loss or the sigmoid loss; of several predictions the mean by their shares."""
        config = self.adapted.config
        total: Any = 0.0
        for share, logits in self._method.predictions(config, features, self.scaled_by_method):
            if features.multi_label:
                loss = _SIGMOID_LOSS(logits, labels)
            else:
                at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
                targets = labels.to(at_least_float32.dtype) if labels.is_floating_point() else labels
                loss = self._method.loss(config, at_least_float32, targets)
            total = loss if share == 1 else total + share * loss
        return total

    # ---- many adapters ----------------------------------------------------------------------------------------

    def classify_with_adapters(
        self, pixel_values: Tensor, adapter_names: Sequence[str], **options
    ) -> dict[str, ClassificationOutput]:
        """Return the logits of several read-only adapters on the same images [b, channels, h, w], by adapter.

        Raises:
            ValueError: no adapter, one that is not there or whose prompts other tokens read; or all are disabled.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(check_names(adapter_names)))
        self._check_read_only(names)
        self.images.check(pixel_values, options)
        check_inputs(pixel_values)
        results = {}
        with self.adapted.lock.change(), answering_for(self.adapted.tuner) as answer_for:
            encoded = self.adapted.vision.encode_read_only(pixel_values, names, **options)
            for name, read in zip(names, encoded, strict=True):
                answer_for(name)
                image = self.adapted.dual.project_image(read)
                text = self.texts.encode(self.classes, image)
                results[name] = ClassificationOutput(logits=self.scaled(self.adapted.readout(image, text)))
        return results

    def _check_read_only(self, names: Sequence[str]) -> None:
        if self.adapted.vision.disable_adapters:
            raise ValueError("The adapters are disabled. Enable them, or call model(pixel_values=...) for zero-shot.")
        if self.adapted.text is None:
            raise ValueError(
                "Expected a base model that compares images with class names. Received: "
                f"{class_name(self.adapted.tuner.model)}, whose adapters have heads of their own. Use set_adapter, one by one."
            )
        prompts = {name: self.adapted.vision.prompts_of(name) for name in self.model.peft_config}
        able = [name for name, module in prompts.items() if module is not None and module.read_only]
        refused = [name for name in names if name not in able]
        if refused or not names:
            raise ValueError(
                f"Expected names of read-only adapters (RPO, MRPO), which share one pass: {able}. "
                f"Received: adapter_names={refused}. Use set_adapter for others, one by one."
            )

    # ---- texts ------------------------------------------------------------------------------------------------

    def encode_classes(self, pixel_values: Tensor | None = None) -> Tensor:
        """Return the L2-normalised text features of the active adapter's classes, a copy of what is kept.

        Shapes: [c, e]; [c, k, e] for read-only prompts; [b, c, e] where they depend on the images.

        Raises:
            ValueError: the features depend on images, and there are none.
        """
        self.adapted.dual  # noqa: B018 - raises where classes have no meaning
        with self.adapted.lock.call():
            if not self.texts.conditional:
                return self.texts.encode(self.classes, None).clone()
            if pixel_values is None:
                raise ValueError(
                    "This adapter's class features depend on the image. Pass encode_classes(pixel_values)."
                )
            return self.texts.encode(self.classes, self.images.encode(pixel_values))

    # ---- the frozen model -------------------------------------------------------------------------------------

    def frozen_text(self) -> Tensor:
        """Return the frozen model's features [c, e] of the active adapter's classes, without gradients."""
        return self.texts.encode_frozen(self.in_use.known, self.adapted.adapter_name)

    def frozen_features(self, image: Tensor, inputs: dict | None) -> FrozenFeatures:
        """Return what the frozen model says of the active adapter's classes and of images.

        Args:
            image: features of the images with the adapters as they are; they serve where no adapter changes them.
            inputs: keyword arguments of `encode_images` for the same images; None where `image` was given as frozen.
        """

        def frozen_image() -> Tensor:
            if inputs is None or not self.adapted.changes_images:
                return image.detach()
            return self.images.frozen(**inputs)

        return FrozenFeatures(self.frozen_text, frozen_image, self.scaled_by_method)

    def scaled(self, similarities: Tensor, scale: float | None = None) -> Tensor:
        """Return the logits [b, c] of cosines [b, c], by a scale or the model's own, with its own bias or the config's."""
        return self.adapted.dual.scaled(similarities, scale, self.adapted.config.logit_bias)

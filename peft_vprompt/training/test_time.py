"""Test-time tuning (TPT): each test image tunes the context by its own views, without a label.

Paper: Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022.
Authors' code: azshue/TPT `tpt_classification.py`. They take one image after another; here many images are tuned together,
each with a context and an optimizer state of its own, to the same numbers: the first step of all of them reads the same
texts, which are encoded once. A trained CoOp context is what tuning starts from. Of CoCoOp it is the context that the Meta-Net
makes of the plain view; that context is tuned, the Meta-Net is not.

Deviations: no loss scaling, which the authors need for float16; CoCoOp's Meta-Net reads the L2-normalised feature, as it was
trained to, where `gen_ctx` in the authors' `clip/cocoop.py` gives it the one that is not.

Shapes: b = images, v = views of an image, c = classes, m = context vectors, d = width of the text tower, e = size of the
joint space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UnsupportedModelError
from ..prompts.base import PromptModule
from ..prompts.meta_net import ConditionalContext
from ..prompts.tokens import ClassContexts, ClassNameTokens, TokenPrompts
from ..readouts import CosineReadout
from ..tuners.base.classifier import ClassNameClassifier
from ..utils.arguments import typed
from ..utils.devices import device_of
from ..utils.eval_mode import eval_mode
from ..utils.fields import check_fields
from ..utils.processes import ALONE, Processes
from ..utils.progress import with_progress
from .evaluation import EvalSet, batches, set_class_names, with_harmonic_mean


#: Prompt modules whose vectors all stand in the texts: those that depend on nothing, and CoCoOp's, of the image.
TUNABLE = (TokenPrompts, ClassContexts, ClassNameTokens, ConditionalContext)


@dataclass(frozen=True)
class TestTimeTuning:
    """How the context of each image is tuned; the authors' values by default.

    Attributes:
        confident: share of the views that the loss is taken of, those of least entropy; of 64 views 6 with 0.1.
        steps: steps of AdamW.
        learning_rate: of AdamW.
        weight_decay: of AdamW.

    Raises:
        ValueError: a value of another type, or out of range; names the field.
    """

    __test__ = False  # pytest takes it for a test by its name

    confident: float = field(default=0.1, metadata={"above": 0, "max": 1})
    steps: int = field(default=1, metadata={"min": 1})
    learning_rate: float = field(default=5e-3, metadata={"min": 0})
    weight_decay: float = field(default=0.01, metadata={"min": 0})

    def __post_init__(self):
        check_fields(self)

    def kept(self, views: int) -> int:
        """Return how many of an image's views the loss is taken of, rounded down as the authors do.

        Raises:
            ValueError: none.
        """
        kept = int(views * self.confident)
        if not kept:
            raise ValueError(
                f"Expected at least one confident view. Received: {views} views and confident={self.confident}, which is "
                f"less than one. Use at least {math.ceil(1 / self.confident)} views, or a larger share."
            )
        return kept


@dataclass(frozen=True)
class TunedOutput:
    """What tuning gave for each image.

    Attributes:
        logits: [b, c] of the plain view with the tuned context: the prediction.
        view_logits: [b, v, c] of all views with the context that tuning starts from.
        loss: [b, steps] entropy of the mean probability over the confident views, before each step.
        selected: [b, k] the confident views.
        gradients: [b, m, d] of the first step.
        contexts: [b, m, d] after tuning.
    """

    logits: Tensor
    view_logits: Tensor
    loss: Tensor
    selected: Tensor
    gradients: Tensor
    contexts: Tensor


@typed
def tune_on_views(
    model: PeftModel, pixel_values: Tensor, tuning: TestTimeTuning | None = None, batch_size: int = 64
) -> TunedOutput:
    """Classify images, each with a context that is tuned on its own views; the model stays as it is.

    Args:
        model: a PEFT model of this package whose active adapter learns a context on the text tower's first layer, from words
            or trained (CoOp, CoCoOp, KgCoOp, ProGrad, ...), with class names.
        pixel_values: [b, v, 3, height, width], the plain view first, as `data.ViewTransform` makes them.
        tuning: how; default: as the authors.
        batch_size: views per pass of the image encoder.

    Raises:
        UnsupportedModelError: the active adapter has no such context.
        ValueError: images of another shape, or too few views.

    Example:

    ```python
    config = ContextOptConfig(class_names=["cat", "dog"], prompt_init="text", prompt_init_text="a photo of a")
    model = get_peft_model(clip, config)
    views = ViewTransform(image_processor)({"image": [photo]})["pixel_values"]
    tune_on_views(model, views).logits  # [1, 2]
    ```
    """
    if pixel_values.ndim != 5:
        raise ValueError(
            "Expected views of images, [images, views, 3, height, width]. Received: pixel_values of shape "
            f"{list(pixel_values.shape)}. Make them by data.ViewTransform."
        )
    require_context(model)
    with eval_mode(model), torch.no_grad():
        parts = pixel_values.flatten(0, 1).split(batch_size)
        features = torch.cat([model.encode_images(part) for part in parts]).unflatten(0, pixel_values.shape[:2])
    return tune_on_features(model, features, tuning)


@typed
def tune_on_features(model: PeftModel, image_features: Tensor, tuning: TestTimeTuning | None = None) -> TunedOutput:
    """Do what `tune_on_views` does with the L2-normalised features [b, v, e] of the views.

    Raises:
        UnsupportedModelError: the active adapter has no context on the text tower's first layer alone.
        ValueError: too few views.
    """
    tuning = tuning or TestTimeTuning()
    kept = tuning.kept(image_features.shape[1])
    prompts = require_context(model)
    classifier = model.class_name_classifier
    # Tensors made under inference mode could not be used in the backward pass.
    with eval_mode(model), classifier.adapted.lock.call(), torch.inference_mode(False), torch.enable_grad():
        features = image_features.detach().clone()
        tuner = _Tuner(classifier, prompts, tuning, kept)
        outputs = [tuner.tune(group) for group in features.split(max(1, tuner.images_at_once))]
    parts = {field.name: torch.cat([getattr(each, field.name) for each in outputs]) for field in fields(TunedOutput)}
    return TunedOutput(**parts)


class _Tuner:
    """Tunes contexts, of as many images as fit into memory at a time.

    Args:
        classifier: of the model.
        prompts: the active adapter's, which the contexts are at first.
        tuning: how.
        kept: number of confident views.
    """

    def __init__(self, classifier: ClassNameClassifier, prompts: PromptModule, tuning: TestTimeTuning, kept: int):
        self.classifier = classifier
        self.prompts = prompts
        self.tuning = tuning
        self.kept = kept
        self.classes = classifier.classes
        self.images_at_once = classifier.texts.images_at_once(self.classes)
        self.first_text = None
        if not isinstance(prompts, ConditionalContext) and self.images_at_once:
            # The first step of all images reads the same texts. Plain attention, for all of it can run backward in a batch.
            self.start = prompts().detach().clone().requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):
                self.first_text = self.encode(self.start)

    def encode(self, contexts: Tensor) -> Tensor:
        """Return the class features [b, c, e] of contexts [b, m, d]."""
        return self.classifier.texts.encode_with_contexts(self.classes, contexts)

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Return the logits [b, v, c] of views [b, v, e] by each image's class features, in float32 at least."""
        logits = self.classifier.scaled(features.to(text.dtype) @ text.transpose(1, 2))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def first_contexts(self, features: Tensor) -> Tensor:
        """Return what the contexts [b, m, d] of images are at first; it depends on the plain view, or on nothing."""
        (contexts,) = self.prompts(image_features=features[:, 0])
        return contexts.expand(len(features), -1, -1).clone()

    def tune(self, features: Tensor) -> TunedOutput:
        """Tune the contexts of images with the features [b, v, e] of their views."""
        contexts = self.first_contexts(features).requires_grad_()
        optimizer = torch.optim.AdamW([contexts], self.tuning.learning_rate, weight_decay=self.tuning.weight_decay)
        losses, gradients = [], []
        view_logits: Any = None
        selected: Any = None
        for _ in range(self.tuning.steps):
            shared = self.first_text if selected is None else None
            text = self.encode(contexts) if shared is None else shared.detach().repeat(len(features), 1, 1)
            logits = self.logits(features, text.requires_grad_())
            if selected is None:
                view_logits = logits.detach()
                selected = entropy(view_logits).argsort(dim=1)[:, : self.kept]
            loss = mean_entropy(logits.take_along_dim(selected[..., None], dim=1))
            # Each image's loss depends on its own context alone, and AdamW goes number by number.
            (gradient,) = torch.autograd.grad(loss.sum(), [contexts if shared is None else text])
            contexts.grad = gradient if shared is None else self.pull_back(shared, gradient)
            losses.append(loss.detach())
            gradients.append(contexts.grad)
            optimizer.step()
        with torch.no_grad():
            logits = self.logits(features[:, :1], self.encode(contexts))
        return TunedOutput(
            logits[:, 0], view_logits, torch.stack(losses, dim=1), selected, gradients[0], contexts.detach()
        )

    def pull_back(self, text: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradients [b, m, d] at the first context of what has gradients [b, c, e] at its features `text`."""
        rows = gradient[:, None]
        (result,) = torch.autograd.grad(text, [self.start], rows, retain_graph=True, is_grads_batched=True)
        return result[:, 0]


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each prediction, of logits [..., c]."""
    log = logits.log_softmax(-1)
    return -(log.exp() * log).sum(-1)


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the entropy [b] of the mean probabilities over k views, of logits [b, k, c]."""
    log = logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])
    log = log.clamp(min=torch.finfo(log.dtype).min)
    return -(log.exp() * log).sum(-1)


def require_context(model) -> PromptModule:
    """Return the prompts that tuning starts from: the active adapter's, whose context stands in the first text layer alone.

    Raises:
        UnsupportedModelError: the prompts of the active adapter are others, or none; names what can be tuned.
    """
    classifier = model.class_name_classifier
    adapted = classifier.adapted
    adapted.dual  # noqa: B018 - raises where there are no texts
    prompts = adapted.text.active_prompts
    tunable = isinstance(prompts, TUNABLE) and not prompts.read_only and not prompts.first_layer
    shallow = tunable and (isinstance(prompts, ConditionalContext) or len(prompts()) == 1)
    if not shallow or not isinstance(adapted.readout, CosineReadout):
        raise UnsupportedModelError(
            "Test-time tuning changes a context that stands in the texts of the first layer alone, as CoOp's does. Received "
            f"an adapter ({getattr(adapted.config.peft_type, 'value', 'of another tuner')}) "
            f"{'that is disabled' if adapted.disabled else 'with other prompts'}. Take a CoOp adapter, or "
            'ContextOptConfig(prompt_init="text", prompt_init_text="a photo of a").'
        )
    return prompts


@typed
def evaluate_at_test_time(
    model: PeftModel,
    test_sets: Mapping[str, EvalSet],
    tuning: TestTimeTuning | None = None,
    batch_size: int = 8,
    *,
    progress: str | None = None,
    processes: Processes = ALONE,
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the accuracy with test-time tuning, and that of the same context without it.

    Args:
        model: as for `tune_on_views`; its class names are those of the last test set afterwards.
        test_sets: by name, with the views of each image as `pixel_values`; `base` and `novel` together also give `hm`.
        tuning: how; default: as the authors.
        batch_size: images per batch; the result does not depend on it.
        progress: label of a progress bar; None for no bar.
        processes: share the batches with these, which all make the same call.

    Returns:
        Accuracies in percent by the name of the test set, tuned and untuned, both of the plain view.

    Raises:
        UnsupportedModelError, ValueError: as `tune_on_views`; no image.
    """
    require_context(model)
    device = device_of(model)
    tuned, untuned = {}, {}
    for name, test_set in test_sets.items():
        if not len(test_set.rows):
            raise ValueError("No image to evaluate on.")
        set_class_names(model, test_set.class_names)
        right = []
        for batch in with_progress(batches(test_set.rows, batch_size, processes), progress):
            output = tune_on_views(model, batch["pixel_values"].to(device), tuning)
            both = torch.stack([output.logits, output.view_logits[:, 0]]).argmax(-1).cpu()
            right.append((both == batch["labels"]).numpy())
        shares = np.concatenate(processes.gather(right), axis=1).mean(axis=1)
        tuned[name], untuned[name] = (100 * float(share) for share in shares)
    return with_harmonic_mean(tuned), with_harmonic_mean(untuned)

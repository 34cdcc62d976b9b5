"""`Classifier`: images in, labels and their probabilities out, with a trained adapter as its training left it.

Shapes: b = images, c = classes, e = size of a feature.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.class_descriptions import read_descriptions
from ..data.images import read_rgb, to_rgb
from ..errors import ClassNamesError
from ..experiments.models import ModelBundle, build_model
from ..experiments.trained import SavedAdapter
from ..losses.label_checks import MULTI_LABEL
from ..training.evaluation import require_finite, set_class_names
from ..tuners.base.classifier import text_classifier
from ..tuners.base.classifier_parts import ClassifierParts
from ..utils.devices import device_of, find_device
from ..utils.eval_mode import eval_mode
from ..utils.precision import Precision, find_precision
from ..utils.validation import require_int, shorten


#: What stands for one image: Pillow's, its file, or what the image processor makes of it, [3, height, width].
ImageLike = Image.Image | str | os.PathLike | Tensor


class Prediction(NamedTuple):
    """One of the labels of an image.

    Attributes:
        label: name of the class.
        probability: among all classes (softmax), or of this class alone where images are of several (sigmoid).
    """

    label: str
    probability: float


class Classifier:
    """Classifies images with a trained adapter. Made by `from_pretrained`.

    Args:
        bundle: the model, on the device to compute on, and its image processor.
        class_names: the classes to tell apart, in the order of the logits.
        precision: what the bundle's model was loaded in.

    Example:

    ```python
    classifier = Classifier.from_pretrained("runs/maple")
    classifier("photo.jpg", top_k=2)  # [Prediction("tabby cat", 0.91), Prediction("tiger cat", 0.06)]
    classifier.set_class_names(["fox", "wolf"])
    classifier.embed(["a.jpg", "b.jpg"])  # [2, e]
    ```
    """

    def __init__(
        self,
        bundle: ModelBundle,
        class_names: Sequence[str],
        precision: Precision = "float32",
        background: str = "white",
    ):
        self.bundle = bundle
        self.precision = precision
        self.background = background
        self.class_names: list[str] = []
        bundle.model.eval()
        self.set_class_names(class_names)

    @classmethod
    def from_pretrained(
        cls,
        adapter: str | os.PathLike,
        model: str | None = None,
        *,
        revision: str | None = None,
        class_names: Sequence[str] | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = "auto",
        precision: str = "auto",
    ) -> Classifier:
        """Load an adapter on its base model, with image size, preprocessing and background of its training.

        Args:
            adapter: folder or Hub id.
            model: folder or Hub id of the base model; default: the one that the adapter names.
            revision: the adapter's, on the Hub.
            class_names: classes to tell apart; default: all that the adapter knows.
            image_size: edge of the images in pixels; default: that of the training.
            device: such as "cpu" or "cuda:1"; "auto" for a graphics card if there is one.
            precision: what frozen weights are held in: float32, bf16 or fp16; "auto" for bf16 where the device computes in
                it.

        Raises:
            OSError: there is no such adapter or base model.
            AdapterMismatchError: the adapter does not fit the base model.
            ClassNamesError: nothing says the classes, or they are not those that something was learned for.
            ValueError: no such device or precision, or an image size that the model cannot take.
        """
        place = os.fspath(adapter) if revision is None else f"{os.fspath(adapter)}@{revision}"
        options: Any = {"image_size": image_size, "device": device, "precision": precision}
        return cls.of(SavedAdapter.find(place), model, class_names, **options)

    @classmethod
    def of(
        cls,
        saved: SavedAdapter,
        model: str | None = None,
        class_names: Sequence[str] | None = None,
        *,
        image_size: int | None = None,
        device: str | torch.device | None = "auto",
        precision: str = "auto",
        class_descriptions: str | os.PathLike | None = None,
    ) -> Classifier:
        """Load an adapter that was found; arguments and errors are those of `from_pretrained`.

        `class_descriptions` is a JSON file of sentences by class, beside those that the adapter was saved with.

        Raises:
            OSError, AdapterMismatchError, ClassNamesError, ValueError: as there.
        """
        place = device if isinstance(device, torch.device) else find_device(device)
        found = find_precision(precision, place)
        options: Any = {"image_size": image_size, "device": place, "precision": found}
        options |= {"class_descriptions": class_descriptions}
        bundle = saved.load_as_trained(model, class_names=class_names, **options)
        names = class_names or saved.classes_of(bundle.model)
        if not names:
            raise ClassNamesError(
                f"Nothing says which classes the adapter {saved.adapter!r} is for. Give class_names (--class-names)."
            )
        return cls(bundle, names, found, saved.background)

    @classmethod
    def zero_shot(
        cls,
        model: str | None,
        class_names: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        class_descriptions: str | os.PathLike | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = "auto",
        precision: str = "auto",
    ) -> Classifier:
        """Make a classifier of a base model as it is, without an adapter.

        Args:
            model: folder or Hub id of a model that compares images with texts; None for the embedded one.
            class_names: classes to tell apart.
            template: text around their names, or several whose features are averaged; default: "a photo of a {}.".
            class_descriptions: JSON file of sentences by class, which stand for templates.
            image_size: as for `from_pretrained`.
            device: likewise.
            precision: likewise.

        Raises:
            OSError: there is no such model.
            ValueError: the model reads no texts, a malformed template, or no such device or precision.
        """
        place = device if isinstance(device, torch.device) else find_device(device)
        found = find_precision(precision, place)
        options: Any = {"image_size": image_size, "device": place, "precision": found}
        options |= {} if template is None else {"template": template}
        options |= {} if class_descriptions is None else {"class_descriptions": read_descriptions(class_descriptions)}
        bundle = build_model(model, "zero-shot", class_names, **options)
        bundle.model.base_model.disable_adapter_layers()
        return cls(bundle, class_names, found)

    @property
    def model(self) -> Any:
        """The PEFT model."""
        return self.bundle.model

    @property
    def image_processor(self) -> Any:
        """What makes the model's inputs of images."""
        return self.bundle.image_processor

    @property
    def multi_label(self) -> bool:
        """Whether an image may be of several classes or none."""
        return getattr(self.model.get_base_model().config, "problem_type", None) == MULTI_LABEL

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Tell other classes apart, with what was learned.

        Raises:
            ClassNamesError: something was learned for each of the adapter's own classes, or malformed names.
            ValueError: the model has a head for other classes.
        """
        names = list(class_names)
        if list(getattr(self.model, "class_names", None) or ()) != names:
            set_class_names(self.model, names)
        self.class_names = names

    # ---- what is asked ----------------------------------------------------------------------------------------

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], top_k: int = 5, batch_size: int = 32
    ) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top_k` most probable labels of an image, best first; of several images a list of such lists.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an image that cannot be read, or tensors of another shape than the model takes.
            TypeError: something that is no image.
        """
        require_int("top_k", top_k, 1)
        found = best(self.probabilities(images, batch_size), self.class_names, top_k)
        return found[0] if _is_one(images) else found

    def probabilities(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Tensor:
        """Return the probability of each class, float32 [b, c] on the CPU, also of one image; raises as `__call__`."""
        parts = [self.probabilities_of(self.logits_of(inputs)) for inputs in self._batches(images, batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.class_names))

    def embed(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Tensor:
        """Return L2-normalised features, float32 [b, e] on the CPU, also of one image; raises as `__call__`.

        Of several features of an image (read-only prompts, MMRL) they stand side by side. Of an image classifier it is what
        the head reads.
        """
        parts = [self.features_of(inputs) for inputs in self._batches(images, batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def _batches(self, images: ImageLike | Iterable[ImageLike], batch_size: int) -> Iterator[dict[str, Tensor]]:
        require_int("batch_size", batch_size, 1)
        if isinstance(images, Tensor) and images.ndim == 4:
            yield from ({"pixel_values": some} for some in images.split(batch_size))
            return
        several: Any = [images] if _is_one(images) else images
        waiting = iter(several)
        while some := list(islice(waiting, batch_size)):
            yield self.preprocess(some)

    # ---- batch by batch ---------------------------------------------------------------------------------------

    def preprocess(self, images: Sequence[ImageLike]) -> dict[str, Tensor]:
        """Return what the model takes of some images.

        Raises:
            FileNotFoundError, ValueError, TypeError: as `__call__`.
        """
        if tensors := [image for image in images if isinstance(image, Tensor)]:
            if len(tensors) < len(images) or len({tensor.shape for tensor in tensors}) > 1 or tensors[0].ndim != 3:
                shapes = shorten(sorted({str(tuple(tensor.shape)) for tensor in tensors}), 4)
                raise ValueError(
                    "Expected tensors of one shape [3, height, width], as the image processor gives them, and no other images "
                    f"among them. Received tensors of {shapes} among {len(images)} images."
                )
            return {"pixel_values": torch.stack(tensors)}
        opened = [_opened(image, self.background) for image in images]
        return dict(self.image_processor(opened, return_tensors="pt"))

    @torch.no_grad()
    def logits_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of what the model takes, float32 [b, c] on the CPU.

        Raises:
            OutputNotFiniteError: some are NaN or infinite.
        """
        with eval_mode(self.model):
            return require_finite(self.model(**self._placed(inputs)).logits.float().cpu())

    @torch.no_grad()
    def features_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the features of the same, float32 [b, e] on the CPU."""
        with eval_mode(self.model):
            if hasattr(self.model, "encode_images"):
                features = self.model.encode_images(**self._placed(inputs))
            else:
                features = self._read_by_head(self._placed(inputs))
        return F.normalize(features.float().flatten(1), dim=-1).cpu()

    def logits_and_features_of(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both; images are encoded once where no visual prompt is learned."""
        features = self.features_of(inputs)
        if self._classifies_features():
            return self.logits_of({"image_features": features}), features
        return self.logits_of(inputs), features

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Return the probabilities [b, c] of logits [b, c]."""
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def _classifies_features(self) -> bool:
        classifier = text_classifier(self.model)
        return classifier is not None and classifier.images.is_fixed

    def _read_by_head(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the head of an image classifier reads, [b, e]."""
        base: nn.Module = self.model.get_base_model()
        head = base.get_submodule(ClassifierParts(base).head)
        read: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
        try:
            self.model(**inputs)
        finally:
            hook.remove()
        return read[0]

    def _placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = device_of(self.model)
        return {name: tensor.to(device) for name, tensor in inputs.items()}


def best(probabilities: Tensor, class_names: Sequence[str], top_k: int) -> list[list[Prediction]]:
    """Return the `top_k` most probable labels of each row of probabilities [b, c], best first; all where there are fewer."""
    values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
    return [
        [Prediction(class_names[label], value) for label, value in zip(labels, row, strict=True)]
        for labels, row in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _is_one(images: Any) -> bool:
    if isinstance(images, Tensor):
        return images.ndim == 3
    return isinstance(images, (Image.Image, str, os.PathLike)) or not isinstance(images, Iterable)


def _opened(image: Any, background: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image, background)
    if isinstance(image, (str, os.PathLike)):
        return read_rgb(image, background)
    raise TypeError(
        "Expected images of Pillow, paths of image files, or tensors as the image processor gives them. Received: "
        f"{type(image).__name__}. Of an array make an image by PIL.Image.fromarray."
    )

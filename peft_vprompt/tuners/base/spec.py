"""`MethodSpec`: everything that is known of a method, in one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ...utils.fields import check_values
from .recipe import Recipe, SupportViews


if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from .checkpoint_layout import Layout


class Depth(NamedTuple):
    """Number of layers of the two towers; `text` is 0 for a classifier without a text tower, `vision` for an opaque encoder."""

    text: int
    vision: int

    @classmethod
    def of(cls, config: PretrainedConfig, is_classifier: bool) -> Depth:
        """Return the depth of a model by its config; that of an image classifier has no text tower."""
        vision = getattr(getattr(config, "vision_config", config), "num_hidden_layers", 0)
        return cls(0 if is_classifier else config.text_config.num_hidden_layers, vision)

    @property
    def both(self) -> int:
        """Layers that both towers have; those of the text tower beside an opaque encoder, which refuses by itself."""
        return min(self.text, self.vision or self.text)


@dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Attributes:
        citation: authors, short title, venue.
        link: where to read it; None where no address is known.
    """

    citation: str
    link: str | None = None


@dataclass(frozen=True)
class Variation:
    """What the authors of a method change of recipe and config for some of CoOp's data sets, or in some protocols.

    Attributes:
        changes: fields of the recipe and of the config, by name.
        tasks: short names of the data sets; none for all of them.
        protocols: names of the protocols, as `vprompt bench` has them; none for all of them.
    """

    changes: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()

    def fits(self, task: str, protocol: str) -> bool:
        """Return whether it is for a data set in a protocol."""
        return task in (self.tasks or (task,)) and protocol in (self.protocols or (protocol,))


@dataclass(frozen=True)
class MethodSpec:
    """One row of the method table. PEFT, the command line, the converter, cards, documents and tests read it.

    Attributes:
        name: the name people say: that of its folder and on the command line.
        title: the name as papers write it.
        paper: where it was published.
        learns: what is trained, in a few words.
        config_class: class of the PEFT config.
        tuner_class: the tuner, where this row gives PEFT a type of its own; None for a row that is another one's config
            with other values, and for PEFT's own methods.
        marks: config values that tell this row from others with the same config class.
        defaults: further config values, for a model of some depth; published depths are cut to the layers there are.
        recipe: the authors' training on class names, None where nothing is trained or it has no meaning.
        noisy_recipe: the same where labels are noisy or not read, None where it is no other.
        classifier_recipe: the same on a model with a classification head, None where that has no meaning.
        variations: what the authors change of recipe and config on published data; a later one wins.
        text: config values that a published task's template decides, where the authors put it around class names.
        elsewhere: config values, by the adapter's config, for other data than it was trained on.
        support: how the training images are encoded for a method that learns from their features alone, see
            `PeftModelForImageClassification.set_support`; None for others.
        new_classes: whether what is learned on some classes can be used on others.
        is_baseline: whether it is a fine-tuning baseline, which makes an image classifier of a dual encoder's image
            encoder.
        find_targets: config values that only the model can tell.
        checkpoints: readers of the authors' checkpoints, by the name that `convert_checkpoint` takes.
        numbered: field of the config that a number at the end of the name sets (mlp-3, partial-1).
        demo: what `vprompt demo` changes so that the tiny embedded model learns in a few minutes; None: not shown there.
    """

    name: str
    title: str
    paper: Paper
    learns: str
    config_class: type[PeftConfig]
    tuner_class: type[BaseTuner] | None = None
    marks: Mapping[str, Any] = field(default_factory=dict)
    defaults: Callable[[Depth], dict] = lambda depth: {}
    recipe: Recipe | None = None
    noisy_recipe: Recipe | None = None
    classifier_recipe: Recipe | None = None
    variations: tuple[Variation, ...] = ()
    text: Callable[[str], dict[str, Any]] = lambda template: {"template": template}
    elsewhere: Callable[[Any], dict[str, Any]] = lambda config: {}
    support: SupportViews | None = None
    new_classes: bool = True
    is_baseline: bool = False
    find_targets: Callable[[PreTrainedModel], dict] = lambda model: {}
    checkpoints: Mapping[str, Callable[[Mapping[str, Tensor]], Layout]] = field(default_factory=dict)
    numbered: str | None = None
    demo: Mapping | None = None

    def configure(self, model: PreTrainedModel, is_classifier: bool | None = None, **options) -> PeftConfig:
        """Return the method's PEFT config for a model; `options` replace the method's own values.

        Args:
            model: the base model.
            is_classifier: whether it is used without a text tower; default: what the method is for.

        Raises:
            ValueError: an option of another type than the config's field, or out of range; names the field.
        """
        check_values(self.config_class, options)  # PEFT's own configs take anything
        classifier = self.is_baseline if is_classifier is None else is_classifier
        depth = Depth.of(model.config, classifier)
        values = {**self.marks, **self.defaults(depth), **self.find_targets(model), **options}
        return self.config_class(**values)

    @property
    def trains(self) -> bool:
        """Whether anything is learned from images, by training or from their features."""
        return any((self.recipe, self.classifier_recipe, self.support))

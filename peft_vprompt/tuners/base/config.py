"""`PromptConfig`: the fields that all prompt-learning methods share.

Each method's own fields live in `tuners/<method>/config.py`. The help text of a field is its metadata: the
documentation and the command line's help are generated from it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft import PeftConfig

from ...core.class_descriptions import find_descriptions, read_descriptions
from ...core.prompt_templates import SINGLE
from ...errors import ClassNamesError, ContextLengthWarning
from ...losses.label_checks import MULTI_LABEL
from ...utils.fields import check_fields, shown
from .class_name_checks import check_class_names, check_prompts, check_templates, digest_names


#: The task type under which PEFT finds `PeftModelForImageClassification`.
TASK_TYPE = "IMAGE_CLS"
#: The task type of the fine-tuning baselines, under which PEFT finds `SavedPeftModel`.
BASELINE_TASK_TYPE = "IMAGE_TRANSFER"


class SavedConfig(PeftConfig):
    """A config that remembers the folder or Hub id it was read from, so that it is compared with the weights there.

    Attributes:
        saved_in: folder or Hub id, and the options of its download; None for a new config.
    """

    saved_in = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, subfolder: str | None = None, **kwargs):
        """Read a saved config, as PEFT does."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        config.saved_in = pretrained_model_name_or_path, {"subfolder": subfolder, **kwargs}
        return config


@dataclass
class ClassifierConfig(SavedConfig):
    """What is recorded of a classification head on saving, so that a base model with such a head can be made again."""

    num_labels: int | None = field(
        default=None, metadata={"help": "Set on saving: classes of the classification head, where there is one."}
    )
    id2label: dict[int, str] | None = field(
        default=None, metadata={"help": "Set on saving: names of these classes, by their number."}
    )
    label2id: dict[str, int] | None = field(
        default=None, metadata={"help": "Set on saving: numbers of these classes, by their name."}
    )

    #: What the Hub was asked with for this config, and is asked with for a tokenizer. No field, so it is never saved.
    token: ClassVar[str | bool | None] = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, subfolder: str | None = None, **kwargs):
        """Load a config, see `PeftConfig.from_pretrained`."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        vars(config)["token"] = kwargs.get("token")
        return config

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.id2label, dict):  # JSON has texts for numbers
            loaded: Any = self.id2label
            self.id2label = {int(i) if isinstance(i, str) and i.isdecimal() else i: name for i, name in loaded.items()}


@dataclass
class PromptConfig(ClassifierConfig):
    """What every prompt-learning adapter is configured by.

    Raises:
        ClassNamesError: a class name is missing, empty or not a string.
        ValueError: a field has a value that is not allowed; the message says which are.
    """

    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes in label order, e.g. ['cat', 'sea lion']; underscores are read as spaces. "
            "Needed for the classification call on a dual encoder, and can be set later by `set_class_names`."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or hub id of the tokenizer. Default: the base model's own."},
    )
    template: str | list[str] = field(
        default=SINGLE,
        metadata={
            "help": "Text around the class name wherever the text side is not learned: for visual prompts, and with "
            "the adapter disabled (zero-shot). A list of templates is averaged as an ensemble.",
            "items": 10_000,
        },
    )
    shard_classes: bool = field(
        default=False,
        metadata={
            "help": "In distributed training each process encodes its share of the classes and gets the features of "
            "the others, gradients included. Methods whose text features depend on the image share out images anyway."
        },
    )
    frozen_template: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Text around the name that the frozen model reads wherever a method is held near it; a list is "
            "averaged. Default: template."
        },
    )
    class_descriptions: dict[str, list[str]] | None = field(
        default=None,
        metadata={
            "help": "Sentences by class, {class: [sentence, ...]}, or the pathlib.Path of a JSON file of them. Their averaged features stand for "
            "the templates': for the frozen model (with the adapter disabled, and in the place of frozen_template) and "
            "wherever the text side is not learned. Descriptions of other classes do no harm."
        },
    )
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = field(
        default=None,
        metadata={
            "help": "'multi_label_classification' for images of several classes or none: labels are 1 or 0 for each class, and "
            "the loss is the sigmoid loss. Default: one class for each image, and the cross-entropy."
        },
    )
    logit_bias: float | None = field(
        default=None,
        metadata={
            "help": "With several labels for an image: what is added to the logits, so that a cosine of -bias / scale means one "
            "half. Default: the base model's own (SigLIP's), else nothing."
        },
    )
    text_consistency_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight, in the loss, of the distance of the class features to the frozen ones; 0: none.",
            "min": 0,
        },
    )
    image_consistency_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight, in the loss, of the distance of the image features to the frozen ones; 0: none.",
            "min": 0,
        },
    )
    logit_consistency_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight, in the loss, of the divergence from the frozen model's predictions; 0: none.",
            "min": 0,
        },
    )
    consistency_distance: Literal["cosine", "l1"] = field(
        default="cosine",
        metadata={"help": "Distance of features: 'cosine' (1 minus the mean cosine) or 'l1' (mean difference)."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Further modules to train and save in full. A classification head is added by itself.",
            "form": "module",
        },
    )
    class_names_digest: str | None = field(
        default=None,
        metadata={
            "help": "Set on saving where something was learned for each class: tells whether class_names still are the "
            "names it was learned for."
        },
    )

    #: Whether something is learned for each class, which means nothing for others.
    belongs_to_classes = False

    def __post_init__(self):
        if self.task_type not in (None, TASK_TYPE):
            raise ValueError(
                f"Expected task_type={TASK_TYPE!r} or None. Received: task_type={shown(self.task_type)}. "
                "Leave it out: prompt-learning adapters classify images and set it themselves."
            )
        self.task_type = TASK_TYPE
        super().__post_init__()
        if self.class_names is not None:
            self.class_names = check_class_names(self.class_names)
        if isinstance(self.tokenizer_name_or_path, os.PathLike):
            self.tokenizer_name_or_path = os.fspath(self.tokenizer_name_or_path)
        check_templates("template", self.template)
        if self.frozen_template is not None:
            check_templates("frozen_template", self.frozen_template)
        if isinstance(self.class_descriptions, str):  # a stranger's config must not make us read a file
            raise ValueError(
                "Expected class_descriptions to be a dict {class: [sentence, ...]} or a pathlib.Path of a JSON file. Received: "
                f"class_descriptions={shown(self.class_descriptions)}. Write pathlib.Path({shown(self.class_descriptions)})."
            )
        if self.class_descriptions is not None:
            self.describe_classes(self.class_descriptions)
        check_fields(self)
        check_prompts(len(self.class_names or ()), len(self.templates))
        if self.class_names is not None:
            self.descriptions_of(self.class_names)
        if self.logit_bias is not None and not self.is_multi_label:
            raise ValueError(
                f"Expected logit_bias with problem_type={MULTI_LABEL!r} alone: it changes nothing where one class of "
                f"several wins. Received: logit_bias={self.logit_bias} and problem_type={self.problem_type!r}."
            )

    def describe_classes(self, descriptions: Mapping[str, Sequence[str]] | str | os.PathLike) -> None:
        """Set `class_descriptions`, from a dict or a JSON file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: something else than sentences by class, or more of them than fit into memory as token ids.
        """
        self.class_descriptions = read_descriptions(descriptions)
        check_prompts(1, sum(map(len, self.class_descriptions.values())))

    def descriptions_of(self, names: Sequence[str]) -> list[list[str]] | None:
        """Return the sentences that describe each class; None where none of any class were given.

        Raises:
            ClassNamesError: some classes have none.
        """
        return None if self.class_descriptions is None else find_descriptions(names, self.class_descriptions)

    def record_classes(self) -> None:
        """Set `class_names_digest`, if something was learned for each class."""
        names = self.learned_classes
        self.class_names_digest = None if names is None else digest_names(names)

    @property
    def learned_classes(self) -> list[str] | None:
        """The classes for each of which something is learned, None where nothing is."""
        return self.class_names if self.belongs_to_classes else None

    @property
    def is_multi_label(self) -> bool:
        """Whether images have several classes or none."""
        return self.problem_type == MULTI_LABEL

    @property
    def own_classes(self) -> list[str]:
        """`class_names`, where something is learned for each of them, so that there are some."""
        return self.class_names  # pyrefly: ignore[bad-return]  # such configs refuse to be without

    @property
    def templates(self) -> list[str]:
        """The templates as a list, also when one string was given."""
        return [self.template] if isinstance(self.template, str) else list(self.template)


@dataclass
class ContextConfig(PromptConfig):
    """What methods with a context before or around the class name share.

    Raises:
        ValueError: no words where the context is to start from words, or a length below 1.
    """

    num_virtual_tokens: int | None = field(
        default=None,
        metadata={"help": "Context tokens. Default: the words of prompt_init_text, or the paper's number.", "min": 1},
    )
    prompt_init: Literal["random", "text"] = field(
        default="random", metadata={"help": "'random' (normal, std 0.02) or 'text' (the words of prompt_init_text)."}
    )
    prompt_init_text: str | None = field(
        default=None, metadata={"help": "Words to start the context from, e.g. 'a photo of a'."}
    )

    #: Whether each class learns a context of its own.
    class_specific = False

    @property
    def words(self) -> str | None:
        """The words that the context starts from, as the authors read them."""
        return (self.prompt_init_text or "").replace("_", " ") if self.prompt_init == "text" else None

    @property
    def length(self) -> int:
        """Context tokens, after `set_length`."""
        return self.num_virtual_tokens  # pyrefly: ignore[bad-return]  # every config calls it when it is made

    def set_length(self, default: int) -> None:
        """Set `num_virtual_tokens`: to the number of initial words, if any, else to what was asked for."""
        if self.prompt_init == "text":
            self._take_length_from_words()
        elif self.num_virtual_tokens is None:
            self.num_virtual_tokens = default

    def require_words(self) -> None:
        """Refuse a start from words where there are none.

        Raises:
            ValueError: names the field.
        """
        if not (self.prompt_init_text or "").strip(" _"):
            raise ValueError(
                "Expected prompt_init_text with prompt_init='text', e.g. 'a photo of a'. "
                f"Received: prompt_init_text={self.prompt_init_text!r}."
            )

    def _take_length_from_words(self) -> None:
        self.require_words()
        length = len((self.words or "").split())
        if self.num_virtual_tokens not in (None, length):
            warnings.warn(
                f"num_virtual_tokens={self.num_virtual_tokens} is ignored: the {length} words of "
                f"prompt_init_text={self.prompt_init_text!r} set the context length.",
                ContextLengthWarning,
                stacklevel=5,
            )
        self.num_virtual_tokens = length


@dataclass
class ClassContextConfig(ContextConfig):
    """What methods share whose context all classes share, or each class has of its own.

    Raises:
        ClassNamesError: something is learned for each class, and there are no class names.
    """

    class_specific: bool = field(
        default=False, metadata={"help": "One context per class. Such an adapter knows its own classes only."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.belongs_to_classes and self.class_names is None:
            raise ClassNamesError(
                "Expected class_names with class_specific=True or learned class names: each class learns its own."
            )

    @property
    def belongs_to_classes(self) -> bool:
        """Whether something is learned for each class, which means nothing for others."""
        return self.class_specific


@dataclass
class BaselineConfig(ClassifierConfig):
    """What the fine-tuning baselines share: which modules they train, and the head beside them.

    Raises:
        ValueError: another task type.
    """

    target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the modules that are trained. Default: found in the model, as the paper has them.",
            "form": "module",
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Further modules to train and save in full. The classification head is added by itself.",
            "form": "module",
        },
    )

    def __post_init__(self):
        if self.task_type not in (None, BASELINE_TASK_TYPE):
            raise ValueError(
                f"Expected task_type={BASELINE_TASK_TYPE!r} or None. Received: task_type={shown(self.task_type)}. Leave it "
                "out: these adapters classify images and set it themselves."
            )
        self.task_type = BASELINE_TASK_TYPE
        super().__post_init__()
        check_fields(self)

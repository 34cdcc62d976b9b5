"""Configurations of fine-tuning (all of it, the last layers, the head), bias tuning, Pfeiffer adapters, an MLP head and side tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig
from peft.utils import PeftType

from ...utils.validation import require_choice, require_int
from ..base.config import TRANSFER_TASK_TYPE


@dataclass
class TransferConfig(PeftConfig):
    """What these methods share: where their parts go, and the head that is trained beside them."""

    target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the modules that get a part. Default: found in the model, as the paper has them."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Further modules to train and save in full. The classification head is added by itself."},
    )

    def __post_init__(self):
        if self.task_type not in (None, TRANSFER_TASK_TYPE):
            raise ValueError(
                f"Expected task_type={TRANSFER_TASK_TYPE!r} or None. Received: task_type={self.task_type!r}. Leave it "
                "out: these adapters classify images and set it themselves."
            )
        self.task_type = TRANSFER_TASK_TYPE
        super().__post_init__()


@dataclass
class FineTuningConfig(TransferConfig):
    """Fine-tuning of whole modules, as copies: the base model stays as it is for other adapters.

    Baselines "Full", "Partial-k" and "Linear" in Jia et al., "Visual Prompt Tuning", ECCV 2022, section 4.1. PEFT's
    `modules_to_save` makes such copies, too, but only beside another method, and `unload()` would not take them out.

    Example:

    ```python
    get_peft_model(vit, FineTuningConfig(num_layers=1))  # Partial-1
    ```

    Raises:
        ValueError: `num_layers` is negative or no integer.
    """

    num_layers: int | None = field(
        default=None,
        metadata={
            "help": "Layers to train, counted from the last, with the final norm and the head; 0: the head alone "
            "(linear probing). Default: the whole model."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.FINE_TUNING
        if self.num_layers is not None:
            require_int("num_layers", self.num_layers, 0)


@dataclass
class BiasTuningConfig(TransferConfig):
    """BitFit: every bias of the encoder and the head are trained, all weights stay frozen.

    Papers: Ben Zaken et al., "BitFit", ACL 2022; as a baseline ("Bias") in Jia et al., "Visual Prompt Tuning", ECCV
    2022, section 4.1.

    Example:

    ```python
    get_peft_model(vit, BiasTuningConfig())
    ```
    """

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BIAS_TUNING


@dataclass
class BottleneckAdapterConfig(TransferConfig):
    """Pfeiffer adapters: a bottleneck with a residual connection after the feed-forward part of every layer.

    Papers: Pfeiffer et al., "AdapterFusion", EACL 2021; as a baseline ("Adapter") in Jia et al., ECCV 2022.

    Example:

    ```python
    get_peft_model(vit, BottleneckAdapterConfig(reduction_factor=8))
    ```

    Raises:
        ValueError: `reduction_factor` below 1 or an unknown start.
    """

    reduction_factor: int = field(default=8, metadata={"help": "Width of the model over width of the bottleneck."})
    init_weights: str = field(
        default="identity",
        metadata={
            "help": "'identity': only the second matrix starts at zero, as in PEFT's LoRA. 'zero': both do, as in the "
            "authors' code; then no gradient reaches either and only the last bias learns."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK_ADAPTER
        require_int("reduction_factor", self.reduction_factor, 1)
        require_choice("init_weights", self.init_weights, ("identity", "zero"))


@dataclass
class MLPHeadConfig(TransferConfig):
    """A multi-layer perceptron in the place of the linear head, on frozen features.

    Paper: Jia et al., ECCV 2022, section 4.1 ("Mlp-k"); hidden layers are Linear - BatchNorm - ReLU - Dropout of the
    features' width.

    Example:

    ```python
    get_peft_model(vit, MLPHeadConfig(num_layers=3))
    ```

    Raises:
        ValueError: `num_layers` below 1 or `dropout` outside [0, 1).
    """

    num_layers: int = field(default=3, metadata={"help": "Linear layers, the last one included (k of Mlp-k)."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout after every hidden layer."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.MLP_HEAD
        require_int("num_layers", self.num_layers, 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected dropout in [0, 1). Received: dropout={self.dropout!r}.")


@dataclass
class SideTuningConfig(TransferConfig):
    """Side tuning: a small network of its own beside the frozen encoder, blended in by a learned sigmoid(alpha).

    Papers: Zhang et al., "Side-Tuning", ECCV 2020; as a baseline ("Sidetune") in Jia et al., ECCV 2022. The side network
    is transformers' `ResNetModel` with basic blocks, one per stage, from random weights (the authors': a pretrained
    AlexNet).

    Example:

    ```python
    get_peft_model(vit, SideTuningConfig(side_widths=[32, 64, 128]))
    ```

    Raises:
        ValueError: no stage, or a width below 1.
    """

    side_widths: list[int] = field(
        default_factory=lambda: [32, 64, 128], metadata={"help": "Channels of the side network's stages."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.SIDE_TUNING
        if not self.side_widths:
            raise ValueError("Expected at least one stage. Received: side_widths=[].")
        for width in self.side_widths:
            require_int("side_widths", width, 1)

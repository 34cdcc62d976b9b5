"""The readout of class features that another model gave."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ClassNamesError
from .cosine import CosineReadout


class GivenClasses(CosineReadout):
    """Cosines with L2-normalised `class_features` [c, e] that are saved and not trained, NaN until they are given."""

    belongs_to_classes = True

    def __init__(self, num_classes: int, feature_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        empty = torch.full((num_classes, feature_dim), torch.nan, dtype=dtype, device=device)
        self.register_buffer("class_features", empty)
        self._given = False

    def known_features(self) -> Tensor:
        """Return the features.

        Raises:
            ClassNamesError: they have not been given.
        """
        if not self._given and not torch.compiler.is_compiling() and not self.class_features.is_meta:
            if bool(self.class_features.isnan().any()):
                raise ClassNamesError(
                    "This adapter waits for a teacher's class features. Call "
                    "peft_vprompt.training.take_teacher(model, teacher), or leave teacher_dim out of its config."
                )
            self._given = True
        return self.class_features

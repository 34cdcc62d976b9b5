"""From the authors' checkpoints to adapters."""

from .checkpoint import LAYOUTS, convert_checkpoint


__all__ = ["LAYOUTS", "convert_checkpoint"]

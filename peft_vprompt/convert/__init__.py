"""From the authors' checkpoints to adapters, and from files of openai/CLIP and open_clip to models of transformers."""

from .checkpoint import LAYOUTS, convert_checkpoint
from .clip import convert_clip


__all__ = ["LAYOUTS", "convert_checkpoint", "convert_clip"]

"""The embedded default: a tiny CLIP that this package pretrained itself, and few-shot tasks drawn for it.

Needs neither a network nor files of images. `world` and `drawing` make the pictures, examples/studies/pretrain_demo.py made the model.
"""

from importlib import resources

from .task import CLASS_NAMES, DEMO_TASKS, TEMPLATE, demo_task


def demo_model_path() -> str:
    """Folder of the embedded CLIP with its tokenizer and image processor, for `from_pretrained`."""
    return str(resources.files(__name__) / "clip")


__all__ = ["CLASS_NAMES", "DEMO_TASKS", "TEMPLATE", "demo_model_path", "demo_task"]

"""The classification call as one graph, prompts inside: ONNX and `torch.export`, for any number of images."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, ExportGraphSignature
from torch.export.graph_signature import InputKind

from ..utils.eval_mode import eval_mode
from .classifier import Classifier


ONNX = "model.onnx"
TORCH_EXPORT = "model.pt2"

#: What `--format onnx` needs beside torch, and how pip is asked for it: the extra [onnx].
_PACKAGES = {"onnx": "onnx>=1.17", "onnxruntime": "onnxruntime>=1.20", "onnxscript": "onnxscript>=0.5"}

#: Most images of a batch: a bound, however large, is what an exporter wants where a graph compares the number with others.
MAX_IMAGES = 65536


class Logits(nn.Module):
    """Images in, logits out.

    Args:
        model: the PEFT model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits [b, c] of images [b, 3, height, width]."""
        return self.model(pixel_values=pixel_values).logits


def require_onnx() -> None:
    """Refuse to go on without what exports to ONNX and runs it.

    Raises:
        ImportError: says what is missing and how to get it.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        wanted = " ".join(f"'{_PACKAGES[name]}'" for name in missing)
        raise ImportError(f"Export to ONNX needs {', '.join(missing)}: pip install {wanted}")


def save_onnx(classifier: Classifier, folder: Path, pixels: Tensor) -> str:
    """Write `model.onnx`; return the kind of what was written.

    Args:
        classifier: the adapter.
        folder: where to write.
        pixels: what the model takes of two images.

    Raises:
        ImportError: ONNX or its runtime is not installed.
    """
    require_onnx()
    with _quietly(classifier) as model:
        program: Any = torch.onnx.export(
            model,
            (pixels,),
            dynamo=True,
            dynamic_shapes=_any_batch(),
            input_names=["pixel_values"],
            output_names=["logits"],
            verbose=False,
        )
    program.save(str(folder / ONNX))
    return "onnx"


def save_torch_export(classifier: Classifier, folder: Path, pixels: Tensor) -> str:
    """Write `model.pt2`; arguments as of `save_onnx`."""
    with _quietly(classifier) as model:
        program = torch.export.export(model, (pixels,), dynamic_shapes=_any_batch(), strict=False)
    torch.export.save(without_unread(program), folder / TORCH_EXPORT)
    return "torch-export"


def without_unread(program: ExportedProgram) -> ExportedProgram:
    """Return a program without the weights that nothing in it reads: of the text encoder, where class features are constants."""
    unread = [node for node in program.graph.nodes if node.op == "placeholder" and not node.users]
    names = {node.name for node in unread}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    signature = program.graph_signature
    dropped = [spec for spec in signature.input_specs if spec.kind in kinds and spec.arg.name in names]
    targets = {spec.target for spec in dropped}
    arguments = {spec.arg.name for spec in dropped}
    for node in unread:
        if node.name in arguments:
            program.graph.erase_node(node)
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=ExportGraphSignature(
            [spec for spec in signature.input_specs if spec.arg.name not in arguments], signature.output_specs
        ),
        state_dict={name: tensor for name, tensor in program.state_dict.items() if name not in targets},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: value for name, value in program.constants.items() if name not in targets},
        verifiers=program.verifiers,
    )


def _any_batch() -> dict:
    return {"pixel_values": {0: torch.export.Dim("images", min=1, max=MAX_IMAGES)}}


@contextmanager
def _quietly(classifier: Classifier) -> Iterator[nn.Module]:
    """Give what is exported, without gradients and without what exporters say of their own code."""
    wrapped = Logits(classifier.model)
    logger = logging.getLogger("torch.onnx")  # tells of packages that are not there and not needed
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), eval_mode(wrapped), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield wrapped
    finally:
        logger.setLevel(level)

"""Weights of an ONNX model in 8 bits."""

from __future__ import annotations

from pathlib import Path

from .graphs import ONNX, require_onnx


#: How many products at most compare features with those of the classes, behind all layers.
_READ_OUT = 4


def quantise(folder: Path, num_classes: int) -> None:
    """Store the weights of the model in a folder in 8 bits, of which 7 are used, one scale for each output of a layer.

    Activations are quantised as they come (dynamically), so no images are needed; scales that were fixed on training
    images changed many more labels. Products with something for each class, and the last one, stay as they are: logits
    differ by little, and rounding these alone changed more labels than all layers. So does the first convolution, which is
    small and reads pixels. The eighth bit would overflow on processors without VNNI.

    Args:
        folder: where `model.onnx` is.
        num_classes: how many classes there are.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / ONNX
    prepared = folder / "prepared.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Einsum")]
    with_classes = {constant.name: constant.dims for constant in graph.initializer if num_classes in constant.dims}
    # A layer's matrix may be as wide as there are classes: those of classes are the last ones, or have more dimensions.
    of_classes = {name for name, dims in with_classes.items() if len(dims) > 2}
    exact = [node.name for node in products[:-1] if of_classes & set(node.input)]
    exact += [node.name for node in products[-_READ_OUT:-1] if with_classes.keys() & set(node.input)]
    exact += [node.name for node in graph.node if node.op_type == "Conv"][:1]
    quantize_dynamic(
        prepared,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=[*exact, *(node.name for node in products[-1:])],
    )
    for left in folder.glob("prepared.onnx*"):
        left.unlink()

"""Weights of an ONNX model in 8 bits."""

from __future__ import annotations

from pathlib import Path

from .graphs import ONNX, require_onnx


def quantise(folder: Path) -> None:
    """Store the weights of the model in a folder in 8 bits, of which 7 are used, one scale for each output of a layer.

    Activations are quantised as they come (dynamically), so no images are needed; scales that were fixed on training images changed
    many more labels. The last product, with the class features, stays as it is: logits differ by little, and rounding it
    alone changed more labels than all layers. The eighth bit would overflow on processors without VNNI.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / ONNX
    prepared = folder / "prepared.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    products = [node.name for node in onnx.load(prepared).graph.node if node.op_type in ("MatMul", "Gemm", "Einsum")]
    quantize_dynamic(
        prepared,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=products[-1:],
    )
    for left in folder.glob("prepared.onnx*"):
        left.unlink()

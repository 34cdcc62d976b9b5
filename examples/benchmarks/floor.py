"""The floor under a side's time: the matrix products of the tokens that must be computed, and nothing else.

Counted are the linear maps of the layers, forward and, where gradients flow, backward to their inputs (the weights
are frozen). Attention's own products, norms, activations and memory traffic are left out, so nothing can be faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Product:
    """`rows` rows times a weight [out, in], and back if `backward`."""

    weight: Tensor
    rows: int
    backward: bool


def layer_products(
    layers: Sequence[nn.Module], read_rows: int, rows: int, last_rows: int, backward: bool
) -> list[Product]:
    """Products of transformer layers with six linear maps each.

    `read_rows` rows are read by others and need keys and values; `rows` rows need queries, output and feed-forward
    maps, in the last layer only the `last_rows` that are read out.
    """
    products = []
    for index, layer in enumerate(layers):
        weights = [module.weight for module in layer.modules() if isinstance(module, nn.Linear)]
        square = [weight for weight in weights if weight.shape[0] == weight.shape[1]]
        wide = [weight for weight in weights if weight.shape[0] != weight.shape[1]]
        active = last_rows if index == len(layers) - 1 else rows
        products += [Product(weight, read_rows, backward) for weight in square[:2] if read_rows]
        products += [Product(weight, active, backward) for weight in (*square[2:], *wide) if active]
    return products


def flops(products: list[Product]) -> int:
    """Floating point operations."""
    return sum(2 * p.rows * p.weight.numel() * (1 + p.backward) for p in products)


class Products:
    """Runs matrix products, forwards in order, then backwards; buffers are made once.

    What is made is never multiplied again: after many products in a row nothing but denormal numbers would be left, which
    some processors multiply a hundred times slower.
    """

    def __init__(self, products: list[Product], device: str):
        self.products = products
        shapes = {(product.rows, size) for product in products for size in product.weight.shape}
        options = {"dtype": products[0].weight.dtype, "device": device} if products else {}
        self.given = {shape: torch.randn(shape, **options) for shape in shapes}
        self.made = {shape: torch.empty(shape, **options) for shape in shapes}

    @torch.no_grad()
    def __call__(self) -> None:
        """Run them."""
        for product in self.products:
            outputs, inputs = product.weight.shape
            torch.mm(self.given[product.rows, inputs], product.weight.t(), out=self.made[product.rows, outputs])
        for product in reversed(self.products):
            if product.backward:
                outputs, inputs = product.weight.shape
                torch.mm(self.given[product.rows, outputs], product.weight, out=self.made[product.rows, inputs])

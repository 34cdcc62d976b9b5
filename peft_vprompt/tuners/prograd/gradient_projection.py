"""Gradients without the part that goes against another direction, in any training loop.

The direction is known when the logits are; the gradient of the loss, whatever the loss is, when `backward` has reached the
parameters. So the logits pass through a function that, in the backward pass, leaves a note with each parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.compiler.disable  # a compiled graph has one backward pass
def guide_gradients(logits: Tensor, guide: Tensor, parameters: Sequence[nn.Parameter], weight: float) -> Tensor:
    """Return the same logits; a backward pass through them projects the gradients of `parameters`.

    With g a parameter's gradient in that pass, summed over all that is differentiated, and d that of `guide`: where g . d < 0
    the parameter gets g - weight * (g . d) / (d . d) * d, else g. A pass through several calls' logits takes the sum of their
    directions. In gradient accumulation each pass is projected by itself and the results add up; in distributed training
    each process projects its own before they are averaged. A scaled loss changes nothing. `torch.compile` leaves this step
    out of its graphs, so `fullgraph=True` is for evaluation alone.

    Args:
        logits: logits of the call, of any shape.
        guide: a scalar of the same graph, whose descent is not to be undone.
        parameters: what is trained; the whole tensor is one direction.
        weight: share of the opposite part that is taken out.

    Raises:
        ValueError: the model checkpoints its layers in a way that gives no second gradient.
    """
    if not parameters:
        return logits
    try:
        directions = torch.autograd.grad(guide, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ValueError(
            "Expected a model whose gradients can be asked for twice. Received: gradient checkpointing with "
            "use_reentrant=True. Pass gradient_checkpointing_kwargs={'use_reentrant': False}."
        ) from error
    pairs = [(p, d) for p, d in zip(parameters, directions, strict=True) if d is not None]
    return _Guided.apply(logits, weight, pairs) if pairs else logits


class _Guided(torch.autograd.Function):
    """The identity, whose backward pass announces the directions."""

    @staticmethod
    def forward(ctx, logits: Tensor, weight: float, pairs: list[tuple[nn.Parameter, Tensor]]) -> Tensor:
        ctx.weight = weight
        ctx.pairs = pairs
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        for parameter, direction in ctx.pairs:
            _Projection.of(parameter, ctx.weight).directions.append(direction)
        return gradient, None, None


class _Projection:
    """What one backward pass has to do with one parameter's gradient; gone when it is done."""

    def __init__(self, parameter: nn.Parameter, weight: float):
        self.weight = weight
        self.directions: list[Tensor] = []
        self.handle = parameter.register_hook(self)

    @classmethod
    def of(cls, parameter: nn.Parameter, weight: float) -> _Projection:
        """Return the parameter's projection in this pass."""
        hooks = (parameter._backward_hooks or {}).values()
        return next((hook for hook in hooks if isinstance(hook, cls)), None) or cls(parameter, weight)

    def __call__(self, gradient: Tensor) -> Tensor:
        self.handle.remove()
        return project(gradient, torch.stack(self.directions).sum(0), self.weight)


def project(gradient: Tensor, direction: Tensor, weight: float) -> Tensor:
    """Return the gradient without `weight` times its part against the direction; as it is where there is none.

    Source: ProGrad, equation 4; BeierZhu/Prompt-align `trainers/prograd.py`.
    """
    unit = direction / direction.norm()
    along = (gradient * unit).sum()
    # A direction of zeros gives NaN, for which the comparison is false.
    return torch.where(along < 0, gradient - weight * along * unit, gradient)

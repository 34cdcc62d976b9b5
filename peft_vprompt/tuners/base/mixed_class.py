"""A model's own class with a mixin: what an adapter adds to the object that a user holds, under the name that it had.

`save_pretrained` writes a model's class name into `config.architectures`, by which others load it, and
`set_attn_implementation` reads the file of its module: so the mixed class borrows name, module and docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Mixed:
    """Base of mixins: pickle and deepcopy make the class again from the one it extends.

    Attributes:
        plain_class: the class without the mixin.
        mixed_by: returns the mixed class for a plain one; always the same, since it is compared.
    """

    plain_class: type[nn.Module]
    mixed_by: Callable[[type[nn.Module]], type[nn.Module]]

    def __reduce_ex__(self, protocol):
        """Let pickle and deepcopy make the class again from the one it extends."""
        _, _, *state = super().__reduce_ex__(protocol)
        return (new_mixed, (self.mixed_by, self.plain_class), *state)


def mixed_class(mixin: type[Mixed], plain_class: type[nn.Module], **members: Any) -> type[nn.Module]:
    """Return a class that extends `plain_class` with a mixin and some members, by name and module like the original."""
    borrowed = {name: getattr(plain_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    bases = (mixin, plain_class)
    return type(plain_class)(plain_class.__name__, bases, borrowed | {"plain_class": plain_class} | members)


def new_mixed(mixed_by: Callable[[type[nn.Module]], type[nn.Module]], plain_class: type[nn.Module]) -> nn.Module:
    """Make an empty instance of the class that `mixed_by` returns, for pickle to fill."""
    cls: Any = mixed_by(plain_class)
    return cls.__new__(cls)


def plain_class(model: nn.Module) -> type[nn.Module]:
    """Return a model's class as its user knows it, without what adapters mix in."""
    return type(model).plain_class if isinstance(model, Mixed) else type(model)

"""From features of images and classes to one number for each pair: cosine, pairwise, linear, learned rows, cache.

A readout is a module that is called with image and text features. One with vectors of its own for the classes has them as
`class_features`; `belongs_to_classes` says whether it holds anything for each of them.
"""

from .cache import CacheReadout
from .class_rows import ClassRowsReadout
from .cosine import CosineReadout
from .given import GivenClasses
from .linear import LinearReadout, PrototypeReadout
from .pairwise import PairwiseReadout


__all__ = [
    "CacheReadout",
    "ClassRowsReadout",
    "CosineReadout",
    "GivenClasses",
    "LinearReadout",
    "PairwiseReadout",
    "PrototypeReadout",
]

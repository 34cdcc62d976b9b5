"""From features of images and classes to one number for each pair: cosine, pairwise, linear, learned for some classes.

A readout is a module that is called with image and text features. One with vectors of its own for the classes has them as
`class_features`.
"""

from .class_rows import ClassRowsReadout
from .cosine import CosineReadout
from .linear import LinearReadout
from .pairwise import PairwiseReadout


__all__ = ["ClassRowsReadout", "CosineReadout", "LinearReadout", "PairwiseReadout"]

"""From features of images and classes to one number for each pair: cosine, pairwise, linear.

A readout is a module that is called with image and text features. One with vectors of its own for the classes has them as
`class_features`.
"""

from .cosine import CosineReadout
from .given import GivenClasses
from .linear import LinearReadout
from .pairwise import PairwiseReadout


__all__ = ["CosineReadout", "GivenClasses", "LinearReadout", "PairwiseReadout"]

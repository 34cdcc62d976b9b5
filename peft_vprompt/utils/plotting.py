"""Figures that are written as PNG, without a display."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .io import atomic_path


@contextmanager
def saved_figure(path: str | Path, columns: int = 1, size: tuple[float, float] | None = None) -> Iterator:
    """Yield a row of axes to draw on, written as PNG at the end of the block. `size` is in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size or (4.2 * columns, 3.8), layout="constrained", squeeze=False)
    try:
        yield tuple(axes[0])
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png", dpi=150)
    finally:
        plt.close(figure)

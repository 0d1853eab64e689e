"""Draw how alike the units of two models are, before and after matching."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SpecError
from .style import SMALL, figure_of, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELLS = 128
"""Rows and columns of the picture; a larger matrix is drawn in blocks, for smaller dots cannot be seen."""


def matching(
    before: Tensor,
    after: Tensor,
    *,
    label: str = "cosine similarity",
    axes: Sequence[Axes] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the similarity of each unit of A with each unit of B, as it was and with B permuted.

    Where units are matched with units that are like them, a diagonal appears. Its mean stands above each panel. Of a
    matrix with more than 128 rows, a dot of the picture is a square block, in which the number of largest size counts:
    a mean would hide the diagonal.

    Args:
        before: Matrix with a row for each unit of A and a column for each unit of B; see
            :func:`autoperm.matching.unit_similarity`.
        after: The same with B permuted.
        label: What the numbers are.
        axes: Where to draw, two; by default a new figure.
        title: What the titles begin with, such as the group's name.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If the matrices are not square and of one size, or have NaN.
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = matching(torch.eye(3).flip(0), torch.eye(3))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['before: diagonal 0.33', 'after: diagonal 1.00']
    """
    matrices = [torch.as_tensor(matrix).detach().cpu().double() for matrix in (before, after)]
    for name, matrix in zip(("before", "after"), matrices, strict=True):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
            raise SpecError(f"{name} has shape {list(matrix.shape)}; it needs a row and a column for each unit")
        if matrix.shape != matrices[0].shape:
            raise SpecError(f"before has {len(matrices[0])} units and after has {len(matrix)}; both are of one group")
        if not bool(matrix.isfinite().all()):
            raise SpecError(f"{name} has NaN or infinite values, which have no colour")
    units = len(before)
    block = ceil(units / _CELLS)
    largest = max(float(matrix.abs().max()) for matrix in matrices) or 1.0
    panels = new_panels(2, axes, "matrices", size=(3.3, 3.1))
    for panel, matrix, name in zip(panels, matrices, ("before", "after"), strict=True):
        image = panel.imshow(
            _blocks(matrix, block).numpy(),
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
            extent=(-0.5, units - 0.5, units - 0.5, -0.5),
            interpolation="nearest",
        )
        mean = round(float(matrix.diagonal().mean()), 2) + 0.0  # no "-0.00"
        panel.set_title(f"{'' if title is None else f'{title}, '}{name}: diagonal {mean:.2f}", fontsize=SMALL + 1)
        panel.set_xlabel("units of B" if name == "before" else "units of B, permuted")
        panel.tick_params(length=2)
        panel.spines[:].set_color("0.6")
    panels[0].set_ylabel("units of A")
    figure = figure_of(panels[0])
    bar = figure.colorbar(image, ax=panels, shrink=0.8, aspect=24, pad=0.02)
    bar.set_label(label if block == 1 else f"{label}, largest of {block} x {block}")
    bar.outline.set_edgecolor("0.6")
    return figure


def _blocks(matrix: Tensor, size: int) -> Tensor:
    """Take the number of largest size, with its sign, from each square block; the last blocks may be smaller."""
    if size == 1:
        return matrix
    high, low = (
        torch.nn.functional.max_pool2d((sign * matrix)[None, None], size, ceil_mode=True)[0, 0] for sign in (1, -1)
    )
    return torch.where(high >= low, high, -low)

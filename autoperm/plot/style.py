"""What all figures share: colours, panels, and how axes look."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import SpecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart; yellow is too faint on white."""


def new_panels(count: int, axes: Axes | Sequence[Axes] | None, what: str) -> list[Axes]:
    """Return axes to draw on, one for each of ``count`` panels: those given, or those of a new figure, side by side.

    Raises:
        SpecError: if the number of axes given is another; ``what`` says in the message what the panels are for.
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
    if axes is None:
        figure = Figure(figsize=(3.5 * max(count, 1.3), 3.0), layout="constrained")
        return [figure.add_subplot(1, count, i + 1) for i in range(count)]
    given = [axes] if isinstance(axes, Axes) else list(axes)
    if len(given) != count:
        raise SpecError(f"there are {len(given)} axes for {count} {what}; give one for each")
    return given


def plain(axes: Axes) -> None:
    """Give axes a light grid below what is drawn, and no frame above and to the right."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def figure_of(axes: Axes) -> Figure:
    """Return the figure that axes belong to.

    Raises:
        SpecError: if they were removed from it.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise SpecError("the axes belong to no figure; they were removed from it. Give axes of a figure")
    return figure


def missing_matplotlib() -> ImportError:
    """Return the error to raise without matplotlib."""
    return ImportError('drawing needs matplotlib; install it with: pip install "autoperm[plot]"')

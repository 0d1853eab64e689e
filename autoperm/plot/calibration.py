"""Draw reliability diagrams."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..calibration import Reliability
from ..errors import SpecError
from .style import Look, by_label, figure_of, given_panels, legend, looks, new_figure, plain, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"top-1": ("confidence", "accuracy"), "one-vs-rest": ("predicted probability", "share that is true")}
"""What the axes show."""


def reliability(
    curves: Reliability | Mapping[str, Reliability],
    *,
    axes: Sequence[Axes] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw how often what is predicted with some probability is true, and below how many predictions there are.

    On the dotted diagonal a model is calibrated; below it, it is too sure. The legend has the expected calibration
    error (ECE), the mean distance from the diagonal over all predictions.

    Args:
        curves: One reliability curve, or several by label, all of one kind.
        axes: Where to draw, two: the curves and the counts; by default a new figure.
        title: Text above.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If there is no curve, the kinds differ, or there are not two axes.
        ImportError: If matplotlib is not installed.

    Example:
        >>> sure = Reliability((0.0, 0.5, 1.0), (0.25, 0.75), (0.25, 0.5), (10, 30), "top-1")
        >>> figure = reliability({"A": sure})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['A (ECE 0.188)', 'calibrated']
    """
    named = by_label(curves, Reliability)
    kinds = {item.kind for item in named.values()}
    if len(kinds) > 1:
        raise SpecError(f"the reliability curves are of different kinds, {', '.join(sorted(kinds))}; draw each alone")
    if axes is None:
        upper, lower = new_figure(4.4, 4.6).subplots(2, 1, sharex=True, height_ratios=(3, 1))
    else:
        upper, lower = given_panels(2, axes, "panels, curves and counts")
    for label, look in looks(named).items():
        _curve(upper, named[label], look, label)
        _counts(lower, named[label], look)
    (diagonal,) = upper.plot([0, 1], [0, 1], ":", color="0.4", linewidth=1.0, zorder=1, label="calibrated")
    beside, above = _LABELS.get(kinds.pop(), ("predicted probability", "share that is true"))
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=above)
    lower.set(xlim=(-0.02, 1.02), yscale="log", xlabel=beside, ylabel="predictions")
    for panel in (upper, lower):
        plain(panel)
    handles = [line for line in upper.get_lines() if line is not diagonal]
    legend(upper, [*handles, diagonal], outside=axes is None)
    title_of(upper, title)
    return figure_of(upper)


def _curve(axes: Axes, item: Reliability, look: Look, label: str) -> None:
    places = [(x, y) for x, y in zip(item.confidence, item.frequency, strict=True) if x is not None and y is not None]
    axes.plot(
        [x for x, _ in places],
        [y for _, y in places],
        linestyle=look.stroke,
        color=look.colour,
        linewidth=1.8,
        marker=look.marker,
        markersize=5,
        label=f"{label} (ECE {item.ece:.3f})" if label else f"ECE {item.ece:.3f}",
    )


def _counts(axes: Axes, item: Reliability, look: Look) -> None:
    axes.stairs(item.count, item.edges, color=look.colour, linestyle=look.stroke, linewidth=1.5, baseline=None)

"""Draw barriers against what changes them: width, or training time."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..barriers import Estimate
from ..errors import SpecError
from .style import Look, figure_of, legend, looks, new_panels, plain, title_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def trend(
    x: Sequence[float],
    estimates: Sequence[Estimate] | Mapping[str, Sequence[Estimate]],
    *,
    xlabel: str,
    ylabel: str = "loss barrier",
    log: bool = False,
    axes: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """Draw means over pairs of models, with their intervals as bands, against width, training time or the like.

    The faint marks are the pairs. Labels look as in :func:`autoperm.plot.curve`.

    Args:
        x: Where the estimates are.
        estimates: One for each x; or several such lines by label.
        xlabel: What x is, and its unit.
        ylabel: What is estimated, and its unit.
        log: Draw x on a logarithmic scale.
        axes: Where to draw; by default a new figure.
        title: Text above.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If there is nothing to draw, the numbers of x and of estimates differ, or x cannot be drawn on a
            logarithmic scale.
        ImportError: If matplotlib is not installed.

    Example:
        >>> narrow = Estimate(value=0.9, low=0.7, high=1.1, confidence=0.95, values=(0.8, 0.9, 1.0))
        >>> wide = Estimate(value=0.2, low=0.1, high=0.3, confidence=0.95, values=(0.1, 0.2, 0.3))
        >>> figure = trend([1, 4], {"aligned": [narrow, wide]}, xlabel="width multiplier", log=True)
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('width multiplier', 'loss barrier')
    """
    named = dict(estimates) if isinstance(estimates, Mapping) else {"": estimates}
    _check(x, named, log=log)
    (panel,) = new_panels(1, axes, "trends")
    handles: list[Artist] = []
    for label, look in looks(named).items():
        line = _line(panel, x, named[label], look, label)
        handles += [line] if label else []
    _axis(panel, x, log=log)
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    plain(panel)
    legend(panel, [*handles, *_explained(named)], outside=axes is None)
    title_of(panel, title)
    return figure_of(panel)


def _check(x: Sequence[float], estimates: Mapping[str, Sequence[Estimate]], *, log: bool) -> None:
    if not len(x) or not estimates:
        raise SpecError("there is nothing to draw; give x, and a list of Estimates, or a dictionary label -> list")
    for label, line in estimates.items():
        odd = [item for item in line if not isinstance(item, Estimate)] if isinstance(line, Sequence) else [line]
        if odd:
            named = f"'{label}' has something" if label else "there is something"
            raise SpecError(f"{named} of type {type(odd[0]).__name__}; give a list, one Estimate for each x")
        if len(line) != len(x):
            raise SpecError(f"'{label}' has {len(line)} estimates for {len(x)} values of x")
    if list(x) != sorted({*x}):
        raise SpecError(f"x must rise, but is {list(x)}")
    if log and x[0] <= 0:
        raise SpecError(f"x begins with {x[0]}, which a logarithmic scale does not have; leave out this x, or log=True")


def _line(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], look: Look, label: str) -> Artist:
    low, high = ([getattr(item, end) for item in estimates] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.vlines(x, low, high, color=look.colour, linewidth=1.0, alpha=0.7)
    pairs = [(place, value) for place, item in zip(x, estimates, strict=True) for value in item.values]
    axes.plot(
        [place for place, _ in pairs],
        [value for _, value in pairs],
        linestyle="none",
        marker=look.marker,
        markersize=3.5,
        markerfacecolor="none",
        markeredgecolor=look.colour,
        alpha=0.5,
    )
    (line,) = axes.plot(
        x,
        [item.value for item in estimates],
        linestyle=look.stroke,
        color=look.colour,
        linewidth=2.0,
        marker=look.marker,
        markersize=6,
        label=label,
    )
    return line


def _axis(axes: Axes, x: Sequence[float], *, log: bool) -> None:
    if not log:
        return
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    if len(x) <= 8:
        axes.set_xticks(list(x))


def _explained(estimates: Mapping[str, Sequence[Estimate]]) -> list[Artist]:
    """What the band and the faint marks are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shares = {item.confidence for line in estimates.values() for item in line}
    named = f"{100 * shares.pop():g} % interval" if len(shares) == 1 else "interval"
    band = Patch(facecolor="0.4", alpha=0.25, linewidth=0, label=named)
    return [band, Line2D([], [], linestyle="none", marker="o", markersize=3.5, mfc="none", mec="0.4", label="a pair")]

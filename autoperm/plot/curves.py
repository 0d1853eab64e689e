"""Draw metrics along paths."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..curves import Curve
from ..errors import SpecError
from .style import PALETTE, figure_of, new_panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {"naive": ("#E69F00", "--"), "aligned": ("#0072B2", "-")}
_LINES = ("-", "--", "-.", ":")


def curve(
    curves: Curve | Mapping[str, Curve],
    *,
    metrics: Sequence[str] | None = None,
    axes: Axes | Sequence[Axes] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw metrics along the path from model A to model B, one panel per metric.

    The labels "naive" (dashed orange) and "aligned" (solid blue) always look the same. Neither pyplot nor
    matplotlib's settings are touched; nothing is shown. Save the figure with ``figure.savefig("curve.png")``.

    Args:
        curves: One curve, or curves by label.
        metrics: Which metrics to draw; by default all that every curve has.
        axes: Where to draw, one per metric; by default a new figure with panels side by side.
        title: Text above the first panel.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If there is no curve, a curve lacks a metric or the number of axes is not that of the metrics.
        ImportError: If matplotlib is not installed.

    Example:
        >>> naive = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (0.1, 2.0, 0.1)})
        >>> aligned = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (0.1, 0.2, 0.1)})
        >>> figure = curve({"naive": naive, "aligned": aligned})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss']
    """
    named = {"": curves} if isinstance(curves, Curve) else dict(curves)
    if not named:
        raise SpecError("there are no curves to draw; give a Curve, or a dictionary label -> Curve")
    names = _metrics(named, metrics)
    panels = new_panels(len(names), axes, "metrics")
    for panel, name in zip(panels, names, strict=True):
        _panel(panel, named, name)
    if any(named):
        panels[0].legend(frameon=False, fontsize=9, handlelength=3)
    if title is not None:
        panels[0].set_title(title, loc="left", fontsize=10)
    return figure_of(panels[0])


def _metrics(curves: Mapping[str, Curve], metrics: Sequence[str] | None) -> list[str]:
    first, *others = curves.values()
    names = list(metrics) if metrics is not None else [m for m in first.metrics if all(m in c.metrics for c in others)]
    if isinstance(metrics, str):
        raise SpecError(f"metrics is the string '{metrics}'; give a list: ['{metrics}']")
    for label, item in curves.items():
        missing = [name for name in names if name not in item.metrics]
        if missing:
            of = f"the curve '{label}'" if label else "the curve"
            raise SpecError(f"{of} has no metric '{missing[0]}'; it has " + ", ".join(f"'{m}'" for m in item.metrics))
    if not names:
        raise SpecError("there is no metric to draw: the curves have none in common, or metrics is empty")
    return names


def _panel(axes: Axes, curves: Mapping[str, Curve], metric: str) -> None:
    for i, (label, item) in enumerate(curves.items()):
        colour, line = _STYLES.get(label, (PALETTE[i % len(PALETTE)], _LINES[i % len(_LINES)]))
        values = item.metrics[metric]
        axes.plot(
            item.lam,
            values,
            line,
            color=colour,
            linewidth=2,
            label=label or None,
            marker="o",
            markersize=6,
            markevery=[0, len(values) - 1],
        )
    axes.set_xlabel("λ  (0 = model A, 1 = model B)")
    axes.set_ylabel(metric)
    axes.set_xlim(-0.03, 1.03)
    plain(axes)

"""Draw metrics along paths."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..curves import Curve, Reference
from ..errors import SpecError, quoted
from .style import SMALL, Look, by_label, figure_of, legend, letters, looks, new_panels, plain, title_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLITS = ("test", "train")
"""Of the data, the one that counts first."""

_VISIBLE = 0.1
"""Barriers of a smaller share of the highest one have no room for an arrow."""

_BESIDE = 0.03
"""How far arrows stand from each other."""


def curve(
    curves: Curve | Mapping[str, Curve],
    *,
    metrics: Sequence[str] | None = None,
    barrier: Reference | None = None,
    labels: Mapping[str, str] | None = None,
    axes: Axes | Sequence[Axes] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw metrics along the path from model A to model B, or along a chain of models, one panel per metric.

    The labels "naive" (dashed orange), "aligned" (solid blue), "aligned + re-estimated", "aligned + REPAIR" and
    "ensemble" always look the same. The models themselves are marked. What curves have of both training and test data,
    as "train loss" and "test loss", shares a panel: the test as a broad line with full marks, the training as a thin
    one with hollow marks.

    Args:
        curves: One curve, or curves by label.
        metrics: Which metrics to draw; by default all that every curve has. "loss" stands for both "test loss" and
            "train loss"; either can be given alone.
        barrier: Draw an arrow as high as the barrier above the ``"mean"`` or the ``"chord"``, where it can be seen
            beside the highest one, for the first metric of every panel. Of a chain it is the highest leg's.
        labels: By panel, what to write beside its axis in place of the metric's name, such as
            ``{"loss": "test loss (nats)"}``.
        axes: Where to draw, one per panel; by default a new figure with panels side by side.
        title: Text above the first panel.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If there is no curve, a curve lacks a metric, chains have their models at different places, a
            label is for no panel, or the number of axes is not that of the panels.
        ImportError: If matplotlib is not installed.

    Example:
        >>> naive = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (0.1, 2.0, 0.1)})
        >>> aligned = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (0.1, 0.2, 0.1)})
        >>> figure = curve({"naive": naive, "aligned": aligned})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss']
    """
    named = by_label(curves, Curve)
    nodes = _nodes(named)
    groups = _panels(_metrics(named, metrics))
    panels = new_panels(len(groups), axes, "metrics")
    chosen, written = looks(named), dict(labels or {})
    for panel, (name, parts) in zip(panels, groups.items(), strict=True):
        for label, item in named.items():
            for part in parts:
                thin = len(parts) > 1 and part.startswith("train ")
                _line(panel, item, part, chosen[label], label, thin=thin)
        if barrier is not None:
            heights = {label: item.barrier(parts[0], reference=barrier) for label, item in named.items()}
            seen = [label for label, height in heights.items() if height > _VISIBLE * max(heights.values())]
            for i, label in enumerate(sorted(seen, key=lambda label: -heights[label])):
                _arrow(panel, named[label], parts[0], barrier, chosen[label].colour, i, len(seen))
        panel.set_ylabel(written.pop(name, name))
        _positions(panel, nodes)
        plain(panel)
    if written:
        raise SpecError(f"there is no panel '{next(iter(written))}' to label, but {', '.join(map(repr, groups))}")
    legend(panels[0], _handles(panels[0], both=any(len(parts) > 1 for parts in groups.values())), outside=axes is None)
    title_of(panels[0], title)
    return figure_of(panels[0])


def _nodes(curves: Mapping[str, Curve]) -> tuple[float, ...]:
    (label, first), *others = curves.items()
    for other, item in others:
        if item.nodes != first.nodes:
            raise SpecError(
                f"the models of '{label}' are at {first.nodes} and those of '{other}' at {item.nodes}; "
                "draw chains of other lengths in other axes"
            )
    return first.nodes


def _metrics(curves: Mapping[str, Curve], metrics: Sequence[str] | None) -> list[str]:
    if isinstance(metrics, str):
        raise SpecError(f"metrics is the string '{metrics}'; give a list: ['{metrics}']")
    first, *others = curves.values()
    names = [m for m in first.metrics if all(m in c.metrics for c in others)]
    if metrics is not None:
        split = {m: [f"{part} {m}" for part in _SPLITS if f"{part} {m}" in names] for m in metrics}
        names = [part for m in metrics for part in ([m] if m in names else split[m] or [m])]
    for label, item in curves.items():
        missing = [name for name in names if name not in item.metrics]
        if missing:
            of = f"the curve '{label}'" if label else "the curve"
            raise SpecError(f"{of} has no metric '{missing[0]}'; it has {quoted(item.metrics)}")
    if not names:
        raise SpecError("there is no metric to draw: the curves have none in common, or metrics is empty")
    return names


def _panels(names: Sequence[str]) -> dict[str, list[str]]:
    """What each panel shows: one metric, or the same of test and training data."""
    panels: dict[str, list[str]] = {}
    for name in names:
        split, _, rest = name.partition(" ")
        pair = [f"{part} {rest}" for part in _SPLITS]
        both = split in _SPLITS and rest not in names and all(part in names for part in pair)
        panels[rest if both else name] = pair if both else [name]
    return panels


def _line(axes: Axes, item: Curve, metric: str, look: Look, label: str, *, thin: bool) -> None:
    axes.plot(
        item.lam,
        item.metrics[metric],
        linestyle=look.stroke,
        color=look.colour,
        linewidth=1.0 if thin else 2.0,
        label=None if thin else label or None,
        marker=look.marker,
        markersize=5 if thin else 6,
        markerfacecolor="white" if thin else look.colour,
        markevery=[item.lam.index(node) for node in item.nodes],
    )


def _arrow(axes: Axes, item: Curve, metric: str, reference: Reference, colour: str, i: int, count: int) -> None:
    """From what the barrier is measured from to the highest place above it; the i-th of several stand side by side."""
    heights = [leg.barrier(metric, reference=reference) for leg in item.legs]
    which = heights.index(max(heights))
    leg, start, end = item.legs[which], *item.nodes[which : which + 2]
    low, high = leg.metrics[metric][0], leg.metrics[metric][-1]
    base = [(low + high) / 2] * 2 if reference == "mean" else [low, high]
    sign = -1.0 if metric in item.higher_is_better else 1.0
    levels = [base[0] + lam * (base[1] - base[0]) for lam in leg.lam]
    above = [sign * (value - level) for value, level in zip(leg.metrics[metric], levels, strict=True)]
    top = above.index(max(above))
    x = start + leg.lam[top] * (end - start)
    axes.plot([start, end], base, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    last, value = _BESIDE * (count - 1) / 2, leg.metrics[metric][top]
    aside = x - last + _BESIDE * i
    axes.annotate(
        "",
        (aside, value),
        (aside, levels[top]),
        arrowprops={"arrowstyle": "<->", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8},
    )
    axes.annotate(
        f"{heights[which]:#.2g}",
        (x + last, levels[top] + (0.9 - 0.8 * (i + 0.5) / count) * (value - levels[top])),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )


def _positions(axes: Axes, nodes: Sequence[float]) -> None:
    axes.set_xlim(-0.03, 1.03)
    if len(nodes) == 2:
        axes.set_xlabel("λ  (0 = model A, 1 = model B)")
        return
    for node in nodes:
        axes.axvline(node, color="0.6", linewidth=0.6, zorder=0.5)
    axes.set_xticks(list(nodes), letters(len(nodes)))
    axes.set_xlabel("models, and the paths between them")


def _handles(axes: Axes, *, both: bool) -> list[Artist]:
    from matplotlib.lines import Line2D

    handles: list[Artist] = [*axes.get_legend_handles_labels()[0]]
    if both:
        grey = partial(Line2D, [], [], color="0.4", marker="o")
        handles.append(grey(linewidth=2.0, markersize=6, label=_SPLITS[0]))
        handles.append(grey(linewidth=1.0, markersize=5, markerfacecolor="white", label=_SPLITS[1]))
    return handles

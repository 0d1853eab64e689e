"""Draw metrics over the triangle between three models."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, quoted
from ..surface import Surface
from .style import SMALL, by_label, figure_of, letters, missing_matplotlib, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = sqrt(3) / 2
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.5, _HEIGHT))
"""Of a triangle with sides of length 1: left, right, top."""

_ENDS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""Weights at the corners."""

_LINES = 7
"""About as many lines of equal height."""


def surface(
    surfaces: Surface | Mapping[str, Surface],
    metric: str = "loss",
    *,
    models: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    label: str | None = None,
    axes: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw a metric over the triangle between three models, as a map with lines of equal height.

    A corner is a model, with its value; an edge is the path between two; the cross in the middle is the average of all
    three, with its value if it is a point of the grid. Several surfaces stand side by side and share one scale. What is
    better is darker. Between the points of the grid the map is linear.

    Args:
        surfaces: One surface, or surfaces by label.
        metric: Which metric to draw.
        models: Which three models to draw, left, right and top, where there are more: the face of the simplex between
            them.
        names: Of these three models; by default A, B, C in the order of the surface's.
        label: What to write beside the scale in place of the metric's name, such as ``"test loss (nats)"``.
        axes: Where to draw, one per surface; by default a new figure with panels side by side.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If there is no surface, it lacks the metric or a corner, or the choice is not of three models.
        ImportError: If matplotlib is not installed.

    Example:
        >>> corners, sides = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5))
        >>> bowl = Surface((*corners, *sides), {"loss": (0.5, 0.4, 0.6, 0.1, 0.2)})
        >>> figure = surface(bowl)
        >>> [text.get_text().splitlines() for text in figure.axes[0].texts]
        [['A', '0.5'], ['B', '0.4'], ['C', '0.6']]
    """
    try:
        from matplotlib.ticker import MaxNLocator
        from matplotlib.tri import Triangulation
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
    named = by_label(surfaces, Surface)
    faces = {label: _face(item, metric, models, label) for label, item in named.items()}
    corners = _chosen(next(iter(named.values())), models)
    called = [letters(max(corners) + 1)[i] for i in corners] if names is None else list(names)
    if len(called) != 3:
        raise SpecError(f"there are {len(called)} names for the 3 corners of a triangle: {called}")
    panels = new_panels(len(named), axes, "surfaces", size=(3.2, 2.8))
    values = [value for face in faces.values() for value in face.values()]
    levels = MaxNLocator(_LINES).tick_values(min(values), max(values))
    colours = "viridis_r" if metric in next(iter(named.values())).higher_is_better else "viridis"
    for panel, (title, face) in zip(panels, faces.items(), strict=True):
        x, y = zip(*map(_place, face), strict=True)
        mesh, heights = Triangulation(x, y), list(face.values())
        drawn = panel.tripcolor(mesh, heights, shading="gouraud", cmap=colours, rasterized=True)
        drawn.set_clim(min(values), max(values))
        lines = [level for level in levels if min(heights) < level < max(heights)]
        if lines:
            panel.tricontour(mesh, heights, lines, colors="white", linewidths=0.7, alpha=0.8)
        _corners(panel, face, called)
        if title:
            panel.set_title(title, loc="left", fontsize=SMALL + 1, y=0.88)
    bar = figure_of(panels[0]).colorbar(drawn, ax=panels, shrink=0.75, aspect=24, pad=0.02, ticks=MaxNLocator(5))
    bar.set_label(metric if label is None else label)
    bar.outline.set_visible(False)
    return figure_of(panels[0])


_Face = dict[tuple[float, float, float], float]
"""Values by the weights of three models."""


def _chosen(item: Surface, models: Sequence[int] | None) -> tuple[int, ...]:
    count = item.models
    if models is None and count == 3:
        return (0, 1, 2)
    if models is None or len({*models}) != 3 or len(models) != 3 or not all(0 <= i < count for i in models):
        given = "" if models is None else f", not models={tuple(models)}"
        raise SpecError(
            f"a triangle is between 3 models and the surface between {count}; "
            + (f"choose 3 of 0 to {count - 1}, such as models=(0, 1, 2){given}" if count > 2 else "draw its edge")
        )
    return tuple(models)


def _face(item: Surface, metric: str, models: Sequence[int] | None, label: str) -> _Face:
    """The points that have no weight of other models."""
    of = f"the surface '{label}'" if label else "the surface"
    if metric not in item.metrics:
        raise SpecError(f"{of} has no metric '{metric}'; it has {quoted(item.metrics)}")
    i, j, k = _chosen(item, models)
    rest = [m for m in range(item.models) if m not in (i, j, k)]
    face = {
        (point[i], point[j], point[k]): value
        for point, value in zip(item.weights, item.metrics[metric], strict=True)
        if not any(point[m] for m in rest)
    }
    missing = [model for model, end in zip((i, j, k), _ENDS, strict=True) if end not in face]
    if missing:
        raise SpecError(f"{of} has no value at model {missing[0]}, where all weights but that model's are 0")
    return face


def _corners(axes: Axes, face: _Face, names: Sequence[str]) -> None:
    axes.set(xlim=(-0.14, 1.14), ylim=(-0.19, _HEIGHT + 0.17), aspect="equal")
    axes.set_axis_off()
    axes.plot(*zip(*_CORNERS, _CORNERS[0], strict=True), color="0.2", linewidth=1.0)
    for end, place, name in zip(_ENDS, _CORNERS, names, strict=True):
        axes.plot(*place, "o", color="0.2", markersize=5)
        _write(axes, f"{name}\n{face[end]:.3g}", place)
    middle = next((point for point in face if all(abs(weight - 1 / 3) < 1e-6 for weight in point)), None)
    if middle is not None:
        axes.plot(*_place(middle), "P", markerfacecolor="white", markeredgecolor="0.2", markersize=8)
        # Below the edge it would be read as the value between two models.
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "boxstyle": "round,pad=0.15"}
        _write(axes, f"average\n{face[middle]:.3g}", _place(middle), bbox=box)


def _write(axes: Axes, text: str, place: tuple[float, float], **look: Any) -> None:
    """Write below a place, but above the upper corner."""
    down = place[1] < _HEIGHT
    shift, side = ((0, -7), "top") if down else ((0, 6), "bottom")
    axes.annotate(text, place, shift, textcoords="offset points", ha="center", va=side, fontsize=SMALL, **look)


def _place(point: tuple[float, float, float]) -> tuple[float, float]:
    x = sum(weight * corner[0] for weight, corner in zip(point, _CORNERS, strict=True))
    return x, sum(weight * corner[1] for weight, corner in zip(point, _CORNERS, strict=True))

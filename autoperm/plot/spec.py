"""Draw a specification as a railway map."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..rails import Rail, Row, lay_out
from ..spec import PermutationSpec
from .style import PALETTE, figure_of, missing_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _MARGIN, _GAP = 0.27, 0.2, 0.3
"""Inches: from row to row, around the map, between its columns."""

_HEAD, _NARROWEST = 3.0, 4.4
"""Rows above the first one, for title and legend; inches that these take."""

_SIZE, _INCH = 8.0, 72.0
"""Points: of the letters; in an inch."""

_LARGER = 1.5
"""How much wider letters of the title are."""

_LONGEST = 32
"""Patterns with more letters are cut off."""


def draw_spec(
    spec: PermutationSpec, *, axes: Axes | None = None, fold: bool = True, title: str | None = None
) -> Figure:
    """Draw a specification as a railway map: layers are rows, factors are rails, with a dot where a layer carries them.

    A full dot is a factor on the first axis of one of the layer's tensors: for most layers, what it writes. A ring is a
    factor on a later axis: for most layers, what it reads. Both together are a ring around a dot. What varies over
    another factor stands right of it, thinner and in its colour. Grey are the patterns of the layers' weights.

    Args:
        spec: What to draw.
        axes: Where to draw; by default a new figure, as large as the map needs.
        fold: Draw blocks that repeat, three or more in a row, only once.
        title: Text above; by default how many groups and permutations there are.

    Returns:
        The figure drawn on.

    Raises:
        SpecError: If the axes belong to no figure.
        ImportError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> [text.get_text() for text in draw_spec(spec).axes[0].texts]
        ['1 group, 10^4.6 permutations', 'first axis (mostly outputs)', 'later axis (mostly inputs)',
        'both', '0', 'h _', '2', '_ h', 'h 8']
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
    layout = lay_out(spec, fold=fold)
    columns = [_width(row.label for row in layout.rows), _width((_short(row) for row in layout.rows), mono=True)]
    columns += [_width(rail.label for rail in layout.rails if rail.lane == lane) for lane in range(layout.lanes)]
    left, middle, *lanes, right = accumulate((max(width, 0.1) + _GAP for width in columns), initial=_MARGIN)
    groups = len(spec.groups)
    heading = f"{groups} group{'s' * (groups != 1)}, 10^{spec.log10_order:.1f} permutations" if title is None else title
    size = (
        max(right, _NARROWEST, _width([heading]) * _LARGER + 2 * _MARGIN),
        (len(layout.rows) + _HEAD - 0.5) * _ROW + _MARGIN,
    )
    if axes is None:
        axes = Figure(figsize=size).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1] / _ROW - _HEAD, -_HEAD))
    axes.set_axis_off()
    axes.text(left, -2.3, heading, fontsize=_SIZE + 2, va="center", weight="bold")
    _legend(axes, left)
    for y, row in enumerate(layout.rows):
        axes.text(left, y, row.label, fontsize=_SIZE, va="center", style="italic" if row.folded else "normal")
        axes.text(middle, y, _short(row), fontsize=_SIZE, va="center", family="monospace", color="0.45")
        ends = [lanes[rail.lane] for rail in layout.rails for stop in rail.stops if stop.row == y and not row.folded]
        if ends:
            start = middle + _width([_short(row)], mono=True) + 0.15
            axes.plot([start, max(ends)], [y, y], color="0.85", linewidth=0.8, zorder=1)
    colours = _colours(layout.rails)
    for rail in layout.rails:
        _rail(axes, rail, lanes[rail.lane], colours[rail.root])
    return figure_of(axes)


def _legend(axes: Axes, x: float) -> None:
    stops = {
        "first axis (mostly outputs)": (True, False),
        "later axis (mostly inputs)": (False, True),
        "both": (True, True),
    }
    for text, (first, later) in stops.items():
        _stop(axes, x + 0.05, -1.5, "0.3", first=first, later=later)
        axes.text(x + 0.17, -1.5, text, fontsize=_SIZE, va="center", color="0.3")
        x += _width([text]) + 0.45


def _rail(axes: Axes, rail: Rail, x: float, colour: str) -> None:
    start, end, wide = rail.stops[0].row, rail.stops[-1].row, 1.2 if rail.inner else 3.0
    axes.plot([x, x], [start, end], color=colour, linewidth=wide, zorder=2)
    axes.text(x - 0.05, start - 0.46, rail.label, fontsize=_SIZE, va="center", color=_darker(colour))
    for stop in rail.stops:
        if stop.first or stop.later:
            _stop(axes, x, stop.row, colour, first=stop.first, later=stop.later)
        else:
            axes.plot([x, x], [stop.row - 0.3, stop.row + 0.3], ":", color="white", linewidth=wide, zorder=3)


def _stop(axes: Axes, x: float, y: float, colour: str, *, first: bool, later: bool) -> None:
    if later:
        axes.plot([x], [y], "o", ms=8, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.6, zorder=4)
    if first:
        axes.plot([x], [y], "o", ms=3 if later else 7, color=colour, markeredgewidth=0, zorder=5)


def _short(row: Row) -> str:
    return row.pattern if len(row.pattern) <= _LONGEST else row.pattern[: _LONGEST - 1] + "…"


def _darker(colour: str) -> tuple[float, ...]:
    """A colour that thin letters can have on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.7 * part for part in to_rgb(colour))


def _width(texts: Iterable[str], *, mono: bool = False) -> float:
    """The width in inches of the widest text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="monospace" if mono else None, size=_SIZE)
    widths = [text_to_path.get_text_width_height_descent(text, font, False)[0] for text in texts if text]
    return max(widths, default=0) / _INCH


def _colours(rails: Sequence[Rail]) -> dict[str, str]:
    """A colour for each group: in turn, without those of the groups that run beside it."""
    spans: dict[str, tuple[int, int]] = {}
    for rail in rails:
        start, end = spans.get(rail.root, (rail.stops[0].row, rail.stops[-1].row))
        spans[rail.root] = (min(start, rail.stops[0].row), max(end, rail.stops[-1].row))
    colours: dict[str, str] = {}
    for i, (root, (start, end)) in enumerate(spans.items()):
        beside = {colours[other] for other in colours if spans[other][0] <= end + 1 and start <= spans[other][1] + 1}
        turn = [*PALETTE[i % len(PALETTE) :], *PALETTE[: i % len(PALETTE)]]
        colours[root] = next((colour for colour in turn if colour not in beside), turn[0])
    return colours

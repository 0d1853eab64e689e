"""What all figures share: colours, lines, panels, and how axes look."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count as numbers
from itertools import cycle, starmap
from math import ceil
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import SpecError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart; yellow is too faint on white."""

SMALL = 9
"""Points: of the letters of legends and notes."""


_HANDLE, _LETTER, _ROW = 0.72, 0.071, 0.21
"""Inches in a legend: a line or mark with what is around it, a letter, from row to row."""


Stroke = str | tuple[float, tuple[float, ...]]
"""How matplotlib names the dashes of a line."""


Drawn = TypeVar("Drawn")


def by_label(given: Drawn | Mapping[str, Drawn], kind: type[Drawn]) -> dict[str, Drawn]:
    """Return results by label; a single one has the label ``""``.

    Raises:
        SpecError: If there is none, or they are no results of the kind.

    Example:
        >>> by_label([0.5, 1.5], float)
        Traceback (most recent call last):
        autoperm.errors.SpecError: a list cannot be drawn here; give a float, or a dictionary label -> float
    """
    named = {"": given} if isinstance(given, kind) else given
    if not isinstance(named, Mapping) or not all(isinstance(item, kind) for item in named.values()):
        raise SpecError(
            f"a {type(given).__name__} cannot be drawn here; give a {kind.__name__}, or a dictionary label -> "
            f"{kind.__name__}"
        )
    if not named:
        raise SpecError(f"there is nothing to draw; give a {kind.__name__}, or a dictionary label -> {kind.__name__}")
    return dict(named)


class Look(NamedTuple):
    """How a line is drawn: in a print in grey the stroke and the marker are left."""

    colour: str
    stroke: Stroke
    marker: str


LOOKS = {
    "naive": Look("#E69F00", "--", "o"),
    "aligned": Look("#0072B2", "-", "o"),
    "aligned + re-estimated": Look("#009E73", "-.", "s"),
    "aligned + REPAIR": Look("#D55E00", (0, (4, 1, 1, 1, 1, 1)), "D"),
    "ensemble": Look("#000000", ":", "^"),
}
"""What papers compare looks the same in every figure."""

_STROKES: tuple[Stroke, ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Choose how the line of each label is drawn: as everywhere, or in a colour that no other line has.

    Example:
        >>> looks(["mine", "aligned"])["mine"].colour != looks(["aligned"])["aligned"].colour
        True
    """
    labels = list(labels)
    fixed = {label: LOOKS[label] for label in labels if label in LOOKS}
    colours = [colour for colour in PALETTE if colour not in {look.colour for look in fixed.values()}]
    markers = [marker for marker in _MARKERS if marker not in {look.marker for look in fixed.values()}]
    others = [label for label in labels if label not in LOOKS]
    free = zip(cycle(colours), cycle(_STROKES), cycle(markers), strict=False)
    chosen = {**fixed, **dict(zip(others, starmap(Look, free), strict=False))}
    return {label: chosen[label] for label in labels}


def letters(count: int) -> list[str]:
    """Name models: A, B, C, as far as the alphabet goes; else by number.

    Example:
        >>> letters(3)
        ['A', 'B', 'C']
    """
    return [chr(ord("A") + i) if count <= 26 else str(i) for i in range(count)]


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches, whose panels find their places themselves.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
    return Figure(figsize=(width, height), layout="constrained")


def new_panels(
    count: int, axes: Axes | Sequence[Axes] | None, what: str, *, size: tuple[float, float] = (3.5, 3.0)
) -> list[Axes]:
    """Return axes to draw on, one for each of ``count`` panels: those given, or those of a new figure, side by side.

    Args:
        count: how many.
        axes: those given, if any.
        what: what the panels are for, in the message of an error.
        size: of one panel in inches.

    Raises:
        SpecError: if the number of axes given is another.
        ImportError: if matplotlib is not installed.
    """
    if axes is None:
        figure = new_figure(size[0] * max(count, 1.3), size[1])
        return [figure.add_subplot(1, count, i + 1) for i in range(count)]
    return given_panels(count, axes, what)


def given_panels(count: int, axes: Axes | Sequence[Axes], what: str) -> list[Axes]:
    """Return axes that were given, which must be as many as there are panels.

    Raises:
        SpecError: if they are not.
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.axes import Axes
    except ModuleNotFoundError as error:
        raise missing_matplotlib() from error
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


def title_of(axes: Axes, title: str | None) -> None:
    """Write a title above axes, at the left; nothing if there is none."""
    if title is not None:
        axes.set_title(title, loc="left", fontsize=SMALL + 1)


def legend(axes: Axes, handles: Sequence[Artist], *, outside: bool) -> None:
    """Explain lines and marks, if there are any to explain.

    Args:
        axes: where they are.
        handles: lines and marks with their labels.
        outside: above all panels of the figure, where nothing can be hidden; else in the axes.
    """
    if not handles:
        return
    if not outside:
        axes.legend(handles=handles, frameon=False, fontsize=SMALL, handlelength=3)
        return
    figure = figure_of(axes)
    widths = [_HANDLE + _LETTER * len(str(handle.get_label())) for handle in handles]
    rows = next(rows for rows in numbers(1) if rows == len(widths) or _filled(widths, rows) <= figure.get_figwidth())
    figure.set_figheight(figure.get_figheight() + _ROW * rows)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=ceil(len(handles) / rows),
        frameon=False,
        fontsize=SMALL,
        handlelength=3,
    )


def _filled(widths: Sequence[float], rows: int) -> float:
    """The width of a legend that is filled column by column."""
    return sum(max(widths[i : i + rows]) for i in range(0, len(widths), rows))


def figure_of(axes: Axes) -> Figure:
    """Return the figure that axes belong to.

    Raises:
        SpecError: if they were removed from it.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise SpecError("the axes belong to no figure; they were removed from it. Give axes of a figure")
    return figure


def saved(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """Save a figure where a path says, in the format of its ending; return it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def missing_matplotlib() -> ImportError:
    """Return the error to raise without matplotlib."""
    return ImportError('drawing needs matplotlib; install it with: pip install "autoperm[plot]"')

"""Metrics along a path, and how far it rises above its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Literal

from .errors import SpecError, quoted
from .results import Result, check_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reference = Literal["mean", "chord"]
"""What a barrier is measured from: the mean of the ends, or the straight line between them."""

REFERENCES: tuple[Reference, ...] = ("mean", "chord")


@dataclass(frozen=True)
class Curve(Result):
    """Metrics along the path theta(lam) = (1 - lam) theta_A + lam theta_B, or along a chain of such paths.

    Attributes:
        lam: Positions, rising from 0 (model A) to 1 (model B).
        metrics: By metric, one value per position, in the unit of the evaluation.
        higher_is_better: Names of the metrics for which more is better, such as accuracy.
        nodes: Positions of the models; more than two for a chain of straight paths from model to model.

    Raises:
        SpecError: If the positions do not rise from 0 to 1, a metric has another number of values, or a model is at
            no position.

    Example:
        >>> curve = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (0.25, 1.0, 0.75)})
        >>> curve.barrier(), curve.barrier(reference="chord")
        (0.5, 0.5)
        >>> print(curve)
           lam        loss
          0.00        0.25
          0.50           1
          1.00        0.75
        barrier
          mean         0.5
         chord         0.5
    """

    lam: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    higher_is_better: tuple[str, ...] = ("accuracy",)
    nodes: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check that positions and values belong together."""
        rising = all(x < y for x, y in zip(self.lam, self.lam[1:], strict=False))
        if len(self.lam) < 2 or self.lam[0] != 0.0 or self.lam[-1] != 1.0 or not rising:
            raise SpecError(f"the positions lam must rise from 0 to 1, but are {self.lam}")
        check_metrics(self.metrics, len(self.lam), "positions lam")
        ends = len(self.nodes) > 1 and self.nodes[0] == 0.0 and self.nodes[-1] == 1.0
        if not ends or list(self.nodes) != sorted({*self.nodes} & {*self.lam}):
            raise SpecError(f"the nodes must rise from 0 to 1 and be among the positions lam, but are {self.nodes}")

    def barrier(self, metric: str = "loss", *, reference: Reference = "mean") -> float:
        """Return how far the path rises above its ends, in the unit of the metric.

        ``reference="mean"`` (Git Re-Basin) compares with the mean of the two ends,

            max_lam L(lam) - (L(0) + L(1)) / 2

        and ``reference="chord"`` (Entezari et al.; Sharma et al.) with the straight line between them,

            max_lam L(lam) - [(1 - lam) L(0) + lam L(1)]

        The two agree if both ends are equally good. If not, "mean" is at least |L(0) - L(1)| / 2, because the
        worse end is itself on the path, so that it can never be 0; "chord" is never negative and is 0 for a
        convex curve. The barrier of a chain is the highest one of its legs.
        For a metric in ``higher_is_better`` the signs are flipped: accuracy gives the error barrier.
        The maximum is over the evaluated positions.

        Args:
            metric: Name of the metric.
            reference: What to compare with: ``"mean"`` or ``"chord"``.

        Raises:
            SpecError: If there is no such metric or reference; the message lists the valid ones.

        Example:
            >>> downhill = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (1.0, 0.5, 0.0)})
            >>> downhill.barrier(), downhill.barrier(reference="chord")
            (0.5, 0.0)

        Reference:
            "mean": Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
            arXiv 2209.04836 (2023), Definition 2.2.
            "chord": Entezari, Sedghi, Saukh and Neyshabur, "The Role of Permutation Invariance in Linear Mode
            Connectivity of Neural Networks", arXiv 2110.06296 (2022), Equation 1; used by Sharma et al.,
            "Simultaneous Linear Connectivity of Neural Networks Modulo Permutation", arXiv 2404.06498 (2024).
        """
        if metric not in self.metrics:
            raise SpecError(f"the curve has no metric '{metric}'; it has {quoted(self.metrics)}")
        if reference not in REFERENCES:
            raise SpecError(f"there is no reference '{reference}' for a barrier; choose from {quoted(REFERENCES)}")
        if len(self.nodes) > 2:
            return max(leg.barrier(metric, reference=reference) for leg in self.legs)
        sign = -1.0 if metric in self.higher_is_better else 1.0
        values = [sign * value for value in self.metrics[metric]]
        start, end = values[0], values[-1]
        if reference == "mean":
            return max(values) - (start + end) / 2
        return max(value - _chord(start, end, lam) for value, lam in zip(values, self.lam, strict=True))

    @property
    def legs(self) -> tuple[Curve, ...]:
        """The curves from each model of a chain to the next; of a straight path itself alone.

        Example:
            >>> chain = Curve((0.0, 0.25, 0.5, 1.0), {"loss": (0.0, 2.0, 1.0, 0.0)}, nodes=(0.0, 0.5, 1.0))
            >>> chain.legs[0].lam, chain.legs[0].metrics["loss"]
            ((0.0, 0.5, 1.0), (0.0, 2.0, 1.0))
        """
        if len(self.nodes) == 2:
            return (self,)
        found = []
        for start, end in pairwise(self.nodes):
            first, last = self.lam.index(start), self.lam.index(end)
            lam = (0.0, *((x - start) / (end - start) for x in self.lam[first + 1 : last]), 1.0)
            metrics = {name: values[first : last + 1] for name, values in self.metrics.items()}
            found.append(Curve(lam, metrics, self.higher_is_better))
        return tuple(found)

    def records(self) -> list[dict[str, float]]:
        """Return one row for each position, as ``pandas.DataFrame`` takes them.

        Example:
            >>> Curve(lam=(0.0, 1.0), metrics={"loss": (0.5, 0.25)}).records()
            [{'lam': 0.0, 'loss': 0.5}, {'lam': 1.0, 'loss': 0.25}]
        """
        rows = zip(self.lam, *self.metrics.values(), strict=True)
        return [dict(zip(("lam", *self.metrics), row, strict=True)) for row in rows]

    def draw(self, path: str | PathLike[str] | None = None, *, metrics: Sequence[str] | None = None) -> Figure:
        """Draw the metrics along the path; see :func:`autoperm.plot.curve`. Needs matplotlib.

        Args:
            path: where to save the picture; the ending says in which format.
            metrics: which metrics to draw; by default all.

        Returns:
            The figure drawn on.
        """
        from .plot import curve, saved

        return saved(curve(self, metrics=metrics), path)

    def __str__(self) -> str:
        """Show the models, the quarters and the barriers in both definitions as a table."""
        last = len(self.lam) - 1
        rows = sorted({round(last * quarter / 4) for quarter in range(5)} | {*map(self.lam.index, self.nodes)})
        widths = {name: max(12, len(name) + 2) for name in self.metrics}
        lines = [_row("lam", {name: name for name in widths}, widths)]
        for i in rows:
            cells = {name: f"{values[i]:.4g}" for name, values in self.metrics.items()}
            lines.append(_row(f"{self.lam[i]:.2f}", cells, widths))
        lines.append("barrier")
        for reference in REFERENCES:
            # Adding 0.0 keeps "-0" out of the table.
            cells = {name: f"{self.barrier(name, reference=reference) + 0.0:.4g}" for name in widths}
            lines.append(_row(reference, cells, widths))
        return "\n".join(lines)


def check_points(points: int) -> None:
    """Check the number of positions on a path.

    Raises:
        SpecError: if it is no whole number, or does not suffice for both ends.

    Example:
        >>> check_points(1)
        Traceback (most recent call last):
        autoperm.errors.SpecError: points is 1, but must be a whole number of at least 2, for the ends of a path
    """
    if not isinstance(points, int) or points < 2:
        raise SpecError(f"points is {points}, but must be a whole number of at least 2, for the ends of a path")


def _chord(start: float, end: float, lam: float) -> float:
    # From the nearer end, so that both ends, and every point of a level line, are exact.
    return start + lam * (end - start) if lam < 0.5 else end - (1.0 - lam) * (end - start)


def _row(head: str, cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return f"{head:>6}" + "".join(f"{cells[name]:>{width}}" for name, width in widths.items())

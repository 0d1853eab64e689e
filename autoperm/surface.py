"""Metrics over the simplex between three models or more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from .curves import REFERENCES, Curve, Reference
from .errors import SpecError, quoted
from .results import Result, check_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Surface(Result):
    """Metrics of theta(w) = sum_i w_i theta_i at points w of a simplex.

    Attributes:
        weights: for each point one weight for each model; they are not negative and sum to 1. A corner of the simplex,
            where one weight is 1, is that model.
        metrics: by metric, one value for each point, in the unit of the evaluation.
        higher_is_better: names of the metrics for which more is better.

    Raises:
        SpecError: if weights are negative or do not sum to 1, points come twice, or a metric has another number of
            values.

    Example:
        >>> corners = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        >>> surface = Surface((*corners, (0.25, 0.25, 0.5)), {"loss": (0.5, 0.75, 1.0, 2.0)})
        >>> surface.barrier(), surface.barrier(reference="chord")
        (1.25, 1.1875)
        >>> print(surface)
              weights        loss
                1 0 0         0.5
                0 1 0        0.75
                0 0 1           1
        0.25 0.25 0.5           2
                worst           2
        barrier
                 mean        1.25
                chord       1.188
    """

    weights: tuple[tuple[float, ...], ...]
    metrics: Mapping[str, tuple[float, ...]]
    higher_is_better: tuple[str, ...] = ("accuracy",)

    def __post_init__(self) -> None:
        """Check that weights and values belong together."""
        if not self.weights:
            raise SpecError("a surface needs at least one point")
        for weights in self.weights:
            if len(weights) != self.models or self.models < 2:
                raise SpecError(
                    f"the point {weights} has {len(weights)} weights, and the first one {self.models}; all need as "
                    "many, 2 or more"
                )
            if not min(weights) >= 0.0 or not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-9):
                raise SpecError(f"the weights of a point must not be negative and sum to 1, but are {weights}")
        if len({*self.weights}) != len(self.weights):
            raise SpecError("the same point of the simplex comes twice")
        check_metrics(self.metrics, len(self.weights), "points")

    @property
    def models(self) -> int:
        """Number of models."""
        return len(self.weights[0])

    def barrier(self, metric: str = "loss", *, reference: Reference = "mean") -> float:
        """Return how far the simplex rises above its corners, in the unit of the metric.

        ``reference="mean"`` compares with the mean of the corners, ``max_w L(w) - mean_i L(e_i)``, and
        ``reference="chord"`` with the plane through them, ``max_w L(w) - sum_i w_i L(e_i)``. On an edge, and between
        two models everywhere, the latter is that of :meth:`Curve.barrier <autoperm.Curve.barrier>`, so that the barrier
        of a simplex is at least that of each of its edges.
        For a metric in ``higher_is_better`` the signs are flipped. The maximum is over the evaluated points.

        Args:
            metric: name of the metric.
            reference: what to compare with: ``"mean"`` or ``"chord"``.

        Raises:
            SpecError: if there is no such metric or reference, or a corner is not among the points.
        """
        if metric not in self.metrics:
            raise SpecError(f"the surface has no metric '{metric}'; it has {quoted(self.metrics)}")
        if reference not in REFERENCES:
            raise SpecError(f"there is no reference '{reference}' for a barrier; choose from {quoted(REFERENCES)}")
        missing = [i for i, corner in enumerate(self._corners()) if corner not in self.weights]
        if missing:
            raise SpecError(f"a barrier is above the corners, but the surface has no value at model {missing[0]}")
        sign = -1.0 if metric in self.higher_is_better else 1.0
        values = [sign * value for value in self.metrics[metric]]
        corners = [values[self.weights.index(corner)] for corner in self._corners()]
        if reference == "mean":
            return max(values) - _plane(corners, [1 / len(corners)] * len(corners))
        return max(value - _plane(corners, weights) for value, weights in zip(values, self.weights, strict=True))

    def edge(self, i: int, j: int) -> Curve:
        """Return the metrics on the path from one model to another, counted from 0.

        Raises:
            SpecError: if there are no such two models.

        Example:
            >>> surface = Surface(((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)), {"loss": (0.0, 2.0, 1.0)})
            >>> surface.edge(1, 0).metrics["loss"]
            (1.0, 2.0, 0.0)
        """
        if i == j or not {i, j} <= {*range(self.models)}:
            raise SpecError(f"there is no edge from model {i} to model {j}; models count from 0 to {self.models - 1}")
        others = [k for k in range(self.models) if k not in (i, j)]
        found = [at for at, weights in enumerate(self.weights) if not any(weights[k] for k in others)]
        found.sort(key=lambda at: self.weights[at][j])
        metrics = {name: tuple(values[at] for at in found) for name, values in self.metrics.items()}
        return Curve(tuple(self.weights[at][j] for at in found), metrics, self.higher_is_better)

    def records(self) -> list[dict[str, float]]:
        """Return one row for each point, as ``pandas.DataFrame`` takes them.

        Example:
            >>> Surface(((1.0, 0.0), (0.0, 1.0)), {"loss": (0.5, 0.25)}).records()[0]
            {'weight 0': 1.0, 'weight 1': 0.0, 'loss': 0.5}
        """
        names = [*(f"weight {i}" for i in range(self.models)), *self.metrics]
        rows = zip(self.weights, *self.metrics.values(), strict=True)
        return [dict(zip(names, (*weights, *values), strict=True)) for weights, *values in rows]

    def draw(
        self,
        path: str | PathLike[str] | None = None,
        *,
        metric: str | None = None,
        models: Sequence[int] | None = None,
    ) -> Figure:
        """Draw a metric over the simplex; see :func:`autoperm.plot.surface`. Needs matplotlib.

        Args:
            path: where to save the picture; the ending says in which format.
            metric: which metric to draw; by default the first one, of the split "test" if there is one.
            models: which three models to draw, where there are more.

        Returns:
            The figure drawn on.
        """
        from .plot import saved, surface

        if metric is None:
            metric = next((name for name in self.metrics if name.startswith("test ")), next(iter(self.metrics)))
        return saved(surface(self, metric, models=models), path)

    def __str__(self) -> str:
        """Show the corners, the point nearest the centre, the worst values and the barriers as a table."""
        corners = [corner for corner in self._corners() if corner in self.weights]
        centre = min(self.weights, key=lambda weights: math.dist(weights, [1 / self.models] * self.models))
        table: dict[str, dict[str, float]] = {"weights": {}}
        for weights in (*corners, centre):
            at = self.weights.index(weights)
            label = " ".join(f"{weight:.3g}" for weight in weights)
            table[label] = {name: values[at] for name, values in self.metrics.items()}
        better = self.higher_is_better
        table["worst"] = {name: (min if name in better else max)(values) for name, values in self.metrics.items()}
        if len(corners) == self.models:
            table["barrier"] = {}
            for reference in REFERENCES:
                # Adding 0.0 keeps "-0" out of the table.
                table[reference] = {name: self.barrier(name, reference=reference) + 0.0 for name in self.metrics}
        head = max(map(len, table))
        widths = {name: max(12, len(name) + 2) for name in self.metrics}
        lines = []
        for label, values in table.items():
            shown = {name: f"{value:.4g}" for name, value in values.items()}
            if label == "weights":
                shown = {name: name for name in widths}
            cells = "".join(f"{shown[name]:>{widths[name]}}" for name in shown)
            lines.append(label if label == "barrier" else f"{label:>{head}}{cells}")
        return "\n".join(lines)

    def _corners(self) -> list[tuple[float, ...]]:
        return [tuple(float(i == j) for j in range(self.models)) for i in range(self.models)]


def _plane(corners: Sequence[float], weights: Sequence[float]) -> float:
    # From the nearest corner, so that all corners, and every point of a level plane, are exact.
    nearest = max(range(len(corners)), key=lambda i: weights[i])
    start = corners[nearest]
    return start + math.fsum(weight * (corner - start) for weight, corner in zip(weights, corners, strict=True))

"""Metrics over the simplex between three models or more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .results import Result


@dataclass(frozen=True)
class Surface(Result):
    """Metrics of theta(w) = sum_i w_i theta_i at points w of a simplex.

    Attributes:
        weights: for each point one weight for each model; they are not negative and sum to 1.
        metrics: by metric, one value for each point, in the unit of the evaluation.
        higher_is_better: names of the metrics for which more is better.
    """

    weights: tuple[tuple[float, ...], ...]
    metrics: Mapping[str, tuple[float, ...]]
    higher_is_better: tuple[str, ...] = ("accuracy",)

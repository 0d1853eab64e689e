"""Barriers of many pairs, and how sure their mean is."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Result


@dataclass(frozen=True)
class Estimate(Result):
    """A mean over pairs of models, with a confidence interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: share of experiments whose interval holds the true mean, such as 0.95.
        values: of the pairs.
    """

    value: float
    low: float
    high: float
    confidence: float
    values: tuple[float, ...]

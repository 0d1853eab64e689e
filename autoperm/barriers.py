"""Barriers of many pairs, and how sure their mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .curves import Curve, Reference
from .errors import SpecError
from .results import Result


@dataclass(frozen=True)
class Estimate(Result):
    """A mean over pairs of models, with a confidence interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: share of experiments whose interval should hold the true mean, such as 0.95.
        values: of the pairs.
        pairs: for each value the numbers of the two models, where pairs share models; None where no two pairs do.
        method: ``"bootstrap"``, or ``"t"`` where there is too little to resample.

    Example:
        >>> print(Estimate(0.5, 0.25, 0.75, 0.95, (0.25, 0.75)))
        0.5 [0.25, 0.75], 95 % interval of 2 pairs
    """

    value: float
    low: float
    high: float
    confidence: float
    values: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...] | None = None
    method: str = "bootstrap"

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each pair, as ``pandas.DataFrame`` takes them; the models' numbers are there if known.

        Example:
            >>> Estimate(0.5, 0.25, 0.75, 0.95, (0.25, 0.75)).records()
            [{'value': 0.25}, {'value': 0.75}]
        """
        if self.pairs is None:
            return [{"value": value} for value in self.values]
        return [{"a": a, "b": b, "value": value} for (a, b), value in zip(self.pairs, self.values, strict=True)]

    def __str__(self) -> str:
        """Show the mean, the interval, and of how many pairs it is."""
        models = "" if self.pairs is None else f" of {len({i for pair in self.pairs for i in pair})} models"
        interval = f"[{self.low:.4g}, {self.high:.4g}], {self.confidence * 100:.4g} % interval"
        return f"{self.value:.4g} {interval} of {len(self.values)} pairs{models}"


def mean_barrier(
    curves: Sequence[Curve],
    metric: str = "loss",
    *,
    reference: Reference = "mean",
    minus: Sequence[Curve] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    r"""Return the mean barrier of several pairs of models, and a bootstrap interval for it.

    The interval is about the mean over all pairs that could have been trained, not about the pairs there are. It says
    nothing about the noise of one test set, which all pairs share.

    What is resampled must be independent of each other. Without ``pairs`` that is each curve. Curves between every two
    of a few models are not: one bad model raises all of its barriers. Give ``pairs``, and models are resampled instead,
    by their pseudo-values

    .. math:: n \bar B - (n - 1) \bar B_{-i}

    where :math:`\bar B_{-i}` is the mean over the pairs without model i.

    The interval is that of percentiles, expanded so that its width fits that of Student's t. A percentile interval lies
    between the smallest and the largest value, so that of n values it holds the mean at best in a share 1 - 2^(1-n) of
    experiments, 75 % of them for n = 3. Where that is less than ``confidence`` (5 values or fewer, for 95 %), Student's
    t interval is given instead, and ``method`` says so. This is how often 95 % intervals hold the mean, measured by
    ``benchmarks/intervals.py`` on 2000 draws each, with plain percentile intervals in brackets:

    ======== ============ ============ ============
    values   normal       exponential  log-normal
    ======== ============ ============ ============
    3        0.95 (0.76)  0.88 (0.69)  0.84 (0.64)
    5        0.94 (0.83)  0.88 (0.78)  0.84 (0.73)
    10       0.94 (0.90)  0.91 (0.86)  0.86 (0.81)
    20       0.95 (0.92)  0.93 (0.91)  0.88 (0.85)
    50       0.95 (0.94)  0.93 (0.92)  0.90 (0.89)
    ======== ============ ============ ============

    So do not trust few values that are skewed, as small barriers are. Bias-corrected and accelerated intervals (BCa)
    hold the mean less often for 10 values or fewer, and as often for more. Resampling models does as well where a
    barrier is the sum of what its two models bring, and errs to the wide side where it is not.

    Args:
        curves: one for each pair of models, with :func:`~autoperm.interpolate`.
        metric: name of the metric.
        reference: what a barrier is measured from, as for :meth:`Curve.barrier`.
        minus: curves of the same pairs by another method, whose barriers are subtracted pair by pair: is one method
            better than the other? Differences of the same pairs vary less than barriers do.
        pairs: for each curve the numbers of its two models, if pairs share models.
        confidence: of the interval.
        resamples: how often to resample.
        seed: of the resampling.

    Raises:
        SpecError: if there are fewer than two curves, if numbers of curves and pairs differ, if every pair has the same
            model, or if a curve lacks the metric.

    Example:
        >>> bump = lambda height: Curve((0.0, 0.5, 1.0), {"loss": (0.0, height, 0.0)})
        >>> naive = [bump(height) for height in (1.5, 2.0, 1.0, 1.25, 1.75, 1.0)]
        >>> aligned = [bump(height) for height in (0.5, 1.0, 0.25, 0.5, 1.0, 0.0)]
        >>> print(mean_barrier(aligned))
        0.5417 [0.125, 0.9167], 95 % interval of 6 pairs
        >>> print(mean_barrier(naive, minus=aligned))
        0.875 [0.75, 1], 95 % interval of 6 pairs

    References:
        Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69 (2015).
        Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), Chapter 11, for pseudo-values.
    """
    if not 0 < confidence < 1:
        raise SpecError(f"confidence is {confidence}, but must be between 0 and 1, such as 0.95")
    if resamples < 1:
        raise SpecError(f"resamples is {resamples}, but must be at least 1")
    if isinstance(curves, Curve) or len(curves) < 2:
        count = 1 if isinstance(curves, Curve) else len(curves)
        raise SpecError(
            f"an interval needs 2 curves or more, and got {count}: one pair does not show how much pairs differ"
        )
    values = _barriers(curves, metric, reference)
    if minus is not None:
        _check_length(minus, "minus", curves)
        values = [value - other for value, other in zip(values, _barriers(minus, metric, reference), strict=True)]
    units = np.array(values)
    if pairs is not None:
        pairs = tuple((int(a), int(b)) for a, b in pairs)
        _check_length(pairs, "pairs", curves)
        same = [a for a, b in pairs if a == b]
        if same:
            raise SpecError(f"pairs has model {same[0]} with itself")
        shared = len({i for pair in pairs for i in pair}) < 2 * len(pairs)
        pairs = pairs if shared else None
    if pairs is not None:
        units = _pseudo_values(units, pairs)
    low, high, method = _interval(units, confidence, resamples, seed)
    return Estimate(float(np.mean(values)), low, high, confidence, tuple(values), pairs, method)


def _barriers(curves: Sequence[Curve], metric: str, reference: Reference) -> list[float]:
    for curve in curves:
        if not isinstance(curve, Curve):
            raise SpecError(f"the curves include a {type(curve).__name__}; give what interpolate returns for each pair")
    return [curve.barrier(metric, reference=reference) for curve in curves]


def _pseudo_values(values: npt.NDArray[np.float64], pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """What each model brings to the mean, by leaving out its pairs; their mean is that of the values."""
    models = sorted({i for pair in pairs for i in pair})
    found: list[float] = []
    for model in models:
        without = [value for value, pair in zip(values, pairs, strict=True) if model not in pair]
        if not without:
            raise SpecError(
                f"every pair has model {model}, so the mean is about this model alone; leave pairs out to resample the "
                "models it is paired with, or add pairs without it"
            )
        found.append(float(len(models) * values.mean() - (len(models) - 1) * np.mean(without)))
    shift = float(values.mean()) - sum(found) / len(found)
    return np.array(found) + shift  # where models have different numbers of pairs, the means differ


def _interval(units: npt.NDArray[np.float64], confidence: float, resamples: int, seed: int) -> tuple[float, float, str]:
    """The ends of a confidence interval of the mean of independent values, and how they were found."""
    from scipy import stats  # takes half a second, and few need it

    n, mean = len(units), float(units.mean())
    if np.ptp(units) <= 1e-12 * np.abs(units).max():
        return mean, mean, "bootstrap"
    if 1 - 2.0 ** (1 - n) < confidence:
        low, high = stats.t.interval(confidence, n - 1, mean, units.std(ddof=1) / math.sqrt(n))
        return float(low), float(high), "t"
    quantile = stats.t.ppf((1 + confidence) / 2, n - 1)
    expanded = 1 - 2 * stats.norm.cdf(-math.sqrt(n / (n - 1)) * quantile)
    found = stats.bootstrap(
        (units,),
        np.mean,
        n_resamples=resamples,
        confidence_level=expanded,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high), "bootstrap"


def _check_length(given: Sequence[object], name: str, curves: Sequence[Curve]) -> None:
    if len(given) != len(curves):
        raise SpecError(f"there are {len(curves)} curves, but {name} has {len(given)} entries; give one for each")

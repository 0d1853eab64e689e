"""How often intervals of :func:`autoperm.mean_barrier` hold the true mean: ``python benchmarks/intervals.py``.

Barriers are drawn from a normal, an exponential and a log-normal distribution: for pairs of models of their own; and
for all pairs of a few models, as the sum of what the two models bring, alone and with as much noise of the pair. It
prints the shares of 95 % intervals, of 2000 draws each, beside those of plain percentiles and of BCa. That takes a few
minutes.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from itertools import combinations

import numpy as np
from scipy.stats import bootstrap
from tqdm import tqdm

from autoperm import Curve, mean_barrier

KINDS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: 10 + rng.normal(size=n), 10.0),  # so far from 0 that no barrier is negative
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "log-normal": (lambda rng, n: rng.lognormal(size=n), math.exp(0.5)),
}
"""What is drawn, and its mean."""

RESAMPLES = 999


def of_pairs(kind: str, count: int, draws: int) -> dict[str, float]:
    """By method, the share of intervals that hold the true mean, of ``count`` pairs that share no model."""
    rng = np.random.default_rng(0)
    draw, mean = KINDS[kind]
    hits = dict.fromkeys(("expanded or t", "percentile", "BCa"), 0)
    for seed in tqdm(range(draws), f"{kind} {count}", leave=False):
        values = draw(rng, count)
        found = mean_barrier([curve(value) for value in values], resamples=RESAMPLES, seed=seed)
        hits["expanded or t"] += found.low <= mean <= found.high
        for method in ("percentile", "BCa"):
            random = np.random.default_rng(seed)
            plain = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method=method, random_state=random)
            hits[method] += plain.confidence_interval.low <= mean <= plain.confidence_interval.high
    return {method: number / draws for method, number in hits.items()}


def of_models(kind: str, count: int, draws: int, noise: float) -> float:
    """The share of intervals that hold the true mean, of all pairs of ``count`` models."""
    rng = np.random.default_rng(0)
    draw, mean = KINDS[kind]
    pairs = list(combinations(range(count), 2))
    hits = 0
    for seed in tqdm(range(draws), f"{kind} {count}", leave=False):
        models = draw(rng, count)
        values = np.array([models[i] + models[j] for i, j in pairs]) + noise * draw(rng, len(pairs))
        found = mean_barrier([curve(value) for value in values], pairs=pairs, resamples=RESAMPLES, seed=seed)
        hits += found.low <= (2 + noise) * mean <= found.high
    return hits / draws


def curve(barrier: float) -> Curve:
    return Curve((0.0, 0.5, 1.0), {"loss": (0.0, float(barrier), 0.0)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    warnings.filterwarnings("ignore", message=".*BCa.*")  # of three values some resamples have no such interval
    print("pairs that share no model")
    for count in (3, 5, 10, 20, 50):
        for kind in KINDS:
            shares = (f"{method} {share:.3f}" for method, share in of_pairs(kind, count, draws).items())
            print(f"  {count:3} {kind:12}", *shares, flush=True)
    for noise in (0.0, 1.0):
        print(f"all pairs of a few models, noise of the pair {noise}")
        for count in (3, 5, 10):
            for kind in KINDS:
                print(f"  {count:3} {kind:12} {of_models(kind, count, draws, noise):.3f}", flush=True)


if __name__ == "__main__":
    main()

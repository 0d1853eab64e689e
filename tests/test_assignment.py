"""Linear assignment: the best permutation, the same one every time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from autoperm.errors import WeightsError
from autoperm.matching import assignment
from autoperm.matching.assignment import Array, assign

SEEDS = st.integers(0, 2**32 - 1)
AUCTION = [pytest.param(False, id="small"), pytest.param(True, id="large")]


@contextmanager
def auctioning(always: bool) -> Iterator[None]:
    """Send problems of every size but the smallest through the auction, in many pieces."""
    with pytest.MonkeyPatch.context() as patch:
        if always:
            patch.setattr(assignment, "_AUCTION", 5)
            patch.setattr(assignment, "_PIECE", 64)
        yield


def every_sum(scores: Array) -> dict[tuple[int, ...], float]:
    n = len(scores)
    return {order: float(scores[range(n), order].sum()) for order in itertools.permutations(range(n))}


def gram(rng: np.random.Generator, n: int, shared: float) -> Array:
    """Inner products of the units of two networks, the more alike the more they share."""
    a, b = rng.normal(size=(2, n, 2 * n))
    return a @ (shared * a[rng.permutation(n)] + b).T


@pytest.mark.parametrize("auction", AUCTION)
@given(st.integers(0, 6), SEEDS, st.sampled_from([np.float32, np.float64]))
def test_no_permutation_is_better(auction: bool, n: int, seed: int, dtype: type) -> None:
    scores = np.random.default_rng(seed).normal(size=(n, n)).astype(dtype)
    before = scores.copy()
    with auctioning(auction):
        index, value = assign(scores)
    sums = every_sum(scores.astype(np.float64))
    assert sums[tuple(index.tolist())] == pytest.approx(max(sums.values()), rel=1e-12, abs=1e-12)
    assert float(value) == pytest.approx(max(sums.values()), rel=1e-12, abs=1e-12)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("auction", AUCTION)
@given(st.integers(5, 40), st.sampled_from([0.0, 0.05, 0.2, 1.0]), SEEDS)
def test_it_is_the_optimum_of_scipy(auction: bool, n: int, shared: float, seed: int) -> None:
    scores = gram(np.random.default_rng(seed), n, shared)
    with auctioning(auction):
        index, value = assign(scores)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    np.testing.assert_array_equal(index, columns)
    np.testing.assert_allclose(value, scores[rows, columns].sum(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shared", [0.0, 0.02])
def test_a_large_problem_is_solved_exactly(dtype: type, shared: float) -> None:
    scores = gram(np.random.default_rng(0), 700, shared).astype(dtype)
    assert len(scores) >= assignment._AUCTION
    for given_scores in (scores, np.asfortranarray(scores)):
        np.testing.assert_array_equal(assign(given_scores)[0], linear_sum_assignment(scores, maximize=True)[1])


def test_prices_make_augmenting_paths_short() -> None:
    """They are what makes a large problem fast: nearly every row's best column is then its own."""
    costs = -gram(np.random.default_rng(0), 600, 0.0)
    assert len(set(costs.argmin(1))) < 0.7 * len(costs)
    costs += assignment._prices(costs)
    _, columns = linear_sum_assignment(costs)
    regret = costs[range(len(costs)), columns] - costs.min(1)
    assert np.mean(regret) < 0.01 * np.mean(costs.mean(1) - costs.min(1))


@pytest.mark.parametrize("auction", AUCTION)
@given(st.integers(1, 12), st.lists(st.integers(0, 3), max_size=2), st.integers(1, 3), SEEDS)
def test_a_batch_is_its_problems_one_by_one(auction: bool, n: int, batch: list[int], top: int, seed: int) -> None:
    """Also where there are ties."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, top + 1, size=(*batch, n, n)).astype(np.float64)
    prefer = rng.permuted(np.broadcast_to(np.arange(n), (*batch, n)), axis=-1)
    with auctioning(auction):
        index, value = assign(scores, prefer)
        assert index.shape == (*batch, n)
        assert value.shape == tuple(batch)
        for place in np.ndindex(*batch):
            alone, sum_alone = assign(scores[place], prefer[place])
            np.testing.assert_array_equal(index[place], alone)
            np.testing.assert_array_equal(value[place], sum_alone)


@pytest.mark.parametrize("auction", AUCTION)
@given(st.integers(1, 6), st.integers(0, 3), SEEDS, st.booleans())
def test_of_equal_sums_the_one_that_keeps_most_is_taken(
    auction: bool, n: int, top: int, seed: int, identity: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, top + 1, size=(n, n)) / 3
    prefer = np.arange(n) if identity else rng.permutation(n)
    with auctioning(auction):
        index, _ = assign(scores, None if identity else prefer)
    sums = every_sum(scores)
    best = max(sums.values())
    kept = [int((np.array(order) == prefer).sum()) for order, value in sums.items() if value > best - 1e-9]
    assert (index == prefer).sum() == max(kept)


def test_units_that_are_exchangeable_stay_where_they_are() -> None:
    """A tenth of the units is dead on both sides: without a preference they would wander."""
    rng = np.random.default_rng(1)
    scores = gram(rng, 600, 0.0)
    current = linear_sum_assignment(scores, maximize=True)[1]
    dead = rng.choice(600, 60, replace=False)
    scores[dead] = 0.0
    scores[:, current[dead]] = 0.0
    current[dead] = rng.permuted(current[dead])
    found, value = assign(scores, prefer=current)
    np.testing.assert_array_equal(found[dead], current[dead])
    np.testing.assert_allclose(value, scores[range(600), found].sum(), rtol=1e-12)


@given(st.integers(2, 30), SEEDS)
def test_the_order_of_rows_and_columns_does_not_matter(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, n))
    rows, columns = rng.permutation(n), rng.permutation(n)
    index, value = assign(scores)
    moved, value_moved = assign(scores[rows][:, columns])
    np.testing.assert_array_equal(columns[moved], index[rows])
    np.testing.assert_allclose(value_moved, value, rtol=1e-12)


@pytest.mark.parametrize("n", [3, 5, 600])
@pytest.mark.parametrize("kind", ["equal", "zero-one", "one row"])
def test_many_ties_are_solved_too(n: int, kind: str) -> None:
    scores = np.zeros((n, n))
    if kind == "zero-one":
        scores = np.random.default_rng(0).integers(0, 2, size=(n, n)).astype(np.float64)
    elif kind == "one row":
        scores[:, 0] = 1.0
    index, value = assign(scores, prefer=np.roll(np.arange(n), 1))
    np.testing.assert_array_equal(np.sort(index), np.arange(n))
    rows, columns = linear_sum_assignment(scores, maximize=True)
    assert float(value) == scores[rows, columns].sum()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 3), (5, 2, 2), (6, 6)])
def test_scores_that_are_not_finite_are_refused(value: float, shape: tuple[int, ...]) -> None:
    scores = np.zeros(shape)
    scores[..., 1, 0] = value
    count = int(np.prod(shape[:-2]))
    with pytest.raises(WeightsError, match=rf"^{count} of {scores.size} scores .* NaN or infinite, .* row 1, column 0"):
        assign(scores)


def test_scores_whose_sum_overflows_are_finite() -> None:
    scores = np.full((2, 2), 3e38, dtype=np.float32)
    scores[0, 0] = 0.0
    assert assign(scores)[0].tolist() == [1, 0]


MEMORY = """
import numpy as np
from pathlib import Path
from autoperm.matching.assignment import assign
def peak():  # getrusage would count what the parent had when it started this process
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
scores = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)
assign(scores[:600, :600])
before = peak()
assign(scores)
print((peak() - before) / scores.size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it is Linux that says how much memory was needed")
def test_a_large_problem_takes_eight_bytes_a_score() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 6 < float(done.stdout) < 12

r"""Linear assignment: the step that every discrete matcher takes.

.. math:: \max_\pi \sum_i s_{i, \pi(i)}

scipy's shortest augmenting paths solve it, in :math:`O(n^3)` at worst. Two things are done before they are asked.

*   If the best columns of the rows are all different, they are the answer. So it is with models that are nearly
    aligned, and it takes one look at the scores.
*   Else, if the problem is large, an auction finds approximate prices for the columns: each row without a column bids
    for the one worth most to it, up to the point where the second best is as good, and a bit more. A price that is
    taken off a whole column changes what every permutation is worth by the same, so the answer stays exact, whatever
    the prices are; but with good ones the augmenting paths are short. On Gram matrices of 2048 and 4096 units that have
    no partners this took a half to a twelfth of scipy's time alone.

**Ties.** Among equally good permutations the one that keeps most of a preferred permutation is taken, by default the
identity; sums that differ by less than :math:`10^{-12} n \max |s|` count as equal. Units that are exchangeable (two
that are dead, say) then stay where they are, and coordinate descent does not wander among optima. What is still open is
settled by the scores alone: a problem has the same answer on every run, and in every batch.

**Memory.** Beside the scores, 8 bytes for each of them: scipy computes in float64. That is 2 GiB for n = 16384; a
batch is worked off in pieces.

References: Crouse, *On implementing 2D rectangular assignment algorithms*, IEEE Transactions on Aerospace and
Electronic Systems 52, 2016 (scipy's algorithm); Bertsekas, *The auction algorithm*, Annals of Operations Research 14,
1988.
"""

from __future__ import annotations

from itertools import permutations
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from ..errors import WeightsError

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.floating[Any]]

_TIE = 2.0**-40
"""What keeping a preferred position is worth, relative to the largest score."""

_TINY = 4
"""Problems up to this size are solved by looking at every permutation at once."""

_PIECE = 2**18
"""How many scores of a batch, or of a large problem, are looked at together: 2 MiB, about what a cache holds."""

_AUCTION = 512
"""From this size on an auction pays."""

_EPSILONS = (0.1, 0.02, 0.004, 0.0008)
"""What a bid goes beyond the point of indifference, relative to the spread of the scores."""

_UNSOLD = 0.02
"""The share of rows without a column at which a round of the auction ends: the last ones are the slowest."""

_PASSES = 40
"""The auction ends when it has looked at the whole matrix so often: with many ties it would go on and on."""


def assign(scores: Scores, prefer: npt.ArrayLike | None = None) -> tuple[Indices, Array]:
    """Maximise ``sum_i scores[..., i, index[i]]`` over permutations, exactly, for a batch of problems.

    Args:
        scores: shape ``(..., n, n)``, float32 or float64, in any memory layout; it is not changed.
        prefer: the permutations to stay close to among equally good ones, of a shape that broadcasts to ``(..., n)``;
            by default the identity.

    Returns:
        The permutations, shape ``(..., n)``, and their sums, shape ``(...)``, in float64.

    Raises:
        WeightsError: if a score is NaN or infinite.

    Example:
        >>> index, best = assign(np.array([[0.0, 1.0], [2.0, 0.0]]))
        >>> index.tolist(), float(best)
        ([1, 0], 3.0)
        >>> assign(np.zeros((3, 3)))[0].tolist()
        [0, 1, 2]
        >>> assign(np.zeros((3, 3)), prefer=[2, 0, 1])[0].tolist()
        [2, 0, 1]
    """
    batch, n = scores.shape[:-2], scores.shape[-1]
    flat = scores.reshape(prod(batch), n, n)
    _check(flat)
    kept = np.empty((*batch, n), dtype=np.int64)
    kept[...] = np.arange(n) if prefer is None else prefer
    kept, index = kept.reshape(len(flat), n), np.empty((len(flat), n), dtype=np.int64)
    piece = max(1, _PIECE // max(1, n * n))
    for start in range(0, len(flat), piece):
        here = slice(start, start + piece)
        index[here] = _solve(flat[here], kept[here])
    sums = flat[np.arange(len(flat))[:, None], np.arange(n), index].sum(-1, dtype=np.float64)
    return index.reshape(*batch, n), sums.reshape(batch)


def _check(flat: Scores) -> None:
    with np.errstate(all="ignore"):
        if np.isfinite(flat.sum()):
            return
    bad = ~np.isfinite(flat)
    if bad.any():
        problem, row, column = np.argwhere(bad)[0].tolist()
        of = f" of problem {problem}" if len(flat) > 1 else ""
        raise WeightsError(
            f"{int(bad.sum())} of {bad.size} scores of an assignment are NaN or infinite, the first in row {row}, "
            f"column {column}{of}; check the weights or the activations that were compared"
        )


def _solve(scores: Scores, prefer: Indices) -> Indices:
    """Solve some problems of one size."""
    count, n = prefer.shape
    costs = np.negative(scores, dtype=np.float64, order="C")
    scale = np.maximum(costs.max((1, 2), initial=0.0), -costs.min((1, 2), initial=0.0))
    bonus = _TIE * np.where(scale > 0, scale, 1.0)
    costs[np.arange(count)[:, None], np.arange(n), prefer] -= bonus[:, None]
    if n <= _TINY:
        every = np.array(list(permutations(range(n))), dtype=np.int64)
        best: Indices = every[costs[:, np.arange(n), every].sum(-1).argmin(-1)]
        return best
    index: Indices = costs.argmin(-1)
    for i in np.flatnonzero((np.sort(index, -1) != np.arange(n)).any(-1)):
        if n >= _AUCTION:
            _reduce(costs[i])
        index[i] = linear_sum_assignment(costs[i])[1]
    return index


def _reduce(costs: Array) -> None:
    """Add prices to the columns, in place, and make the smallest cost of each row 0."""
    costs += _prices(costs)
    costs -= costs.min(1, keepdims=True)


def _prices(costs: Array) -> Array:
    """Auction the columns off among the rows: all rows without a column bid at once, with falling epsilon."""
    n = len(costs)
    spread = float((costs.mean(1) - costs.min(1)).mean())
    prices = np.zeros(n)
    left = _PASSES * n
    for epsilon in _EPSILONS:
        owner = np.full(n, -1)
        free = np.arange(n)
        while len(free) > _UNSOLD * n and left > 0:
            left -= len(free)
            column, bid = _bids(costs, free, prices)
            bid += epsilon * spread
            order = np.argsort(bid, kind="stable")
            winner = np.full(n, -1)
            winner[column[order]] = order  # of several bids for a column the last one written, the highest, stays
            sold = np.flatnonzero(winner >= 0)
            winner = winner[sold]
            prices[sold] += bid[winner]
            outbid = owner[sold]
            owner[sold] = free[winner]
            free = np.concatenate([np.delete(free, winner), outbid[outbid >= 0]])
    return prices


def _bids(costs: Array, rows: Indices, prices: Array) -> tuple[Indices, Array]:
    """Return for some rows the column that costs least, and how much more the second one costs."""
    column = np.empty(len(rows), dtype=np.int64)
    bid = np.empty(len(rows))
    piece = max(1, _PIECE // len(prices))
    for start in range(0, len(rows), piece):
        here = slice(start, start + piece)
        block = costs[rows[here]]
        block += prices
        best = block.argmin(1)
        at = np.arange(len(best)), best
        lowest = block[at]
        block[at] = np.inf
        column[here], bid[here] = best, block.min(1) - lowest
    return column, bid

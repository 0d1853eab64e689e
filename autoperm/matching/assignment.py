"""Linear assignment: the step that every discrete matcher takes."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from ..errors import WeightsError

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_TINY = 4
"""Batches of problems up to this size are solved by looking at every permutation at once."""


def assign(scores: Array) -> tuple[Indices, Array]:
    """Maximise ``sum_i scores[..., i, index[i]]`` over permutations, exactly, for a batch of problems.

    Args:
        scores: shape ``(..., n, n)``.

    Returns:
        The permutations, shape ``(..., n)``, and their sums, shape ``(...)``. Equal scores give the same answer on
        every run.

    Raises:
        WeightsError: if a score is NaN or infinite.

    Example:
        >>> index, best = assign(np.array([[0.0, 1.0], [2.0, 0.0]]))
        >>> index.tolist(), float(best)
        ([1, 0], 3.0)
    """
    if not np.isfinite(scores).all():
        raise WeightsError("the scores of an assignment contain NaN or infinite values; check the weights")
    batch, n = scores.shape[:-2], scores.shape[-1]
    flat = scores.reshape(-1, n, n)
    if n <= _TINY and len(flat) > 1:
        every = np.array(list(permutations(range(n))), dtype=np.int64)
        sums = flat[:, np.arange(n), every].sum(-1)
        best = sums.argmax(-1)
        return every[best].reshape(*batch, n), sums[np.arange(len(flat)), best].reshape(batch)
    index = np.empty((len(flat), n), dtype=np.int64)
    for i, problem in enumerate(flat):
        index[i] = linear_sum_assignment(problem, maximize=True)[1]
    sums = np.take_along_axis(flat, index[..., None], -1).sum((-1, -2))
    return index.reshape(*batch, n), sums.reshape(batch)

r"""Second moments of two sets of units, streamed: what is kept does not grow with the data.

Batches are merged by the update of Chan, Golub and LeVeque: with :math:`m` new samples after :math:`n`, and
:math:`\delta` the difference of the new samples' mean to the mean so far,

.. math:: S \leftarrow S + S_\text{new} + \frac{n m}{n + m} \, \delta_a \delta_b^\top

where :math:`S` is the sum of products of deviations from the means. Unlike a running sum of products, from which the
product of the means is subtracted in the end, it loses no digits where means are large.

Reference: Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1982.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import AutopermError

Moment = Literal["uncentred", "covariance", "pearson"]


class Moments:
    """Means, variances and second moments of the units of A and B.

    Example:
        >>> moments = Moments()
        >>> for a, b in [([1.0, 3.0], [2.0, 6.0]), ([5.0], [1.0])]:
        ...     moments.add(torch.tensor([a]), torch.tensor([b]))
        >>> moments.count, moments.mean_a.item(), moments.mean_b.item()
        (3, 3.0, 3.0)
        >>> [round(moments.second(kind).item(), 3) for kind in ("uncentred", "covariance", "pearson")]
        [8.333, -0.667, -0.189]
    """

    def __init__(self) -> None:
        self.count = 0
        self._state: tuple[Tensor, ...] = ()

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add samples.

        Args:
            a: shape ``(..., units of A, samples)``.
            b: shape ``(..., units of B, samples)``, of the same leading shape and number of samples.
        """
        new = a.shape[-1]
        if new == 0:
            return
        (a, mean_a), (b, mean_b) = map(_centre, (a, b))
        state: tuple[Tensor, ...] = (
            mean_a,
            mean_b,
            _sum_of_squares(a),
            _sum_of_squares(b),
            (a @ b.transpose(-1, -2)).double(),
        )
        if self.count:
            old_a, old_b, *old = self._state
            delta_a, delta_b = mean_a - old_a, mean_b - old_b
            total = self.count + new
            shares = delta_a.square(), delta_b.square(), delta_a.unsqueeze(-1) * delta_b.unsqueeze(-2)
            sums = [
                s.add_(share, alpha=self.count * new / total).add_(o)
                for s, o, share in zip(state[2:], old, shares, strict=True)
            ]
            state = (old_a + delta_a * (new / total), old_b + delta_b * (new / total), *sums)
        self.count, self._state = self.count + new, state

    @property
    def mean_a(self) -> Tensor:
        """The means of A's units."""
        return self._state[0]

    @property
    def mean_b(self) -> Tensor:
        """The means of B's units."""
        return self._state[1]

    @property
    def var_a(self) -> Tensor:
        """The variances of A's units, those of the samples themselves: not larger by ``n / (n - 1)``."""
        return self._state[2] / self.count

    @property
    def var_b(self) -> Tensor:
        """The variances of B's units."""
        return self._state[3] / self.count

    def second(self, kind: Moment) -> Tensor:
        r"""Return a matrix with one entry for each unit of A and each of B, shape ``(..., units of A, units of B)``.

        Args:
            kind: ``"uncentred"``, :math:`E[a b]`; ``"covariance"``, :math:`E[a b] - E[a] E[b]`; or ``"pearson"``, the
                covariance over both standard deviations, which is 0 where a unit is dead: where it does not vary.

        Raises:
            AutopermError: for another kind, or before there are samples.
        """
        if kind not in ("uncentred", "covariance", "pearson"):
            raise AutopermError(f"there is no moment {kind!r}; choose 'uncentred', 'covariance' or 'pearson'")
        if not self.count:
            raise AutopermError("there are no samples, so they have no moments")
        covariance = self._state[4] / self.count
        if kind == "covariance":
            return covariance
        if kind == "uncentred":
            return covariance + self.mean_a.unsqueeze(-1) * self.mean_b.unsqueeze(-2)
        scale_a, scale_b = (
            _reciprocal_deviation(self.var_a, self.mean_a),
            _reciprocal_deviation(self.var_b, self.mean_b),
        )
        return covariance * scale_a.unsqueeze(-1) * scale_b.unsqueeze(-2)


def _centre(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return deviations from the mean, and the mean."""
    if samples.dtype in (torch.float16, torch.bfloat16):
        samples = samples.float()
    mean = samples.mean(-1, dtype=torch.float64)
    return samples - mean.to(samples.dtype).unsqueeze(-1), mean


def _sum_of_squares(samples: Tensor) -> Tensor:
    return samples.square().sum(-1, dtype=torch.float64)


_DEAD = 1e-12
"""A unit whose variance is this share of its squared mean does not vary: the rest is rounding."""


def _reciprocal_deviation(variance: Tensor, mean: Tensor) -> Tensor:
    alive = variance > _DEAD * mean.square()
    return torch.where(alive, variance, 1.0).rsqrt() * alive

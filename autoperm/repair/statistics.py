"""Means and standard deviations of channels, streamed in double precision: what is kept does not grow with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Statistics:
    """What samples of some channels have been like.

    Attributes:
        count: the number of samples.
        mean: of each channel.
        squares: for each channel, the sum of squared deviations from the mean.

    Example:
        >>> first = Statistics.of(torch.tensor([[1.0], [3.0]]), [1])
        >>> both = first + Statistics.of(torch.tensor([[5.0]]), [1])
        >>> both.count, both.mean, both.deviation.square()
        (3, tensor([3.], dtype=torch.float64), tensor([2.6667], dtype=torch.float64))
    """

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(tensor: Tensor, axes: Sequence[int]) -> Statistics:
        """Take the statistics of a tensor.

        Args:
            tensor: floating-point numbers.
            axes: those of the channels, rising; every position of the others is a sample.
        """
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        tensor = tensor.unsqueeze(-1)  # never without an axis to sum over
        others = [axis for axis in range(tensor.ndim) if axis not in axes]
        if tensor.numel() == 0:  # an expert to which no token was sent
            zeros = tensor.sum(others, dtype=torch.float64).flatten()
            return Statistics(0, zeros, zeros)
        mean = tensor.mean(others, keepdim=True, dtype=torch.float64)
        squares = (tensor - mean.to(tensor.dtype)).square_().sum(others, dtype=torch.float64)
        return Statistics(tensor.numel() // max(1, mean.numel()), mean.flatten(), squares.flatten())

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each channel, that of the samples themselves: not larger by ``n / (n - 1)``."""
        return (self.squares / max(1, self.count)).sqrt()

    def varies(self, dtype: torch.dtype) -> Tensor:
        """Tell for each channel whether it varies; see :func:`varies`."""
        return varies(self.mean, self.deviation, dtype)

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of samples, by the update of Chan, Golub and LeVeque (1982)."""
        total = self.count + other.count
        share = other.count / max(1, total)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.count * share)
        return Statistics(total, self.mean + apart * share, squares)


@dataclass(frozen=True, eq=False)
class Target:
    """What channels are to be like.

    Attributes:
        mean: of each channel.
        deviation: the standard deviation of each channel.
    """

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def between(ends: Sequence[Statistics], weights: Sequence[float]) -> Target:
        """Return the weighted means of what some models have.

        Example:
            >>> ends = [Statistics.of(torch.tensor(x), [1]) for x in ([[0.0], [2.0]], [[2.0], [8.0]])]
            >>> Target.between(ends, [0.5, 0.5])
            Target(mean=tensor([3.], dtype=torch.float64), deviation=tensor([2.], dtype=torch.float64))
        """
        device = ends[0].mean.device
        means = torch.stack([end.mean.to(device) for end in ends])
        deviations = torch.stack([end.deviation.to(device) for end in ends])
        shares = torch.tensor(weights, dtype=torch.float64, device=device)
        return Target(shares @ means, shares @ deviations)

    def varies(self, dtype: torch.dtype) -> Tensor:
        """Tell for each channel whether it is to vary; see :func:`varies`."""
        return varies(self.mean, self.deviation, dtype)

    def to(self, device: torch.device) -> Target:
        """Return the same on a device."""
        return Target(self.mean.to(device), self.deviation.to(device))


def varies(mean: Tensor, deviation: Tensor, dtype: torch.dtype) -> Tensor:
    """Tell for each channel of a layer whether it varies by more than what numbers of a type are rounded by.

    Rounded are the channel's own values, and sums with other channels of the layer: next to those, a channel that
    weight decay has taken to 1e-13 does nothing.
    """
    typical = deviation.square().mean().sqrt()
    return deviation > 4 * torch.finfo(dtype).eps * torch.maximum(mean.abs(), typical)

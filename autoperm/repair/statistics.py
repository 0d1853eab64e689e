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
        mean = tensor.mean(others, keepdim=True, dtype=torch.float64)
        squares = (tensor - mean.to(tensor.dtype)).square_().sum(others, dtype=torch.float64)
        return Statistics(tensor.numel() // max(1, mean.numel()), mean.flatten(), squares.flatten())

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each channel, that of the samples themselves: not larger by ``n / (n - 1)``."""
        return (self.squares / self.count).sqrt()

    def varies(self, dtype: torch.dtype) -> Tensor:
        """Tell for each channel whether it varies, by more than what numbers of a type are rounded by."""
        return self.deviation > 4 * torch.finfo(dtype).eps * self.mean.abs()

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of samples, by the update of Chan, Golub and LeVeque (1982)."""
        total = self.count + other.count
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / total)
        return Statistics(total, self.mean + apart * (other.count / total), squares)

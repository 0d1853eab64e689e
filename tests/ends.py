"""Small models and data for tests of paths."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 2)).double()


def inputs(samples: int = 8) -> Tensor:
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def targets(samples: int = 8) -> Tensor:
    return torch.arange(samples) % 2


def weightless(model: nn.Module) -> dict[str, float]:
    return {"loss": 0.0}


class Tied(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        if tied:
            self.decode.weight = self.encode.weight

"""The networks of ``examples/digits.py``, trained from several seeds and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import Data, cnn, load, mlp, train

__all__ = ["SETUPS", "Data", "Setup", "kept", "load", "trained"]


class Setup(NamedTuple):
    """A kind of model, and how long it is trained."""

    title: str
    build: Callable[[], nn.Module]
    epochs: int
    renormalize: bool


SETUPS = {
    "mlp-256": Setup("MLP 3x256", partial(mlp, 256), 50, False),
    "mlp-1024": Setup("MLP 3x1024", partial(mlp, 1024), 50, False),
    "cnn-128": Setup("residual CNN 128/256, BatchNorm re-estimated", partial(cnn, 128), 12, True),
}


def trained(name: str, seed: int, data: Data, cache: Path) -> nn.Module:
    """Load a model's weights, or train it and save them."""
    setup = SETUPS[name]
    return kept(setup.build(), name, seed, data, setup.epochs, cache)


def kept(model: nn.Module, name: str, seed: int, data: Data, epochs: int, cache: Path) -> nn.Module:
    """Give a model the weights that are kept under its name, or train it and keep them."""
    file = cache / f"{name}-{epochs}-{seed}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file))
        return model.eval()
    train(model, seed, data, epochs=epochs)
    torch.save(model.state_dict(), file)
    return model

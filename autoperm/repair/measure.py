"""Runs of a model over data, and the statistics of its layers' channels in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Capture
from ..errors import ActivationsError, EvaluationError
from ..graph import Value
from .layers import Layer
from .statistics import Statistics

Measured = Mapping[Layer, Statistics]

Act = Callable[[int, Layer, Tensor, Statistics], None]
"""What is done with the number of a batch, a layer, what it computes, which may be written to, and the statistics of
that."""


class _Enough(BaseException):
    """Ends a run of which enough was seen; a model that catches exceptions does not catch it."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of models of one architecture over the same data.

    Attributes:
        capture: the run that was recorded.
        layers: the layers to look at.
        data: batches, which can be read more than once.
        batches: how many of them to read; None for all.
    """

    capture: Capture
    layers: Sequence[Layer]
    data: Iterable[Any]
    batches: int | None

    def measure(
        self, model: nn.Module, layers: Sequence[Layer] | None = None, act: Act | None = None
    ) -> list[Measured]:
        """Run a model on each batch, as far as needed, and return the statistics of layers on each batch.

        Args:
            model: in evaluation mode.
            layers: which to look at; all by default.
            act: what to do with each of them.

        Raises:
            ActivationsError: if a layer computes something that is not finite.
            EvaluationError: if there are no batches.
        """
        wanted = {layer.value: layer for layer in (self.layers if layers is None else layers)}
        found: list[Measured] = []
        for number, batch in enumerate(islice(self.data, self.batches)):
            here: dict[Layer, Statistics] = {}

            def see(value: Value, tensor: Tensor, number: int = number, here: dict[Layer, Statistics] = here) -> None:
                layer = wanted[value]
                here[layer] = _finite(Statistics.of(tensor, layer.axes), layer)
                if act is not None:
                    act(number, layer, tensor, here[layer])
                if len(here) == len(wanted):
                    raise _Enough

            with suppress(_Enough):
                self.capture.watch(model, batch, wanted, see)
            found.append(here)
        if not found:
            raise EvaluationError("the data has no batches, so there are no statistics")
        return found


def total(batches: Sequence[Measured]) -> Measured:
    """Put the statistics of batches together."""
    first, *rest = batches
    found = dict(first)
    for batch in rest:
        for layer, statistics in batch.items():
            found[layer] = found[layer] + statistics
    return found


def _finite(statistics: Statistics, layer: Layer) -> Statistics:
    if not bool(torch.isfinite(statistics.mean).all() and torch.isfinite(statistics.squares).all()):
        raise ActivationsError(
            f"NaN or infinite values in the output of {layer}\n"
            "  Check the data and the weights, or measure in a wider dtype"
        )
    return statistics

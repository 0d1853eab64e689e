"""The straight path from model A to a permuted model B, and the loss on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..batch_norm import BatchNorm
from ..batches import check_rereadable, pair, samples_in, to_device
from ..blend import lerp
from ..copies import copy_model, forget_caches
from ..errors import EvaluationError
from ..evaluate import Loss, device_of
from ..permutation import Permutation
from ..state import check_same_architecture, check_same_indices, tensors

Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
"""``optimizer(tensors)``: for example ``functools.partial(torch.optim.Adam, lr=1e-3)``."""

EMPTY = "the loader yielded no batches, or none with samples, so there is nothing to match on"


class Path:
    """A network that moves along the path theta(lam) = (1 - lam) theta_A + lam pi(theta_B).

    BatchNorm normalises by the statistics of the batch: running statistics of the ends do not fit what lies between
    them. Dropout is off.

    Attributes:
        model: the network, a copy of model A that no one else sees.
    """

    def __init__(
        self,
        models: tuple[nn.Module, nn.Module],
        params: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        loss: Loss,
    ) -> None:
        """Start from two models, of which all but the parameters is taken."""
        model_a = models[0]
        self._a, self._b = ({**tensors(model), **own} for model, own in zip(models, params, strict=True))
        check_same_architecture(self._a, self._b)
        check_same_indices(self._a, self._b)
        self._loss = loss
        self.model = copy_model(model_a).eval()
        for module in self.model.modules():
            if isinstance(module, BatchNorm):
                module.training = True
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())

    def move(self, permutation: Permutation, lam: float = 0.5) -> None:
        """Give the network the weights at one point of the path to B permuted."""
        with torch.no_grad():
            weights = lerp(self._a, permutation.apply(self._b), lam)
            self.model.load_state_dict({**self.model.state_dict(), **weights})
        forget_caches(self.model)

    def loss(self, batch: Any, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the loss of the network on a batch.

        Args:
            batch: ``(input, target)``.
            weights: parameters that take the place of the network's own, which then get no gradient.

        Raises:
            EvaluationError: if the batch is no pair, or the loss no scalar.
        """
        inputs, target = pair(to_device(batch, device_of(self.model)))
        output = self.model(inputs) if weights is None else functional_call(self.model, dict(weights), (inputs,))
        loss = self._loss(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
            raise EvaluationError(f"the loss has {what}, but must be one number in a tensor, the mean over the batch")
        return loss.reshape(())

    def mean_loss(self, batches: Iterable[Any]) -> float:
        """Return the mean per sample of the loss of the network where it is.

        Raises:
            EvaluationError: if the loss is NaN or infinite, or there are no samples.
        """
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                samples = samples_in(pair(batch)[1])
                total += samples * float(self.loss(batch))
                count += samples
        if count == 0:
            raise EvaluationError(EMPTY)
        if not isfinite(total):
            raise EvaluationError(f"the mean loss is {total / count} between the models; check the data, and the loss")
        return total / count


def first_batches(data: Iterable[Any], batches: int | None) -> list[Any]:
    """Return the first batches of a loader, all of them for None.

    Raises:
        EvaluationError: if there are none.
    """
    found = list(islice(data, batches))
    if not found:
        raise EvaluationError(EMPTY)
    return found


def endless(data: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader over and over.

    Raises:
        EvaluationError: if there are none, or the loader can be read only once.
    """
    check_rereadable(data)
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty:
            raise EvaluationError(EMPTY)

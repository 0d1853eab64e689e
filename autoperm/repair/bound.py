"""REPAIR of models between some ends, whose layers and statistics are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import Capture, replica
from ..copies import copy_model, forget_caches
from ..errors import ArchitectureError, EvaluationError, SpecError
from ..evaluate import evaluating
from ..state import check_same_architecture, tensors
from .biases import MissingBias, add_biases, settle
from .fold import Fold
from .layers import Layer, LeftAlone, find_layers
from .measure import Measured, Runs, total
from .result import Repaired, RepairedLayer
from .statistics import Statistics


@dataclass(frozen=True, eq=False)
class Target:
    """What a layer's channels are to be like: mean and standard deviation of each."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def between(ends: Sequence[Statistics], weights: Sequence[float], device: torch.device) -> Target:
        """Return the weighted means of what the ends have."""
        pairs = list(zip(weights, ends, strict=True))
        return Target(
            sum((weight * end.mean.to(device) for weight, end in pairs), torch.zeros((), device=device)),
            sum((weight * end.deviation.to(device) for weight, end in pairs), torch.zeros((), device=device)),
        )


class BoundRepair:
    """Repairs models between some ends: see :class:`~autoperm.Repair`."""

    def __init__(
        self,
        ends: Sequence[nn.Module],
        data: Iterable[Any],
        *,
        batches: int | None,
        layers: Sequence[str] | None,
        bias: MissingBias,
        tolerance: float,
        sweeps: int,
    ) -> None:
        if len(ends) < 1:
            raise SpecError("there are no ends, whose statistics are the targets")
        for end in ends[1:]:
            check_same_architecture(tensors(ends[0]), tensors(end))
        self.tolerance, self.sweeps = tolerance, sweeps
        capture = Capture.of(ends[0], _first(data))
        found, alone = find_layers(capture, ends[0], layers)
        found, skipped = settle(found, ends[0], bias)
        self.left_alone = tuple(alone + skipped)
        if not found:
            raise ArchitectureError(_nothing(ends[0], self.left_alone))
        self.runs = Runs(capture, found, data, batches)
        self.ends = [self.runs.measure(replica(end)) for end in ends]
        self.totals = [total(batches) for batches in self.ends]
        self.adds = any(layer.bias is not None and not _has(ends[0], layer.bias.parameter) for layer in found)

    def __call__(self, model: nn.Module, weights: Sequence[float]) -> nn.Module:
        """Repair a model, in place unless biases are added to it, and return it."""
        return self.repair(model, weights).model

    def repair(self, model: nn.Module, weights: Sequence[float]) -> Repaired:
        """Repair a model, in place unless biases are added to it.

        Args:
            model: of the architecture of the ends.
            weights: of the ends, which sum to 1.

        Raises:
            ActivationsError: if a layer computes something that is not finite.
            SpecError: if the weights do not fit.
        """
        _check_weights(weights, len(self.ends))
        if self.adds:
            model = copy_model(model)
            add_biases(model, self.runs.layers)
        with evaluating(model), torch.no_grad():
            folds = {layer: Fold(layer, model) for layer in self.runs.layers}
            targets = {layer: self._target(layer, weights, self.totals) for layer in folds}
            self._sweep_first(model, folds, targets, weights)
            sweeps = 1
            while True:
                forget_caches(model)
                reached = total(self.runs.measure(model))
                sweeps += 1
                errors = {layer: _error(reached[layer], targets[layer], folds[layer]) for layer in folds}
                error = max(errors.values())
                if error <= self.tolerance or sweeps >= self.sweeps:
                    break
                for layer, fold in folds.items():
                    fold.then(*_correction(reached[layer], targets[layer], fold))
        layers = tuple(_describe(fold, reached[layer], errors[layer]) for layer, fold in folds.items())
        return Repaired(model, error, sweeps, layers, self.left_alone)

    def _target(self, layer: Layer, weights: Sequence[float], measured: Sequence[Measured]) -> Target:
        ends = [end[layer] for end in measured]
        return Target.between(ends, weights, ends[0].mean.device)

    def _sweep_first(
        self, model: nn.Module, folds: dict[Layer, Fold], targets: dict[Layer, Target], weights: Sequence[float]
    ) -> None:
        """Repair each layer for what it gets from layers that are repaired on the way, batch by batch.

        What the ends have on the same batch is what a batch is brought to: at an end this changes nothing, and
        elsewhere batches differ from the whole data in much the same way for all models.
        """

        def correct(number: int, layer: Layer, tensor: Tensor, found: Statistics) -> None:
            known = all(number < len(end) for end in self.ends)
            target = self._target(layer, weights, [end[number] for end in self.ends]) if known else targets[layer]
            scale, shift = _correction(found, target, folds[layer])
            shape = [n if axis in layer.axes else 1 for axis, n in enumerate(tensor.shape)]
            tensor.mul_(scale.view(shape)).add_(shift.view(shape))

        found = total(self.runs.measure(model, correct))
        for layer, fold in folds.items():
            fold.then(*_correction(found[layer], targets[layer], fold))


def _correction(found: Statistics, target: Target, fold: Fold) -> tuple[Tensor, Tensor]:
    """Return scale and shift that take channels to their targets; dead ones are only shifted."""
    alive = found.varies(fold.dtype)
    device = found.mean.device
    scale = torch.where(alive, target.deviation.to(device) / torch.where(alive, found.deviation, 1.0), 1.0)
    shift = target.mean.to(device) - scale * found.mean
    return scale, shift if fold.shifts else torch.zeros_like(shift)


def _error(found: Statistics, target: Target, fold: Fold) -> float:
    """Return how far a layer is from its target at most, relative to the target deviations."""
    mean, deviation = target.mean.to(found.mean.device), target.deviation.to(found.mean.device)
    known = deviation > 0
    typical = deviation[known].mean() if bool(known.any()) else 1.0
    unit = torch.where(known, deviation, typical)
    errors = (found.deviation - deviation).abs() / unit * found.varies(fold.dtype)
    if fold.shifts:
        errors = torch.maximum(errors, (found.mean - mean).abs() / unit)
    return float(errors.max())


def _describe(fold: Fold, found: Statistics, error: float) -> RepairedLayer:
    layer, dead = fold.layer, int((~found.varies(fold.dtype)).sum())
    scale = float(fold.scale.median())
    return RepairedLayer(layer.name, layer.op, layer.source, layer.size, scale, dead, error)


def _first(data: Iterable[Any]) -> Any:
    for batch in data:
        return batch
    raise EvaluationError("the data has no batches, so there are no statistics")


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_parameters(remove_duplicate=False))


def _check_weights(weights: Sequence[float], count: int) -> None:
    fits = len(weights) == count and all(weight >= 0 for weight in weights)
    if not fits or abs(sum(weights) - 1) > 1e-6:
        raise SpecError(f"the weights are {tuple(weights)}, but must be {count} numbers from 0 that sum to 1")


def _nothing(model: nn.Module, alone: Sequence[LeftAlone]) -> str:
    lines = [f"  {layer}" for layer in alone[:8]]
    return "\n".join([f"{type(model).__name__} has no layer that can be repaired" + ":" * bool(lines), *lines])

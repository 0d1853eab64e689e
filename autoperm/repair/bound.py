"""REPAIR of models between some ends, whose layers and statistics are known."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..activations import Capture, replica
from ..copies import copy_model, forget_caches
from ..errors import ArchitectureError, EvaluationError, SpecError
from ..evaluate import device_of, evaluating
from ..state import check_same_architecture, tensors
from .biases import MissingBias, add_biases, settle
from .course import Course
from .layers import Layer, LeftAlone, find_layers, in_levels
from .measure import Measured, Runs, total
from .result import Repaired
from .statistics import Target

_ROUNDINGS = 8
"""No tolerance is less than so many roundings of the weights."""


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
    ) -> None:
        if not ends:
            raise SpecError("there are no ends, whose statistics are the targets")
        for end in ends[1:]:
            check_same_architecture(tensors(ends[0]), tensors(end))
        capture = Capture.of(ends[0], _first(data))
        found, alone = find_layers(capture, ends[0], layers)
        found, skipped = settle(found, ends[0], bias)
        self.left_alone = (*alone, *skipped)
        if not found:
            raise ArchitectureError(_nothing(ends[0], self.left_alone))
        self.tolerance = max(
            tolerance, _ROUNDINGS * max(torch.finfo(layer.weight.within(ends[0]).dtype).eps for layer in found)
        )
        self.levels = in_levels(found, capture.recording.graph)
        self.runs = Runs(capture, found, data, batches)
        self.ends = [self.runs.measure(replica(end)) for end in ends]
        self.totals = [total(batches) for batches in self.ends]
        parameters = dict(ends[0].named_parameters(remove_duplicate=False))
        self.adds = any(layer.bias is not None and layer.bias.parameter not in parameters for layer in found)

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
        if len(weights) != len(self.ends) or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise SpecError(
                f"the weights are {tuple(weights)}, but must be {len(self.ends)} numbers of at least 0 that sum to 1"
            )
        if self.adds:
            model = copy_model(model)
            add_biases(model, self.runs.layers)
        forget_caches(model)
        with evaluating(model), torch.no_grad():
            device = device_of(model)
            course = Course(self.runs, model, self._targets(self.totals, weights, device))
            course.on_the_way([self._targets(batch, weights, device) for batch in zip(*self.ends, strict=False)])
            course.check()
            if course.error > self.tolerance:
                course.layer_by_layer(self.levels, self.tolerance)
                course.check()
        repaired = Repaired(model, course.error, self.tolerance, course.sweeps, course.described(), self.left_alone)
        if course.error > self.tolerance:
            worst = max(repaired.layers, key=lambda layer: layer.error)
            warnings.warn(
                f"REPAIR left '{worst.name}' {worst.error:.0e} of a deviation from its target, more than the tolerance "
                f"of {self.tolerance:.0e}: rounding grows from layer to layer. Repair the models in a wider dtype, or "
                "raise the tolerance",
                stacklevel=2,
            )
        return repaired

    def _targets(
        self, measured: Sequence[Measured], weights: Sequence[float], device: torch.device
    ) -> dict[Layer, Target]:
        return {
            layer: Target.between([end[layer] for end in measured], weights).to(device) for layer in self.runs.layers
        }


def _first(data: Iterable[Any]) -> Any:
    for batch in data:
        return batch
    raise EvaluationError("the data has no batches, so there are no statistics")


def _nothing(model: nn.Module, alone: Sequence[LeftAlone]) -> str:
    lines = [f"  {layer}" for layer in alone[:8]]
    return "\n".join([f"{type(model).__name__} has no layer that can be repaired" + ":" * bool(lines), *lines])

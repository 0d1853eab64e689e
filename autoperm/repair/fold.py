"""What is done to each channel of a layer's output, folded into the layer's weight and bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Layer
from .statistics import Statistics, Target


class Fold:
    """The affine map y -> scale * y + shift of each channel of a layer, within the layer's parameters.

    The parameters are made anew from the first ones and the whole map each time, so that roundings do not add up.
    """

    def __init__(self, layer: Layer, model: nn.Module) -> None:
        self.layer = layer
        self._weight = layer.weight.within(model)
        self._bias = None if layer.bias is None else layer.bias.within(model)
        self._first = self._weight.clone(), None if self._bias is None else self._bias.clone()
        self._channels = layer.channels.to(self._weight.device)
        self.scale = torch.ones(layer.size, dtype=torch.float64, device=self._weight.device)
        self.shift = torch.zeros_like(self.scale)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the layer's weight."""
        return self._weight.dtype

    @property
    def shifts(self) -> bool:
        """Whether there is a bias, in which a shift can be folded."""
        return self._bias is not None

    def then(self, scale: Tensor, shift: Tensor) -> None:
        """Follow the map by another one, y -> scale * y + shift."""
        self.scale = scale * self.scale
        self.shift = scale * self.shift + shift
        weight, bias = self._first
        self._weight.copy_(weight.double() * self.scale[self._channels])
        if self._bias is not None and bias is not None:
            self._bias.copy_((bias.double().flatten() * self.scale + self.shift).view_as(bias))

    def towards(self, target: Target, found: Statistics) -> tuple[Tensor, Tensor]:
        """Return scale and shift that take channels to their targets; those that do not vary are only shifted."""
        alive = found.varies(self.dtype)
        scale = torch.where(alive, target.deviation / torch.where(alive, found.deviation, 1.0), 1.0)
        shift = target.mean - scale * found.mean
        return scale, shift if self.shifts else torch.zeros_like(shift)

    def error(self, target: Target, found: Statistics) -> float:
        """Return how far channels are from their targets at most, relative to the target deviations."""
        typical = target.mean.abs() + target.deviation.square().mean().sqrt()
        unit = torch.where(target.varies(self.dtype), target.deviation, torch.where(typical > 0, typical, 1.0))
        errors = (found.deviation - target.deviation).abs() / unit * found.varies(self.dtype)
        if self.shifts:
            errors = torch.maximum(errors, (found.mean - target.mean).abs() / unit)
        return float(errors.max())

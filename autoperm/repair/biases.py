"""What to do with layers that have no bias, in which their means could be folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import nn

from ..errors import ArchitectureError, SpecError, quoted
from ..graph import Value
from .layers import Layer, LeftAlone
from .operands import View

MissingBias = Literal["error", "scale", "add", "skip"]

_CHOICES: tuple[MissingBias, ...] = get_args(MissingBias)
_CAN_HAVE = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_SHOWN = 8


def check_choice(bias: str) -> None:
    """Check that there is such a choice.

    Raises:
        SpecError: if there is none.
    """
    if bias not in _CHOICES:
        raise SpecError(f"there is no bias='{bias}'; choose {quoted(_CHOICES)}")


def settle(layers: Sequence[Layer], model: nn.Module, bias: MissingBias) -> tuple[list[Layer], list[LeftAlone]]:
    """Decide what is done with layers that have no bias.

    Args:
        layers: those to repair.
        model: any of the models.
        bias: the choice of the caller.

    Returns:
        The layers to repair, with the names of biases that are to be added, and the layers left alone.

    Raises:
        ArchitectureError: if a bias is missing that the choice needs; the message lists the layers.
    """
    lacking = [layer for layer in layers if layer.bias is None]
    if bias == "skip":
        alone = [LeftAlone(layer.name, "it has no bias", layer.source) for layer in lacking]
        return [layer for layer in layers if layer.bias is not None], alone
    if bias == "add":
        settled = [layer if layer.bias is not None else _with_bias(layer, model) for layer in layers]
        lacking = [layer for layer in settled if layer.bias is None]
        layers = settled
    if lacking and bias != "scale":
        raise ArchitectureError(_message(lacking, bias))
    return list(layers), []


def _with_bias(layer: Layer, model: nn.Module) -> Layer:
    """Name the bias that a layer can be given, if its module has a place for one."""
    path, _, name = layer.weight.parameter.rpartition(".")
    holder = model.get_submodule(path)
    if isinstance(holder, _CAN_HAVE) and name == "weight" and holder.bias is None and layer.module == path:
        name = f"{path}.bias" if path else "bias"
        return replace(layer, bias=View(name, Value(name, (layer.size,), "parameter")))
    return layer


def add_biases(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Give a model the biases that layers have and it has not, all zero."""
    present = dict(model.named_parameters(remove_duplicate=False))
    for layer in layers:
        if layer.bias is not None and layer.bias.parameter not in present:
            weight = model.get_parameter(layer.weight.parameter)
            path, _, name = layer.bias.parameter.rpartition(".")
            zeros = torch.zeros(layer.size, dtype=weight.dtype, device=weight.device)
            model.get_submodule(path).register_parameter(name, nn.Parameter(zeros, weight.requires_grad))


def _message(layers: Sequence[Layer], bias: MissingBias) -> str:
    lines = [f"  {layer}" for layer in layers[:_SHOWN]]
    if len(layers) > _SHOWN:
        lines.append(f"  and {len(layers) - _SHOWN} more")
    count = f"{len(layers)} layer{'s have' if len(layers) > 1 else ' has'}"
    if bias == "add":
        what = f"{count} no bias, and no module to which one can be added:"
        choices = (
            "Use bias='scale', which repairs the deviations alone, or bias='skip', which leaves these layers alone."
        )
    else:
        what = f"{count} no bias in which to fold the repair of the means:"
        choices = (
            "Choose bias='scale' to repair the deviations of these layers alone, bias='add' for a model with more "
            "parameters than the ends, or bias='skip' to leave these layers alone."
        )
    return "\n".join([what, *lines, choices])

"""Copies of models, without what a model keeps of its old weights.

Some models keep tensors made from their parameters in a cache that evaluation fills and training clears. A copy that is
given other weights must not keep that cache.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArchitectureError, TraceError, quoted


def copy_model(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """Copy a model, in the modes that it is in, without its caches.

    Args:
        model: any module.
        share_parameters: let the copy's parameters share the storage of the originals, for tracing.

    Raises:
        TraceError: if the model cannot be copied.

    Example:
        >>> copied = copy_model(nn.Linear(2, 3))
        >>> copied.training
        True
    """
    memo: dict[int, Any] = {}
    if share_parameters:
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # a cache with a graph, which deepcopy refuses
                memo[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # whatever the user's classes may raise
        raise TraceError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error
    forget_caches(copied)
    return copied


def with_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model, with other values for some or all tensors of its state dict.

    Raises:
        ArchitectureError: if the copy does not hold the values after loading them, since names that share memory were
            given different ones.
        TraceError: if the model cannot be copied.

    Example:
        >>> with_tensors(nn.Linear(1, 1), {"bias": torch.tensor([2.0])}).bias.item()
        2.0
    """
    copied = copy_model(model)
    own = copied.state_dict()  # with entries that are not tensors, without which a strict load fails
    copied.load_state_dict({**own, **state})
    loaded = copied.state_dict()
    changed = [name for name, tensor in state.items() if not torch.equal(loaded[name], tensor)]
    if changed:
        names = quoted(changed[:8])
        raise ArchitectureError(
            f"{type(model).__name__} does not hold the values of {names} after loading them: these share memory with "
            "other tensors (tied weights) in this model but not in another. Tie the same weights in all models"
        )
    forget_caches(copied)
    return copied


def forget_caches(model: nn.Module) -> None:
    """Let a model drop what it keeps in evaluation mode, by taking it through training mode and back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.eval()
    for module, training in modes:
        module.training = training

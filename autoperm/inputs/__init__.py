"""Example inputs, when the user gives none: ask the model, else look at its layers and try.

A candidate is made from the names of ``forward``'s parameters, the model's configuration and the layers that it has
(:mod:`~autoperm.inputs.customs`, :mod:`~autoperm.inputs.layers`). It runs under fake tensors, so that trying costs
neither time nor memory, whatever the model's size (:mod:`~autoperm.inputs.trial`). What went wrong says what to try
next (:mod:`~autoperm.inputs.search`). No library is known by name: only the customs that several of them share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import TraceError
from .search import Inputs, find_inputs

__all__ = ["Inputs", "find_inputs", "resolve_inputs"]


def resolve_inputs(model: nn.Module, example_inputs: Any = None) -> Inputs:
    """Return positional and named example inputs, found if none are given.

    Args:
        model: the model they are for.
        example_inputs: a tensor, a tuple or list of positional inputs, a dictionary of named ones, or None.

    Raises:
        TraceError: for inputs that are none of these, or if none were found; the message shows what was tried.

    Example:
        >>> (x,), _ = resolve_inputs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 10)))
        >>> x.shape
        torch.Size([2, 3, 28, 28])
    """
    if example_inputs is None:
        return find_inputs(model)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TraceError(
        f"example_inputs is a {type(example_inputs).__name__}; pass a tensor, a tuple, or a dictionary by name"
    )

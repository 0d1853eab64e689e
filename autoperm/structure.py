"""Tensors within what a model takes and returns: tuples, lists, mappings, objects with attributes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .errors import TraceError


def operands_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from operands_of(item)
    elif isinstance(value, dict):
        yield from operands_of(list(value.values()))


def replace_tensors(value: Any, new: Callable[[Tensor], Any]) -> Any:
    """Return arguments with something else for each tensor."""
    if isinstance(value, Tensor):
        return new(value)
    if isinstance(value, (list, tuple)):
        return type(value)(replace_tensors(item, new) for item in value)
    if isinstance(value, Mapping):
        return {key: replace_tensors(item, new) for key, item in value.items()}
    return value


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield the tensors in whatever a model may return."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, (str, bytes, int, float, type, nn.Module)) or value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, (list, tuple, set, frozenset)):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        value = [*getattr(value, "__dict__", {}).values(), *(getattr(value, n, None) for n in slots)]
    for item in value:
        yield from tensors_in(item, seen)


def copy_inputs(inputs: Any) -> Any:
    """Return a deep copy of inputs.

    Raises:
        TraceError: if that cannot be.
    """
    memo: dict[int, Any] = {}
    for tensor in tensors_in(inputs):
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(inputs, memo)
    except Exception as error:  # whatever classes the inputs may have
        raise TraceError(f"the example inputs cannot be copied: {type(error).__name__}: {error}") from error


def named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among a model's inputs, with the names that its forward gives them."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{f"input_{i}": item for i, item in enumerate(args)}, **kwargs}
    for name, item in bound.items():
        tensors = list(tensors_in(item))
        for i, tensor in enumerate(tensors):
            yield name if isinstance(item, Tensor) else f"{name}.{i}", tensor

"""A model, and example inputs, to a functional graph.

Most models are exported (:mod:`~autoperm.trace.export`). What the exporter cannot take, because its Python looks at the
values of tensors, is recorded in one run (:mod:`~autoperm.trace.record`).

The model is never touched. It is copied without its weights' memory: the copy's parameters share the storage of the
originals, which tracing under fake tensors does not write to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..copies import copy_model
from ..errors import TraceError
from ..graph import Graph
from .export import export, read
from .messages import describe_inputs, first_line, quiet, user_line
from .record import record

__all__ = ["describe_inputs", "quiet", "trace"]


def trace(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Graph:
    """Trace a model in evaluation mode to a functional graph.

    Args:
        model: any module; it is left as it is, including its mode, caches, buffers and gradients.
        args: positional example inputs.
        kwargs: example inputs by name.

    Returns:
        The graph. Its notes say where it stands for less than the whole model: a path that depends on data, random
        numbers.

    Raises:
        TraceError: if the model does not run on the inputs, or can be neither exported nor recorded.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.zeros(2, 3),))
        >>> [str(call.op) for call in graph.calls]
        ['aten.linear.default', 'aten.relu.default']
    """
    for where, value in [*enumerate(args), *(kwargs or {}).items()]:
        if isinstance(value, nn.Module):
            raise TraceError(f"example input {where!r} is a module; pass tensors")
    replica = copy_model(model, share_parameters=True).eval()
    positional, named = tuple(args), dict(kwargs or {})
    try:
        exported = export(replica, positional, named)
    except Exception as refusal:  # whatever the user's forward or the exporter may raise
        return _record_instead(model, positional, named, refusal)
    try:
        return read(exported, replica)
    except GuardOnDataDependentSymNode as refusal:  # exported, but with sizes that only data decides
        return _record_instead(model, positional, named, refusal)


def _record_instead(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], refusal: Exception) -> Graph:
    """Record a model that cannot be exported.

    Raises:
        TraceError: if that fails too; it says whether the inputs are at fault.
    """
    name, source, inputs = type(model).__name__, user_line(refusal), describe_inputs(args, kwargs)
    why = f"torch.export cannot take {name}: {first_line(refusal)}" + (f", at {source}" if source else "")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        if not _needs_values(refusal):
            raise _unrunnable(name, inputs, refusal) from refusal
        raise TraceError(
            f"{why}\n  It could be recorded in one run, but its weights are on the meta device, without values\n"
            f"  traced with: {inputs}\n  Give it weights: model.to_empty(device='cpu') and any initial values"
        ) from refusal
    try:
        with quiet():
            return record(model, args, kwargs, [f"{why}; it was recorded instead, in one run on the example inputs"])
    except Exception as problem:  # whatever the user's forward may raise
        failure = _failure(model, args, kwargs)
        if failure is not None:
            raise _unrunnable(name, inputs, failure) from failure
        raise TraceError(
            f"{name} can be neither exported nor recorded\n  {why}\n  recording: {problem}\n  traced with: {inputs}\n"
            "  Pass a specification written by hand: autoperm.PermutationSpec.from_patterns({...})"
        ) from problem


def _unrunnable(name: str, inputs: str, error: Exception) -> TraceError:
    return TraceError(
        f"{name} does not run on the example inputs ({inputs})\n  {type(error).__name__}: {first_line(error)}\n"
        "  Pass inputs that its forward accepts: example_inputs=(tensor, ...)"
    )


def _needs_values(error: Exception) -> bool:
    """Tell whether an error is about values that a tensor without data does not have."""
    text = str(error) + repr(type(error))
    return bool(re.search(r"data.?dependent|Could not guard|\.item\(\)|unbacked|meta tensors", text, re.IGNORECASE))


def _failure(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """Run a model as it is and return what it raises."""
    try:
        with torch.no_grad(), quiet():
            copy_model(model).eval()(*args, **kwargs)
    except Exception as error:  # whatever the user's forward may raise
        return error
    return None

"""Where a graph begins and ends: a model's own tensors as values, and what every finished graph says of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Call, Graph, Value
from ..rules import op_name

_RANDOM_IF = {"dropout_p": 0, "p": 0, "dropout": 0, "train": False, "training": False, "is_training": False}
"""Arguments that say whether an operation that can draw random numbers does so, and when it does not."""


def model_values(model: nn.Module) -> dict[str, Value]:
    """Return a value for each parameter and persistent buffer. Names that share one tensor share one value.

    Integer buffers are constants: their values are known and do not move.
    """
    first: dict[Any, Value] = {}
    values: dict[str, Value] = {}
    for name, tensor in model_tensors(model).items():
        key = identity(tensor)
        if key not in first:
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            if not (tensor.is_floating_point() or tensor.is_complex()):
                kind = "constant"
            data = tensor if kind == "constant" else None
            first[key] = Value(name, tuple(tensor.shape), kind, data, fed=data is None)
        values[name] = first[key]
    return values


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers under every name, tied ones too."""
    persistent = set(model.state_dict(keep_vars=True))
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in persistent:
            found[name] = buffer
    return found


def finish(
    model: nn.Module,
    values: Mapping[str, Value],
    calls: list[Call],
    inputs: list[Value],
    outputs: Sequence[Value],
    notes: Iterable[str] = (),
    *,
    written: Sequence[tuple[Value, Value]] = (),
) -> Graph:
    """Put a graph together of the calls that something comes of: what is used, what overlaps, what is random."""
    for value in (*outputs, *(value for value, _ in written)):
        value.used = True
    live = []
    for call in reversed(calls):
        if any(result is not None and result.used for result in call.results):
            live.append(call)
            for operand in call.operands():
                operand.used = True
    calls = live[::-1]
    state = [name for name in model.state_dict(keep_vars=True) if name in values]
    order = state + [name for name in values if name not in set(state) and values[name].kind == "parameter"]
    tensors = {name: values[name] for name in order if values[name].kind in ("parameter", "buffer")}
    drawn = dict.fromkeys(f"{call.op}, {call.where}" for call in calls if draws_random_numbers(call))
    notes = [*notes, *([_random(list(drawn))] if drawn else [])]
    overlapping = _overlapping(model_tensors(model))
    return Graph(calls, tensors, inputs, list(outputs), overlapping, list(written), notes)


def _random(places: Sequence[str]) -> str:
    return (
        "random numbers are drawn in evaluation mode, so two runs agree only from one seed; what is drawn is pinned, "
        "as an input is: " + some(places)
    )


def some(places: Sequence[str], most: int = 4) -> str:
    """Write a list of places, the first few."""
    rest = len(places) - most
    return "; ".join(places[:most]) + (f"; and {rest} more" if rest > 0 else "")


_DRAWN_BY_SHAPE = frozenset(
    "aten." + name
    for name in (
        "rand rand_like randn randn_like randint randint_like randperm uniform normal_functional exponential cauchy "
        "log_normal geometric random"
    ).split()
)
"""What draws random numbers of the shape of its operand, without a look at its values."""


def reads_what_it_draws_from(call: Call) -> bool:
    """Tell whether what is drawn depends on the values of operands."""
    return op_name(call.op) not in _DRAWN_BY_SHAPE


def draws_random_numbers(call: Call) -> bool:
    """Tell whether a call gives something else when it is made again: dropout in evaluation mode does not.

    Example:
        >>> from autoperm.graph import Where
        >>> def dropout(train):
        ...     return Call(torch.ops.aten.dropout.default, (Value("x", (3,)), 0.5, train), {}, (), Where())
        >>> draws_random_numbers(dropout(True)), draws_random_numbers(dropout(False))
        (True, False)
    """
    if torch.Tag.nondeterministic_seeded not in getattr(call.op, "tags", ()):
        return False
    arguments: Sequence[Any] = call.op._schema.arguments  # type: ignore[attr-defined]
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    given |= dict(zip((argument.name for argument in arguments), call.args, strict=False))
    given |= call.kwargs
    return not any(name in given and given[name] == off for name, off in _RANDOM_IF.items())


def identity(tensor: Tensor) -> Any:
    """Return what is equal for tensors that are the same memory read in the same way."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _overlapping(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of different tensors whose ranges in one storage overlap."""
    ranges: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    seen: set[Any] = set()
    for name, tensor in tensors.items():
        if tensor.device.type == "meta" or tensor.numel() == 0 or identity(tensor) in seen:
            continue
        seen.add(identity(tensor))
        span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        ranges[tensor.untyped_storage().data_ptr()].append((start, start + span * tensor.element_size(), name))
    found = set()
    for group in ranges.values():
        reach, owner = -1, ""
        for start, stop, name in sorted(group):
            if start < reach:
                found |= {name, owner}
            if stop > reach:
                reach, owner = stop, name
    return sorted(found)

"""What an operation's schema says of a call: which arguments it writes to, and what does the same without writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..structure import operands_of


def in_order(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all arguments in the order of the schema, as far as they are given."""
    rest = [argument.name for argument in op._schema.arguments[len(args) :]]
    found = list(args)
    for argument in op._schema.arguments[len(args) :]:
        if argument.name in kwargs:
            found.append(kwargs[argument.name])
        elif any(name in kwargs for name in rest):
            found.append(argument.default_value)
    return tuple(found)


def written_by(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that a call writes to."""
    if not op._schema.is_mutable:
        return []
    given = {**dict(zip((a.name for a in op._schema.arguments), args, strict=False)), **kwargs}
    return [
        tensor
        for argument in op._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given
        for tensor in operands_of(given[argument.name])
    ]


def functional(op: Any) -> Any:
    """Return the form of an operation that writes to nothing and takes the same arguments; None if there is none.

    Example:
        >>> functional(torch.ops.aten.add_.Tensor), functional(torch.ops.aten.add.out)
        (<OpOverload(op='aten.add', overload='Tensor')>, <OpOverload(op='aten.add', overload='Tensor')>)
    """
    namespace, _, name = str(op._schema.name).partition("::")
    wanted = _form(op)
    for base in dict.fromkeys((name.removesuffix("_"), f"{name.removesuffix('_')}_functional", name)):
        packet = getattr(getattr(torch.ops, namespace), base, None)
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if not found._schema.is_mutable and _form(found) == wanted:
                return found
    return None


def _form(op: Any) -> list[tuple[str, str]]:
    """The arguments of an operation, but for what it writes to; the first has any name."""
    arguments = [argument for argument in op._schema.arguments if not argument.is_out]
    return [(argument.name if i else "", str(argument.type)) for i, argument in enumerate(arguments)]


def masks_among(indices: Sequence[Tensor | None]) -> set[int]:
    """Return which indices are masks."""
    kinds = (torch.bool, torch.uint8)
    return {i for i, index in enumerate(indices) if index is not None and index.dtype in kinds}

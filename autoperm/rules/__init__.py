"""What each operation says about its axes: a table of signatures, the few rules that work on terms, and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import SignatureError
from ..signature import parse
from .context import Rule
from .positions import POSITIONS_RULES, PositionsRule
from .recurrent import CELL_SIGNATURES, RECURRENT_RULES
from .shape import SHAPE_RULES
from .table import SIGNATURES
from .text import Row

__all__ = [
    "SIGNATURES",
    "Row",
    "Rule",
    "has_rule",
    "is_pointwise",
    "only_moves",
    "op_name",
    "positions_rule_for",
    "register",
    "rule_for",
    "signature_for",
]

SIGNATURES.update(CELL_SIGNATURES)
_RULES: dict[str, Rule] = {**SHAPE_RULES, **RECURRENT_RULES}
_POSITIONS: dict[str, PositionsRule] = dict(POSITIONS_RULES)


def op_name(op: object) -> str:
    """Return the name an operation has in the table: namespace and name, without overload.

    Example:
        >>> op_name(torch.ops.aten.linear.default)
        'aten.linear'
    """
    schema = getattr(op, "_schema", None)
    if schema is not None:
        return str(schema.name).replace("::", ".")
    qualified = getattr(op, "_qualified_op_name", None)
    if qualified is not None:
        return str(qualified).replace("::", ".")
    return str(getattr(op, "__name__", op))


_POINTWISE = frozenset(
    "aten." + name
    for name in (
        "__and__ __or__ __xor__ __lshift__ __rshift__ where add sub mul div multiply subtract divide true_divide "
        "floor_divide greater greater_equal less less_equal not_equal maximum minimum clip square isfinite isnan isinf "
        "masked_fill floor_divide logical_and logical_or complex polar absolute negative fix isclose isreal "
        "arccos arccosh arcsin arcsinh arctan arctan2 arctanh"
    ).split()
)
"""Overloads of pointwise operations that PyTorch does not tag as such."""


def is_pointwise(op: object) -> bool:
    """Tell whether an operation is pointwise (PyTorch tags most): all axes pass through, broadcast from the right."""
    return torch.Tag.pointwise in getattr(op, "tags", ()) or op_name(op) in _POINTWISE


def signature_for(op: object) -> Row | None:
    """Return the table's row for an operation, if there is one."""
    return SIGNATURES.get(op_name(op))


def rule_for(op: object) -> Rule | None:
    """Return the rule on terms for an operation, if there is one."""
    return _RULES.get(op_name(op))


_MOVES = frozenset(
    "aten." + name
    for name in (
        "slice select narrow split split_with_sizes chunk unbind view reshape _unsafe_view flatten unflatten permute "
        "transpose t movedim unsqueeze squeeze expand clone alias detach contiguous to _to_copy"
    ).split()
)


def only_moves(op: object) -> bool:
    """Tell whether an operation only moves numbers, or leaves some out: what goes in may never be used."""
    return op_name(op) in _MOVES


def has_rule(op: object) -> bool:
    """Tell whether anything is known of an operation."""
    return op_name(op) in SIGNATURES or op_name(op) in _RULES or is_pointwise(op)


def positions_rule_for(op: object) -> PositionsRule | None:
    """Return the rule for an operation on values that are positions, if there is one."""
    return _POSITIONS.get(op_name(op))


def register(op: Callable[..., Any] | str, row: Row, *, override: bool = False) -> None:
    """Say how an operation treats its axes.

    Args:
        op: an operation of ``torch.ops``, with or without overload, what ``torch.library.custom_op`` returns, or a
            name, as ``"mylib.roll"``.
        row: a signature in the notation (see :mod:`autoperm.signature`), or a function that takes the operation's own
            arguments (tensors have ``.shape`` and ``.ndim``) and returns one.
        override: replace a row that is there already.

    Raises:
        SignatureError: if the row does not parse, does not fit the operation's schema, or would replace another; if
            ``op`` is not an operation.

    Example:
        >>> register("mylib.double", "... -> ...")
        >>> register("mylib.double", "a b -> a b")
        Traceback (most recent call last):
        ...
        autoperm.errors.SignatureError: mylib.double has a rule already; pass override=True to replace it
    """
    found: object = getattr(op, "_opoverload", op)
    name = found if isinstance(found, str) else op_name(found)
    name = ".".join(name.removeprefix("torch.ops.").replace("::", ".").split(".")[:2])
    if "." not in name:
        raise SignatureError(f"{op!r} is not an operation of torch.ops, nor the name of one, as 'mylib.roll'")
    if isinstance(found, str):
        namespace, _, base = name.partition(".")
        found = getattr(getattr(torch.ops, namespace), base, None)
    if isinstance(row, str):
        _check(name, found, row)
    if any(name in table for table in (SIGNATURES, _RULES, _POSITIONS)) and not override:
        raise SignatureError(f"{name} has a rule already; pass override=True to replace it")
    _RULES.pop(name, None)
    _POSITIONS.pop(name, None)
    SIGNATURES[name] = row


def _check(name: str, op: object, row: str) -> None:
    """Compare a row with the operation's schema, as far as there is one."""
    signature = parse(row)
    if "|" in row:
        raise SignatureError(f'"{row}": an interleaving (a | b) is for the patterns of tensors, not for operations')
    overloads = [op] if hasattr(op, "_schema") else [getattr(op, o) for o in getattr(op, "overloads", list)()]
    schemas = [overload._schema for overload in overloads if hasattr(overload, "_schema")]
    if not schemas:
        return
    fits = []
    for schema in schemas:
        kinds = [str(argument.type) for argument in schema.arguments]
        most = sum("Tensor" in kind for kind in kinds) if not any("List" in k and "Tensor" in k for k in kinds) else 99
        least = sum(kind == "Tensor" for kind in kinds)
        fits.append(least <= len(signature.operands) <= most and len(signature.results) <= len(schema.returns))
    if not any(fits):
        raise SignatureError(
            f'"{row}" has {len(signature.operands)} operands and {len(signature.results)} results, '
            f"which does not fit {name}:\n  " + "\n  ".join(map(str, schemas))
        )

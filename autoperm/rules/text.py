"""Pieces of which rows are written, and what a row is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..graph import Value

Row = str | Callable[..., str]
"""A signature, or a function of the operation's own arguments that returns one."""


def letters(value: Value) -> list[str]:
    """Return a name for each axis."""
    return [f"a{i}" for i in range(value.ndim)]


def dims_of(dim: int | Sequence[int] | None, ndim: int) -> set[int]:
    """Return the axes that an argument ``dim`` means: None or an empty list stand for all."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return set(range(ndim))
    return {d % max(ndim, 1) for d in ([dim] if isinstance(dim, int) else dim)}


def pinned_along(value: Value, dim: int | Sequence[int] | None) -> str:
    """Return a pattern with names, and ``_`` for the axes that ``dim`` means."""
    dims = dims_of(dim, value.ndim)
    return " ".join("_" if i in dims else letter for i, letter in enumerate(letters(value)))


def optional(row: str, *operands: tuple[str, object]) -> str:
    """Put the patterns of the operands that are there into a row."""
    return row.format("".join(f", {pattern}" for pattern, operand in operands if operand is not None))


def each(value: object, dims: int) -> list[object]:
    """Write an argument that may be one number for all dimensions as one for each."""
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    return found * dims if len(found) == 1 else found


def put(axes: Sequence[str], place: int, axis: str) -> list[str]:
    """Put another axis into a place."""
    return [*axes[:place], axis, *axes[place + 1 :]]

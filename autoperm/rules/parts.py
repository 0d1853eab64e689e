"""Operations that cut axes and join tensors: slices, splits, concatenation, padding, and writes to a range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..axes import regroup
from ..cutting import cut, restrict
from ..graph import Value
from ..joining import concatenate
from ..terms import Misfit, Term, constant, factor, is_pinned, misfit, product
from .context import Axes, Context, Rule


def _cut(ctx: Context, axes: Axes, dim: int, start: int, stop: int) -> Axes:
    """Cut a range out of one axis; every other factor turns into its member for that range."""
    if start >= stop:  # nothing is left, and nothing is said about the axes of nothing
        return [constant(0 if i == dim else axis.size) for i, axis in enumerate(axes)]
    piece, handles = cut(axes[dim], start, stop)
    return [piece if i == dim else restrict(axis, handles) for i, axis in enumerate(axes)]


def _clamp(value: int | None, size: int, default: int) -> int:
    if value is None:
        return default
    return min(max(value + size if value < 0 else value, 0), size)


def _rows_and_columns(axis: Term, start: int, step: int, count: int) -> Axes:
    """Read an axis as (size/step, step), if every step-th unit is one whole column of that; else return nothing."""
    if axis.size % step or start >= step or count != axis.size // step:
        return []
    try:
        return regroup([axis], [count, step])
    except Misfit:
        return []


def _slice(
    ctx: Context, self: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Axes:
    axes = list(ctx.axes(self))
    dim %= len(axes)
    size = axes[dim].size
    low = _clamp(start, size, 0)
    if step == 1 or ctx.result.shape[dim] <= 1:
        return _cut(ctx, axes, dim, low, low + ctx.result.shape[dim])
    table = _rows_and_columns(axes[dim], low, step, ctx.result.shape[dim])
    if table:
        found = _cut(ctx, [*axes[:dim], *table, *axes[dim + 1 :]], dim + 1, low, low + 1)
        del found[dim + 1]
        return found
    ctx.pin([axes[dim]], f"every {step}-th unit is taken", gap=True)
    ctx.relate(axes[:dim] + axes[dim + 1 :])
    axes[dim] = factor(ctx.result.shape[dim], misfit())
    return axes


def _select(ctx: Context, self: Value, dim: int, index: Any) -> Axes:
    axes = list(ctx.axes(self))
    dim %= len(axes)
    if not isinstance(index, int):
        ctx.pin([axes.pop(dim)], "a number that is computed says which unit is taken")
        ctx.relate(axes)
        return axes
    index %= axes[dim].size
    found = _cut(ctx, axes, dim, index, index + 1)
    del found[dim]
    return found


def _narrow(ctx: Context, self: Value, dim: int, start: int, length: int) -> Axes:
    axes = ctx.axes(self)
    return _cut(ctx, axes, dim % len(axes), start, start + length)


def _pieces(ctx: Context, self: Value, sizes: Sequence[int], dim: int) -> list[Axes]:
    axes, start, found = ctx.axes(self), 0, []
    for size in sizes:
        found.append(_cut(ctx, axes, dim % len(axes), start, start + size))
        start += size
    return found


def _split(ctx: Context, self: Value, split_size: int | Sequence[int], dim: int = 0) -> list[Axes]:
    if not isinstance(split_size, int):
        return _pieces(ctx, self, split_size, dim)
    size = self.shape[dim]
    return _pieces(ctx, self, [min(split_size, size - start) for start in range(0, size, split_size)], dim)


def _chunk(ctx: Context, self: Value, chunks: int, dim: int = 0) -> list[Axes]:
    return _split(ctx, self, max(-(-self.shape[dim] // chunks), 1), dim)


def _unbind(ctx: Context, self: Value, dim: int = 0) -> list[Axes]:
    found = _pieces(ctx, self, [1] * self.shape[dim], dim)
    for axes in found:
        del axes[dim % self.ndim]
    return found


def _cat(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Axes:
    dim %= ctx.result.ndim
    return _join(ctx, [ctx.axes(value) for value in tensors if value.shape != (0,)], dim)


def _join(ctx: Context, rows: Sequence[Axes], dim: int) -> Axes:
    """Join tensors; those of no length along the axis say nothing."""
    rows = [axes for axes in rows if axes[dim].size > 0]
    return concatenate(rows, dim) if rows else [constant(size) for size in ctx.result.shape]


def _stack(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Axes:
    dim %= tensors[0].ndim + 1
    rows = [[*axes[:dim], factor(1), *axes[dim:]] for axes in map(ctx.axes, tensors)]
    return concatenate(rows, dim)


def _slice_scatter(
    ctx: Context,
    self: Value,
    src: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Axes:
    """Overwrite a range: what was there before it, what is written, what was there after it."""
    axes, source = ctx.axes(self), ctx.axes(src)
    dim %= len(axes)
    size = axes[dim].size
    low = _clamp(start, size, 0)
    if step == 1 or src.shape[dim] <= 1:
        return _overwrite(ctx, axes, source, dim, low, low + src.shape[dim])
    table = _rows_and_columns(axes[dim], low, step, src.shape[dim])
    if table:
        split = [*axes[:dim], *table, *axes[dim + 1 :]]
        new = [*source[: dim + 1], factor(1), *source[dim + 1 :]]
        found = _overwrite(ctx, split, new, dim + 1, low, low + 1)
        return [*found[:dim], product(found[dim : dim + 2]), *found[dim + 2 :]]
    ctx.pin([*axes, *source], f"every {step}-th unit is overwritten", gap=True)
    return [factor(axis.size, misfit()) for axis in axes]


def _overwrite(ctx: Context, axes: Axes, source: Axes, dim: int, start: int, stop: int) -> Axes:
    rows = [_cut(ctx, axes, dim, 0, start), source, _cut(ctx, axes, dim, stop, axes[dim].size)]
    return _join(ctx, rows, dim)


def _select_scatter(ctx: Context, self: Value, src: Value, dim: int, index: int) -> Axes:
    axes, source = ctx.axes(self), list(ctx.axes(src))
    dim %= len(axes)
    index %= axes[dim].size
    source.insert(dim, factor(1))
    return _overwrite(ctx, axes, source, dim, index, index + 1)


def _pad(ctx: Context, self: Value, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Axes:
    """Padding with a constant joins a constant part; other modes read positions."""
    axes = list(ctx.axes(self))
    for k in range(len(pad) // 2):
        dim = len(axes) - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        if before == after == 0:
            continue
        if mode != "constant" or is_pinned(axes[dim]):
            names = [f"a{i}" for i in range(len(axes))]
            names[dim] = "_"
            shape = tuple(axis.size + (before + after) * (i == dim) for i, axis in enumerate(axes))
            (axes,) = ctx.bind(f"{' '.join(names)} -> {' '.join(names)}", [axes], [shape])
            continue
        if before < 0 or after < 0:
            axes = _cut(ctx, axes, dim, max(-before, 0), axes[dim].size - max(-after, 0))
        rows = [axes]
        if before > 0:
            rows.insert(0, [constant(before if i == dim else axis.size) for i, axis in enumerate(axes)])
        if after > 0:
            rows.append([constant(after if i == dim else axis.size) for i, axis in enumerate(axes)])
        axes = concatenate(rows, dim)
    return axes


def _pad_constant(ctx: Context, self: Value, pad: Sequence[int], value: Any = 0) -> Axes:
    return _pad(ctx, self, pad)


PARTS_RULES: dict[str, Rule] = {
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    "split": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "pad": _pad,
    "constant_pad_nd": _pad_constant,
}
"""By the name of the operation, without its namespace."""

"""Operations that rearrange axes: they work on terms, since a signature cannot name what they cut and join."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ..axes import regroup
from ..graph import Value
from ..joining import broadcast
from ..terms import Misfit, Pin, constant, factor, factors, misfit, pin, product
from .context import Axes, Context, Rule
from .parts import PARTS_RULES


def _view(ctx: Context, self: Value, *_: Any, **__: Any) -> Axes:
    """Axes whose sizes multiply to the same number, taken from the left, are the same axes cut differently."""
    source, target = ctx.axes(self), list(ctx.result.shape)
    if 0 in target:
        return _view_of_nothing(ctx, source, target)
    found, inside = _recut(source, target)
    # Of two copies of an axis, a factor may stand beside one before and beside the other after: here it stands alone.
    ctx.relate(inside)
    return found


def _view_of_nothing(ctx: Context, source: Axes, target: Sequence[int]) -> Axes:
    """A tensor of nothing (no token was routed here) says what goes with what only on either side of its empty axis."""
    sizes = [axis.size for axis in source]
    i, j = sizes.index(0), target.index(0)
    if prod(sizes[:i]) != prod(target[:j]) or prod(sizes[i + 1 :]) != prod(target[j + 1 :]):
        ctx.pin(source, "a tensor without elements is given another shape")
        return [factor(size, misfit()) for size in target]
    return [*_recut(source[:i], target[:j])[0], source[i], *_recut(source[i + 1 :], target[j + 1 :])[0]]


def _recut(source: Axes, target: Sequence[int]) -> tuple[Axes, Axes]:
    """Return axes cut differently, and the factors inside those that were cut, each by itself."""
    found: Axes = []
    inside: Axes = []
    i = j = 0
    while i < len(source) or j < len(target):
        inputs: Axes = []
        outputs: list[int] = []
        left = right = 1
        while (not inputs and not outputs) or left != right:
            if left <= right and i < len(source):
                inputs.append(source[i])
                left *= source[i].size
                i += 1
            elif j < len(target):
                outputs.append(target[j])
                right *= target[j]
                j += 1
            else:
                inputs.append(source[i])
                left *= source[i].size
                i += 1
        if len(inputs) == len(outputs) == 1:
            found += inputs
            inside += inputs
            continue
        try:
            found += regroup(inputs, outputs)
        except Misfit:
            why = misfit()
            for term in inputs:
                pin(term, why)
            found += [factor(size, why) for size in outputs]
        else:
            inside += [part for term in inputs for part in factors(term)]
    return found, inside


def _permute(ctx: Context, self: Value, dims: Sequence[int]) -> Axes:
    axes = ctx.axes(self)
    return [axes[dim] for dim in dims]


def _transpose(ctx: Context, self: Value, dim0: int, dim1: int) -> Axes:
    axes = list(ctx.axes(self))
    if axes:
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return axes


def _t(ctx: Context, self: Value) -> Axes:
    return ctx.axes(self)[::-1]


def _movedim(ctx: Context, self: Value, source: int | Sequence[int], destination: int | Sequence[int]) -> Axes:
    axes = ctx.axes(self)
    sources = [d % len(axes) for d in ([source] if isinstance(source, int) else source)]
    places = [d % len(axes) for d in ([destination] if isinstance(destination, int) else destination)]
    moved = dict(zip(places, sources, strict=True))
    rest = iter(d for d in range(len(axes)) if d not in sources)
    return [axes[moved[place] if place in moved else next(rest)] for place in range(len(axes))]


def _unsqueeze(ctx: Context, self: Value, dim: int) -> Axes:
    axes = list(ctx.axes(self))
    axes.insert(dim % (len(axes) + 1), factor(1))
    return axes


def _squeeze(ctx: Context, self: Value, dim: int | Sequence[int] | None = None) -> Axes:
    axes = ctx.axes(self)
    dims = range(len(axes)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % max(len(axes), 1) for d in dims}
    return [axis for i, axis in enumerate(axes) if not (i in gone and axis.size == 1)]


def _expand(ctx: Context, self: Value, *_: Any, **__: Any) -> Axes:
    """A new or stretched axis is the same all along."""
    return _stretch(ctx.axes(self), ctx.result.shape)


def _stretch(axes: Axes, shape: Sequence[int]) -> Axes:
    axes = [factor(1)] * (len(shape) - len(axes)) + axes
    return [axis if axis.size == size else constant(size) for axis, size in zip(axes, shape, strict=True)]


def _repeat(ctx: Context, self: Value, repeats: Sequence[int]) -> Axes:
    axes = ctx.axes(self)
    axes = [factor(1)] * (len(repeats) - len(axes)) + axes
    return [
        axis if n == 1 else product([constant(n), axis]) if axis.size > 1 else constant(n)
        for n, axis in zip(repeats, axes, strict=True)
    ]


def _repeat_interleave(ctx: Context, self: Value, repeats: Any = None, dim: int | None = None, **_: Any) -> Axes:
    axes = list(ctx.axes(self))
    if not isinstance(repeats, int):
        ctx.pin(ctx.axes(self if repeats is None else repeats), "numbers of repetitions")
        place = 0 if dim is None else dim % len(axes)
        rest = [] if dim is None else [axis for i, axis in enumerate(axes) if i != place]
        ctx.pin([axis for axis in axes if axis not in rest], "repeated a different number of times along the axis")
        ctx.relate(rest)
        return [*rest[:place], factor(ctx.result.shape[place], misfit()), *rest[place:]]
    if dim is None:
        axes, dim = [product(axes)], 0
    axes[dim] = product([axes[dim], constant(repeats)]) if axes[dim].size > 1 else constant(repeats)
    return axes


def _copy(ctx: Context, self: Value, src: Value, *_: Any) -> Axes:
    return _stretch(ctx.axes(src), self.shape)


def _type_as(ctx: Context, self: Value, other: Value) -> Axes:
    return ctx.axes(self)


def _filled(ctx: Context, *_: Any, **__: Any) -> Axes:
    return [constant(size) for size in ctx.result.shape]


def _random(ctx: Context, self: Value, *_: Any, **__: Any) -> Axes:
    """Only the shape is taken. Each place draws its own number, in a fixed order."""
    return [factor(size, Pin("random numbers", ctx.call)) for size in ctx.result.shape]


def _broadcast_tensors(ctx: Context, tensors: Sequence[Value]) -> list[Axes]:
    shape = ctx.result.shape
    return [_stretch(ctx.axes(value), shape) for value in tensors]


def _meshgrid(ctx: Context, tensors: Sequence[Value], indexing: str = "ij") -> list[Axes]:
    """Each result has its own operand along one axis, and is the same along the others."""
    places = list(range(len(tensors)))
    if indexing == "xy":
        places[:2] = places[1::-1]
    found = []
    for value, place in zip(tensors, places, strict=True):
        axes: Axes = [constant(size) for size in ctx.result.shape]
        axes[place] = ctx.axes(value)[0] if value.ndim else factor(1)
        found.append(axes)
    return found


def _extreme(ctx: Context, self: Value, other: Value | None = None) -> Axes:
    """``max`` and ``min`` of all, or of two tensors; along an axis: :mod:`autoperm.rules.positions`."""
    if other is not None:
        return broadcast([ctx.axes(self), ctx.axes(other)])
    ctx.relate(ctx.axes(self))
    return []


_RENAMES = {
    "_unsafe_view": "view",
    "reshape": "view",
    "flatten": "view",
    "unflatten": "view",
    "_reshape_alias": "view",
    "expand_as": "expand",
    "broadcast_to": "expand",
    "concat": "cat",
    "concatenate": "cat",
    "split_with_sizes": "split",
    "numpy_T": "t",
    "reshape_as": "view",
    "view_as": "view",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "tile": "repeat",
    "ravel": "view",
    "unsafe_split": "split",
    "unsafe_split_with_sizes": "split",
    "unsafe_chunk": "chunk",
    "empty_permuted": "empty",
    "empty_strided": "empty",
    "new_empty_strided": "new_empty",
    **{
        f"{name}_copy": name
        for name in "expand permute select slice split squeeze t transpose unbind unsqueeze view".split()
    },
    "split_with_sizes_copy": "split",
    "narrow_copy": "narrow",
}

_RULES: dict[str, Rule] = {
    **PARTS_RULES,
    "view": _view,
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "movedim": _movedim,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "copy": _copy,
    "type_as": _type_as,
    "meshgrid": _meshgrid,
    "broadcast_tensors": _broadcast_tensors,
    **dict.fromkeys(("rand_like", "randn_like", "randint_like"), _random),
    **dict.fromkeys(("max", "min", "median", "nanmedian"), _extreme),
    **dict.fromkeys(
        ("zeros", "ones", "full", "empty", "scalar_tensor", "zeros_like", "ones_like", "full_like", "empty_like"),
        _filled,
    ),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "fill", "zero"), _filled),
}

SHAPE_RULES: dict[str, Rule] = {
    **PARTS_RULES,
    **{f"aten.{name}": rule for name, rule in _RULES.items()},
    **{f"aten.{name}": _RULES[target] for name, target in _RENAMES.items()},
}

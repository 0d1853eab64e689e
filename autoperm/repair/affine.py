"""Operations that end with an affine step on each channel: what scales it, what shifts it, and where channels are.

A contraction has channels on the axes that its result and its weight share: there the weight scales the result. What it
lacks is a bias, unless a parameter is added to it at once. A normalisation has them where its weight is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..graph import Call, Value
from ..rules import op_name
from ..trace.schema import in_order


@dataclass(frozen=True, eq=False)
class Affine:
    """A step y = weight * (...) + bias on each channel.

    Attributes:
        axes: those of the result on which the channels are, rising.
        weight: what scales; None where there is none.
        channels: the number of the channel that each entry of the weight belongs to, of a shape that broadcasts.
        bias: what shifts, with one entry a channel; None where there is none.
        normalises: whether what it scales and shifts has been normalised.
        is_product: whether it is no more than a product with the weight.
    """

    axes: tuple[int, ...]
    weight: Any
    channels: Tensor
    bias: Any = None
    normalises: bool = False
    is_product: bool = False


IsParameter = Callable[[object], bool]
Read = Callable[[Sequence[Any], Value, IsParameter], Affine | None]


def affine(call: Call, is_parameter: IsParameter) -> Affine | None:
    """Return the affine step that an operation ends with; None if it has none that is known.

    Args:
        call: the operation.
        is_parameter: tells which operands are parameters, or views of them.

    Example:
        >>> from autoperm.graph import Where
        >>> x, w, y = Value("x", (2, 3)), Value("w", (4, 3), "parameter"), Value("y", (2, 4))
        >>> call = Call(torch.ops.aten.linear.default, (x, w), {}, (y,), Where())
        >>> found = affine(call, lambda operand: operand is w)
        >>> found.axes, found.channels.flatten().tolist(), found.bias
        ((1,), [0, 1, 2, 3], None)
    """
    read = _READ.get(op_name(call.op).removeprefix("aten."))
    result = call.results[0] if call.results else None
    if read is None or result is None:
        return None
    return read(in_order(call.op, call.args, call.kwargs), result, is_parameter)


def numbers(shape: Sequence[int], axes: Sequence[int], places: Sequence[int | None]) -> Tensor:
    """Number the channels of a result, as an operand sees them.

    Args:
        shape: of the result.
        axes: those of the channels.
        places: for each axis of the operand the axis of the result that it is, or None.

    Example:
        >>> numbers((5, 2, 3), (1, 2), (2, None, 1))[:, 0]
        tensor([[0, 3],
                [1, 4],
                [2, 5]])
    """
    sizes = [shape[axis] for axis in axes]
    grid = torch.arange(prod(sizes)).view(sizes)
    found = [place for place in places if place is not None]
    grid = grid.permute([list(axes).index(place) for place in found])
    return grid[tuple(slice(None) if place is not None else None for place in places)]


def _shared(result: Value, weight: Value, places: Sequence[int | None], bias: object = None) -> Affine:
    axes = tuple(sorted(place for place in places if place is not None))
    return Affine(axes, weight, numbers(result.shape, axes, places), bias)


def _get(args: Sequence[Any], place: int) -> Any:
    return args[place] if place < len(args) else None


# --- contractions


def _linear(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    return _shared(result, args[1], [result.ndim - 1, None], _get(args, 2)) if args[1].ndim == 2 else None


def _convolution(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine:
    weight: Value = args[1]
    return _shared(result, weight, [result.ndim - weight.ndim + 1] + [None] * (weight.ndim - 1), _get(args, 2))


def _transposed_convolution(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine:
    weight: Value = args[1]
    groups = _get(args, 6) or 1
    channels = torch.arange(groups * weight.shape[1]).view(groups, 1, -1)
    channels = channels.expand(groups, weight.shape[0] // groups, -1).reshape(*weight.shape[:2])
    channels = channels.view(*channels.shape, *[1] * (weight.ndim - 2))
    return Affine((result.ndim - weight.ndim + 1,), weight, channels, _get(args, 2))


def _product(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    for weight, kept in ((args[1], -1), (args[0], -2)):
        if is_parameter(weight) and weight.ndim >= 2 and result.ndim >= weight.ndim:
            start = result.ndim - weight.ndim
            places = [start + i if size > 1 else None for i, size in enumerate(weight.shape)]
            places[-1 if kept == -2 else -2] = None
            places[kept] = result.ndim + kept
            return _shared(result, weight, places)
    return None


def _sum_and_product(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    if not is_parameter(args[2]) or not is_parameter(args[0]) or any(factor != 1 for factor in args[3:5]):
        return None
    return _shared(result, args[2], [None, 1], args[0]) if args[0].ndim == 1 else None


def _einsum(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    inputs, arrow, output = args[0].replace(" ", "").partition("->")
    labels = inputs.split(",")
    found = [i for i, operand in enumerate(args[1]) if is_parameter(operand)]
    if not arrow or "." in args[0] or len(found) != 1 or len(set(labels[found[0]])) < len(labels[found[0]]):
        return None
    places = [output.find(label) if label in output else None for label in labels[found[0]]]
    return _shared(result, args[1][found[0]], places) if any(place is not None for place in places) else None


# --- normalisations


def _on_second_axis(weight: int) -> Read:
    def read(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
        scale = _get(args, weight)
        return scale and Affine((1,), scale, numbers(result.shape, (1,), (1,)), _get(args, weight + 1), True)

    return read


def _on_last_axes(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    scale = _get(args, 2)
    axes = tuple(range(result.ndim - len(args[1]), result.ndim))
    return scale and Affine(axes, scale, numbers(result.shape, axes, axes), _get(args, 3), True)


def _rms_norm(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    return _on_last_axes(args[:3], result, is_parameter)


# --- products


def _scale(args: Sequence[Any], result: Value, is_parameter: IsParameter) -> Affine | None:
    for scale in args[:2]:
        if is_parameter(scale) and scale.ndim <= result.ndim:
            start = result.ndim - scale.ndim
            found = _shared(result, scale, [start + i if size > 1 else None for i, size in enumerate(scale.shape)])
            return replace(found, is_product=True)
    return None


_READ: dict[str, Read] = {
    "linear": _linear,
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _transposed_convolution for n in (1, 2, 3)},
    **{name: _product for name in ("mm", "bmm", "matmul")},
    "addmm": _sum_and_product,
    "einsum": _einsum,
    "batch_norm": _on_second_axis(1),
    "instance_norm": _on_second_axis(1),
    "group_norm": _on_second_axis(2),
    "layer_norm": _on_last_axes,
    "rms_norm": _rms_norm,
    "mul": _scale,
}

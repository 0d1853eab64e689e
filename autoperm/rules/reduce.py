"""Rows of what looks along an axis: norms, reductions, and what depends on the order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..graph import Value
from .text import Row, dims_of, letters, optional, pinned_along, put


def batch_norm(
    input: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    *_: object,
) -> str:
    """Each channel by itself, with statistics that are kept, or taken over all that is not the channel."""
    operands = (("c", weight), ("c", bias), ("c", running_mean), ("c", running_var))
    inside = "" if running_mean is not None else " -> c"
    return optional(f"b c ...{{}}{inside} -> b c ...", *operands)


def _instance_norm(
    input: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    use_input_stats: bool = True,
    *_: object,
) -> str:
    operands = (("c", weight), ("c", bias), ("c", running_mean), ("c", running_var))
    inside = " -> b c" if use_input_stats else ""
    return optional(f"b c ...{{}}{inside} -> b c ...", *operands)


def layer_norm(
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *_: object,
) -> str:
    """Mean and scale are taken over the last axes."""
    axes = " ".join(f"c{i}" for i in range(len(normalized_shape)))
    return optional(f"... {axes}{{}} -> ... -> ... {axes}", (axes, weight), (axes, bias))


def _rms_norm(
    input: Value, normalized_shape: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> str:
    return layer_norm(input, normalized_shape, weight)


def group_norm(
    input: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, *_: object
) -> str:
    """Mean and scale are taken over the channels of a group, and all positions."""
    # The second tensor says that no position within a group is a position in the batch, should both have one factor.
    row = f"b (g={num_groups} c) ...{{}} -> b g, b g c ... -> b (g c) ..."
    return optional(row, ("(g c)", weight), ("(g c)", bias))


def weight_norm(v: Value, g: Value, dim: int = 0) -> str:
    """The norm is taken over all axes but one."""
    axes = letters(v)
    if dim == -1:  # one norm of all, not one for each unit of the last axis
        return f"{' '.join(axes)}, {' '.join('1' * g.ndim)} -> {' '.join('1' * g.ndim)} -> {' '.join(axes)}"
    kept = [axis if i == dim % v.ndim else "1" for i, axis in enumerate(axes)]
    return f"{' '.join(axes)}, {' '.join(kept)} -> {axes[dim % v.ndim]} -> {' '.join(axes)}"


def _softmax(input: Value, dim: int, *_: object, **__: object) -> str:
    axes = letters(input)
    rest = [axis for i, axis in enumerate(axes) if i not in dims_of(dim, input.ndim)]
    return f"{' '.join(axes)} -> {' '.join(rest)} -> {' '.join(axes)}"


# --- reductions


def _reduce(
    input: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False, *_: object, **__: object
) -> str:
    dims = dims_of(dim, input.ndim)
    axes = letters(input)
    kept = [("1" if keepdim else "") if i in dims else axis for i, axis in enumerate(axes)]
    return f"{' '.join(axes)} -> {' '.join(filter(None, kept))}"


def _reduce_all(input: Value, *_: object, **__: object) -> str:
    return f"{' '.join(letters(input))} -> "


def _variance(input: Value, *args: object, **kwargs: object) -> str:
    dim = args[0] if args else kwargs.get("dim")
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if isinstance(dim, bool):
        return _reduce_all(input)
    return _reduce(input, dim, bool(keep))  # type: ignore[arg-type]


def _two(row: Callable[..., str]) -> Callable[..., str]:
    """Of two results that have the same axes."""

    def twice(*args: object, **kwargs: object) -> str:
        operands, _, result = row(*args, **kwargs).rpartition(" ->")
        return f"{operands} ->{result},{result}"

    return twice


def _aminmax(input: Value, *, dim: int | None = None, keepdim: bool = False) -> str:
    return _reduce(input, dim, keepdim)


def _norm(
    input: Value, ord: object = None, dim: int | Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> str:
    """A matrix's norms look at rows and columns as such: columns may not vary along rows, or rows along columns."""
    row = _reduce(input, dim, keepdim)
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    if ord is None or ord == "fro" or len(dims) != 2:
        return row
    rows, columns = (d % input.ndim for d in dims)
    gone = {1: [rows], -1: [rows], math.inf: [columns], -math.inf: [columns]}.get(ord, [rows, columns])  # type: ignore[call-overload]
    inside = [" ".join(axis for i, axis in enumerate(letters(input)) if i != place) for place in gone]
    operand, _arrow, result = row.partition(" ->")
    return f"{operand} -> {', '.join(inside)} ->{result}"


def _matrix_norm(input: Value, ord: object = "fro", dim: Sequence[int] = (-2, -1), *rest: Any, **kw: Any) -> str:
    return _norm(input, ord, dim, *rest, **kw)


def _vector_norm(
    input: Value, ord: object = 2, dim: int | Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> str:
    return _reduce(input, dim, keepdim)


def cumulate(input: Value, dim: int | Sequence[int] | None, *_: object, **__: object) -> str:
    """The order along an axis matters."""
    row = pinned_along(input, dim)
    return f"{row} -> {row}"


def _ordered_along(first: int | None) -> Callable[..., str]:
    """Operations with one ``dim`` or several, after the input; None: along all axes."""

    def row(input: Value, dim: int | Sequence[int] | None = first, *_: object, **__: object) -> str:
        return cumulate(input, dim)

    return row


def _unfold(input: Value, dimension: int, size: int, step: int) -> str:
    row = pinned_along(input, dimension)
    return f"{row} -> {row} _"


def _cross(input: Value, other: Value, *, dim: int = -1) -> str:
    axes = put(letters(input), dim % input.ndim, "_")
    return f"{' '.join(axes)}, {' '.join(axes)} -> {' '.join(axes)}"


def _diagonal(input: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    first, second = dim1 % input.ndim, dim2 % input.ndim
    square = offset == 0 and input.shape[first] == input.shape[second]
    axes = put(put(letters(input), first, "i" if square else "_"), second, "i" if square else "_")
    kept = [axis for i, axis in enumerate(axes) if i not in (first, second)]
    return f"{' '.join(axes)} -> {' '.join([*kept, 'i' if square else '_'])}"


def _diag_embed(input: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> str:
    *axes, last = letters(input)
    ndim = input.ndim + 1
    rest = iter(axes)
    places = {dim1 % ndim, dim2 % ndim}
    result = [(last if offset == 0 else "_") if i in places else next(rest) for i in range(ndim)]
    return f"{' '.join([*axes, last if offset == 0 else '_'])} -> {' '.join(result)}"


def _diag(input: Value, diagonal: int = 0) -> str:
    return _diag_embed(input, diagonal) if input.ndim == 1 else _diagonal(input, diagonal)


def _flip(input: Value, dims: Sequence[int]) -> str:
    return cumulate(input, dims)


def _roll(input: Value, shifts: object, dims: Sequence[int] = ()) -> str:
    return cumulate(input, dims)


def _diff(input: Value, n: int = 1, dim: int = -1, *_: object) -> str:
    return cumulate(input, dim)


def _fft(default: int | Sequence[int] | None) -> Callable[..., str]:
    def row(input: Value, n: object = None, dim: int | Sequence[int] | None = default, *_: object, **__: object) -> str:
        return cumulate(input, default if dim is None else dim)

    return row


def _count(input: Value, *weights: object, **__: object) -> str:
    """Bins are ordered; what falls into them may come in any order."""
    axes = " ".join(letters(input))
    return ", ".join([axes, *(axes for weight in weights if isinstance(weight, Value))]) + " -> _"


def _triangle(input: Value, *_: object) -> str:
    """What is kept depends on the place, but nothing moves: other axes may vary along these."""
    return "... i! j! -> ... i! j!"


REDUCTIONS: dict[str, Row] = {
    # normalisation: the intermediate is what the mixed axis is gone from
    "aten.batch_norm": batch_norm,
    "aten._native_batch_norm_legit_no_training": batch_norm,
    "aten.instance_norm": _instance_norm,
    "aten.layer_norm": layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten.group_norm": group_norm,
    "aten._weight_norm": weight_norm,
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten._safe_softmax": _softmax,
    "aten.log_softmax": _softmax,
    "aten._log_softmax": _softmax,
    # reductions
    **{f"aten.{name}": _reduce for name in ("sum", "mean", "amax", "amin", "logsumexp", "prod", "any", "all")},
    **{f"aten.{name}": _reduce for name in ("nansum", "nanmean", "frobenius_norm")},
    **{f"aten.{name}": _reduce_all for name in ("_is_all_true", "_is_any_true")},
    "aten.linalg_matrix_norm": _matrix_norm,
    "aten.linalg_vector_norm": _vector_norm,
    "aten.norm": _vector_norm,
    "aten.var": _variance,
    "aten.std": _variance,
    "aten.var_mean": _two(_variance),
    "aten.std_mean": _two(_variance),
    "aten.aminmax": _two(_aminmax),
    "aten.linalg_norm": _norm,
    "aten.count_nonzero": _reduce,
    "aten.histc": _count,
    "aten.bincount": _count,
    # order along an axis
    **{f"aten.{name}": cumulate for name in ("cumsum", "cumprod", "logcumsumexp")},
    **{f"aten.{name}": _two(cumulate) for name in ("cummax", "cummin")},
    "aten.diff": _diff,
    "aten.unfold": _unfold,
    "aten.linalg_cross": _cross,
    "aten.diagonal": _diagonal,
    "aten.diag_embed": _diag_embed,
    "aten.diag": _diag,
    "aten.flip": _flip,
    "aten.roll": _roll,
    "aten.triu": _triangle,
    "aten.tril": _triangle,
    **{f"aten.fft_{name}": _fft(-1) for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")},
    **{f"aten.fft_{name}": _fft((-2, -1)) for name in ("fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2")},
    **{f"aten.fft_{name}": _fft(None) for name in ("fftn", "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn")},
    **{f"aten.fft_{name}": _ordered_along(None) for name in ("fftshift", "ifftshift")},
    "aten.view_as_real": "... -> ... 2",
    "aten.view_as_complex": "... 2 -> ...",
}

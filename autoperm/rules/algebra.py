"""Rows of linear algebra, distances and losses: whole matrices in, few axes out.

The inverse of ``P A Q'`` is ``Q inv(A) P'``: rows and columns are permuted each in its own way, and change sides. A
determinant keeps its sign only if rows and columns are permuted together. A factorisation that goes from the first row
to the last (Cholesky) needs their order; batches of matrices are free everywhere. Where all rows meet all columns, the
intermediates without one of them say that neither may vary along the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..graph import Value
from .text import Row, dims_of, letters, optional, put

_INVERSE = "... i j -> ... i, ... j -> ... j i"


def _matrix(axes: str) -> Callable[..., str]:
    """Of one matrix, with options that change nothing about the axes."""

    def row(input: Value, *_: object, **__: object) -> str:
        return axes

    return row


def _solve(a: Value, b: Value, *, left: bool = True, **_: object) -> str:
    if b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]):
        return "... i j, ... i -> ... j"
    return "... i j, ... i k -> ... j k" if left else "... i j, ... k j -> ... k i"


def _solve_triangular(a: Value, b: Value, *, left: bool = True, **_: object) -> str:
    return "... _ _, ... _ k -> ... _ k" if left else "... _ _, ... k _ -> ... k _"


def _renorm(input: Value, p: object, dim: int, *_: object) -> str:
    axes = letters(input)
    return f"{' '.join(axes)} -> {axes[dim]} -> {' '.join(axes)}"


def _quantile(input: Value, q: Any, dim: int | None = None, keepdim: bool = False, **_: object) -> str:
    gone = dims_of(dim, input.ndim)
    kept = [("1" if keepdim else "") if i in gone else axis for i, axis in enumerate(letters(input))]
    asked = "q" * q.ndim if isinstance(q, Value) else ""
    operand = f", {asked}" if isinstance(q, Value) else ""
    return f"{' '.join(letters(input))}{operand} -> {' '.join(filter(None, [asked, *kept]))}"


def _cross(input: Value, other: Value, dim: int | None = None) -> str:
    place = input.shape.index(3) if dim is None else dim % input.ndim
    axes = " ".join(put(letters(input), place, "_"))
    return f"{axes}, {axes} -> {axes}"


# --- places among sorted numbers


def _searchsorted(sorted_sequence: Value, input: Any, *, sorter: Value | None = None, **_: object) -> str:
    if sorted_sequence.ndim == 1:
        found = "..." if isinstance(input, Value) else ""
        return optional(f"_{', ...' if found else ''}{{}} -> {found}", ("_", sorter))
    return optional("... _, ... s{} -> ... s", ("... _", sorter))


# --- distances and losses


def _pairwise_distance(a: Value, b: Value, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> str:
    return f"... d, ... d -> ...{' 1' * keepdim}"


def _reduced(*operands: Value, to: str = "") -> str:
    """All axes of all operands, aligned from the right, are gone."""
    ndim = max(value.ndim for value in operands)
    axes = [f"a{i}" for i in range(ndim)]
    return f"{', '.join(' '.join(axes[ndim - value.ndim :]) for value in operands)} -> {to}"


def _distance(a: Value, b: Value, *_: object) -> str:
    return _reduced(a, b)


def _loss(weights: int = 0) -> Callable[..., str]:
    """A loss of each element, or their mean or sum."""

    def row(input: Value, target: Value, *rest: Any, reduction: int = 1, **_: object) -> str:
        given = [value for value in rest[:weights] if isinstance(value, Value)]
        reduction = rest[weights] if len(rest) > weights else reduction
        operands = [input, target, *given]
        return _reduced(*operands) if reduction else f"{', '.join(['...'] * len(operands))} -> ..."

    return row


def _of_classes(input: Value, target: Value, weight: Value | None = None, reduction: int = 1, *_: object) -> str:
    """Classes are told by their numbers, unless their probabilities are given."""
    by_number = target.shape != input.shape
    classes, batch = "_" if by_number else "c", ["n"] * (input.ndim > 1) + [f"a{i}" for i in range(input.ndim - 2)]
    each = " ".join([*batch[:1], classes, *batch[1:]])
    left = "" if reduction else " ".join(batch)
    inside = "" if by_number else f" -> {' '.join(batch)}"
    return optional(f"{each}, {' '.join(batch) if by_number else each}{{}}{inside} -> {left}", (classes, weight))


def _nll_loss_forward(input: Value, target: Value, weight: Value | None, reduction: int, *_: object) -> str:
    """The second result is the weight of all."""
    return f"{_of_classes(input, target, weight, reduction)}, "


def _affine_grid(theta: Value, size: Sequence[int], *_: object) -> str:
    dims = len(size) - 2
    return f"n x {dims + 1} -> n{' _' * dims} x"


ALGEBRA: dict[str, Row] = {
    **{f"aten.{name}": _matrix(_INVERSE) for name in ("inverse", "linalg_inv", "linalg_pinv", "pinverse")},
    "aten.linalg_inv_ex": _matrix(f"{_INVERSE}, ..."),
    **{f"aten.{name}": _matrix("... i i -> ...") for name in ("det", "linalg_det", "_linalg_det", "logdet")},
    **{f"aten.{name}": _matrix("... i i -> ..., ...") for name in ("slogdet", "linalg_slogdet", "_linalg_slogdet")},
    **{f"aten.{name}": _matrix("... i i -> ... i i") for name in ("matrix_exp", "linalg_matrix_exp")},
    **{f"aten.{name}": _matrix("... i i -> ... i i") for name in ("matrix_power", "linalg_matrix_power")},
    "aten.linalg_svdvals": _matrix("... i j -> ... i, ... j -> ... _"),
    "aten.linalg_eigvalsh": _matrix("... i i -> ... _"),
    "aten.linalg_cholesky": _matrix("... _ _ -> ... _ _"),
    "aten.linalg_cholesky_ex": _matrix("... _ _ -> ... _ _, ..."),
    "aten.cholesky": _matrix("... _ _ -> ... _ _"),
    **{f"aten.{name}": _solve for name in ("linalg_solve", "linalg_solve_ex", "_linalg_solve_ex")},
    "aten.linalg_solve_triangular": _solve_triangular,
    "aten.cholesky_solve": _matrix("... _ k, ... _ _ -> ... _ k"),
    "aten.renorm": _renorm,
    "aten.quantile": _quantile,
    "aten.nanquantile": _quantile,
    "aten.cross": _cross,
    "aten.searchsorted": _searchsorted,
    "aten.bucketize": _matrix("..., _ -> ..."),
    "aten.dist": _distance,
    "aten.pdist": _matrix("_ d -> _"),
    "aten._pdist_forward": _matrix("_ d -> _"),
    "aten.pairwise_distance": _pairwise_distance,
    **{f"aten.{name}": _loss() for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div")},
    "aten.soft_margin_loss": _loss(),
    "aten.binary_cross_entropy": _loss(weights=1),
    "aten.binary_cross_entropy_with_logits": _loss(weights=2),
    **{f"aten.{name}": _of_classes for name in ("nll_loss", "nll_loss_nd", "nll_loss2d", "cross_entropy_loss")},
    "aten.nll_loss_forward": _nll_loss_forward,
    "aten.nll_loss2d_forward": _nll_loss_forward,
    "aten.affine_grid_generator": _affine_grid,
    "aten.grid_sampler_3d": "b c _ _ _, b x y z 3 -> b c x y z",
}

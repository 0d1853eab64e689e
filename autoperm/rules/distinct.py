"""Which values are known to differ: only among such does ``topk`` or ``argmax`` not look at places.

Two equal values are told apart by their places alone, so a position that a *tie* decides does not move with the units.
Units of a ReLU that are off are all zero, what is masked is all the same, a clamp has two flat ends: these are equal
with positive probability, for any parameters. Values that differ along an axis for all parameters and inputs but a set
of measure zero may be sorted by it, and that they do so is never assumed, but carried along:

* a parameter differs along all its axes (a buffer may be a mask); so does what a contraction makes of it along the axes
  it brings (``linear``: along the outputs), if what it is contracted with is not zero, or if a bias does;
* functions that take different values to different values keep it, and so do sums and products with tensors that do
  not have the axis, or differ along it too;
* reductions keep it for the axes that are left as long as everything before was polynomial (the values of a softmax
  differ, but their sums are all one);
* everything else loses it.

A value that may be **zero** as a whole, with positive probability, is followed beside: ``FLAT`` values come straight
out of an operation with flat pieces, ``MAYBE_ZERO`` ones have gone through a contraction since, after which they are
added to something else without cancelling it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..graph import Call, Value
from ..terms import CONSTANT, Term, leaves_of
from .context import Axes

NONZERO, MAYBE_ZERO, FLAT = range(3)


@dataclass(frozen=True, slots=True)
class Spread:
    """What is known of the values of a tensor.

    Attributes:
        along: axes along which no two values are equal.
        polynomial: the values are a polynomial in parameters and inputs.
        level: whether they may be zero, ``NONZERO``, ``MAYBE_ZERO`` or ``FLAT``.
        source: equal for values that are the same numbers: copies, and what is computed twice.
    """

    along: tuple[Term, ...] = ()
    polynomial: bool = False
    level: int = FLAT
    source: object = None


def differs_along(spread: Spread, axis: Term) -> bool:
    """Tell whether no two values along an axis are equal."""
    known = {leaf for term in spread.along for leaf in _leaves(term)}
    return all(leaf.kind != CONSTANT and leaf in known for leaf in _leaves(axis))


def _leaves(term: Term) -> list[Term]:
    return [leaf for leaf in leaves_of(term) if leaf.size > 1 or leaf.kind == CONSTANT]


def initial(value: Value, axes: Axes) -> Spread:
    """What is known of a value that no call makes."""
    if value.kind == "parameter":
        return Spread(tuple(axes), True, NONZERO)
    if value.kind == "buffer":  # it may be a mask
        return Spread((), True, FLAT)
    if value.kind == "input":
        return Spread((), True, NONZERO)
    data = value.data
    if data is None or data.is_meta or data.numel() > 1 << 20 or not bool((data.isfinite() & (data != 0)).all()):
        return Spread()
    return Spread((), True, NONZERO)


_CONTRACTIONS = {
    # the places of what is added, not multiplied
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution", "bilinear"), -1),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), -1),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "outer", "einsum", "tensordot"), None),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), 0),
}
_DISTANCES = frozenset(("cdist", "_cdist_forward", "_euclidean_dist"))
_SAME = frozenset("clone alias detach contiguous lift_fresh lift_fresh_copy _to_copy to positive dropout".split())
_MOVED = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t unsqueeze squeeze movedim expand expand_as "
    "broadcast_to slice select narrow split split_with_sizes chunk unbind swapaxes swapdims moveaxis".split()
)
_INJECTIVE = frozenset(
    "sigmoid tanh exp log neg reciprocal sqrt rsqrt square abs softplus log_sigmoid logit silu gelu mish elu selu celu "
    "leaky_relu atan sinh asinh erf log1p expm1 log2 log10 exp2 sin cos".split()
)
"""One-to-one, up to a set of measure zero."""
_SOFTMAXES = frozenset(("softmax", "log_softmax", "_softmax", "_log_softmax"))
_SUMS = frozenset(("sum", "mean"))
_NORMS = frozenset(("linalg_vector_norm", "norm", "logsumexp", "prod", "var", "std"))
_NORMALISATIONS = frozenset(
    "layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm native_group_norm batch_norm native_batch_norm "
    "_native_batch_norm_legit_no_training instance_norm".split()
)
_READS = frozenset("embedding index _unsafe_index index_select gather take_along_dim repeat".split())
_JOINS = frozenset(("cat", "concat", "stack"))


class Spreads:
    """What is known of the values of each tensor of a graph."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.known: dict[Value, Spread] = {}
        self.uses: dict[Value, int] = {}
        self.sources: dict[object, object] = {}
        for call in calls:
            for value in call.operands():
                self.uses[value] = self.uses.get(value, 0) + 1

    def of(self, value: Value, axes: Axes) -> Spread:
        """Return what is known of a value with given axes."""
        if value not in self.known:
            self.known[value] = replace(initial(value, axes), source=value)
        return self.known[value]

    def follow(self, name: str, call: Call, axes: Mapping[Value, Axes]) -> None:
        """Note what is known of a call's results, once their axes are."""
        operands = list(call.operands())
        for value in operands:
            self.of(value, axes.get(value, []))
        spread = self._follow(name.removeprefix("aten."), call, operands, axes)
        source = self._source(call) if spread.source is None else spread.source
        for result in call.results:
            if result is not None and result in axes:
                leaves = {leaf for axis in axes[result] for leaf in _leaves(axis)}
                along = tuple(leaf for term in spread.along for leaf in _leaves(term) if leaf in leaves)
                self.known[result] = replace(spread, along=along, source=source if len(call.results) == 1 else result)

    def _source(self, call: Call) -> object:
        """The same operation on the same numbers gives the same numbers."""

        def key(item: object) -> object:
            if isinstance(item, Value):
                return id(self.known[item].source)
            return tuple(map(key, item)) if isinstance(item, (list, tuple)) else repr(item)

        arguments = (*call.args, *sorted(call.kwargs.items()))
        return self.sources.setdefault((call.op, key(arguments)), object())

    def _follow(self, name: str, call: Call, operands: Sequence[Value], axes: Mapping[Value, Axes]) -> Spread:
        if not operands:
            return Spread()
        first = self.known[operands[0]]
        if any(isinstance(a, torch.dtype) and not a.is_floating_point for a in (*call.args, *call.kwargs.values())):
            return Spread()  # rounded
        if name in _SAME:
            return first
        if name in _MOVED or name in _SUMS:
            lost = name in _SUMS and not first.polynomial
            level = MAYBE_ZERO if name in _SUMS and first.level else first.level
            return Spread(() if lost else first.along, first.polynomial, level)
        if name in _INJECTIVE:
            return Spread(first.along, name in ("neg", "square") and first.polynomial, first.level)
        if name in _SOFTMAXES:  # along other axes than its own they may all be the same: one, where it has length 1
            (dim, *_) = (*call.args[1:], *call.kwargs.values())
            own = set(_leaves(axes[operands[0]][dim])) if operands[0].ndim else set()
            return Spread(tuple(t for term in first.along for t in _leaves(term) if t in own), False, first.level)
        if name in _NORMS:
            return Spread(first.along if first.polynomial else (), False, first.level)
        if name in _CONTRACTIONS:
            return self._contraction(_CONTRACTIONS[name], call, operands)
        if name in _DISTANCES:
            return Spread(self._each(operands), False, NONZERO)
        if name in ("add", "sub", "rsub", "mul", "div", "pow"):
            return self._arithmetic(name, call, operands, axes)
        if name in _NORMALISATIONS:
            shifted = sum(self.known[value].level == NONZERO for value in operands[1:]) > 1
            return Spread((), False, NONZERO if shifted else first.level)
        if name == "scaled_dot_product_attention":
            return Spread((), False, min(self.known[operands[2]].level, MAYBE_ZERO))
        if name in _READS:
            return Spread((), first.polynomial, first.level)
        if name in _JOINS:
            return Spread((), False, max(self.known[value].level for value in operands))
        return Spread()

    def _each(self, operands: Sequence[Value]) -> tuple[Term, ...]:
        return tuple(term for value in operands for term in self.known[value].along)

    def _contraction(self, added: int | None, call: Call, operands: Sequence[Value]) -> Spread:
        """A sum of products differs along an axis if one side does, unless it is multiplied with zero."""
        sums = (
            [operands[added]] if added == 0 or (added == -1 and len(call.args) > 2 and call.args[2] is not None) else []
        )
        if call.op is torch.ops.aten.bilinear.default:
            sums = list(operands[3:])
        factors = [value for value in operands if value not in sums]
        level = max(self.known[value].level for value in factors)
        along = self._each(sums)
        for value in factors:
            others = [other for other in factors if other is not value]
            if all(self.known[other].level == NONZERO and other.kind != "constant" for other in others):
                along += self.known[value].along
        if any(self.known[value].level == NONZERO for value in sums):
            level = NONZERO
        return Spread(along, all(self.known[value].polynomial for value in operands), min(level, MAYBE_ZERO))

    def _arithmetic(self, name: str, call: Call, operands: Sequence[Value], axes: Mapping[Value, Axes]) -> Spread:
        a = self.known[operands[0]]
        if len(operands) == 1:
            number = call.args[1] if isinstance(call.args[0], Value) else None
            if name == "pow":
                return Spread(a.along if number else (), a.polynomial and number == 2, a.level if number else FLAT)
            if name in ("mul", "div"):
                return replace(a, level=a.level if number else FLAT, along=a.along if number else (), source=None)
            return replace(a, source=None)
        b = self.known[operands[1]]
        if name == "pow" or a.source is b.source:
            return Spread()  # a value with itself: their difference is zero, their quotient is one
        polynomial = a.polynomial and b.polynomial and name != "div"
        # Where only one operand has an axis, the other is the same all along it. Where both have it, they may depend on
        # each other, as x and |x|, unless both are polynomials, or one a tensor that nothing else depends on.
        leaves = [{leaf for axis in axes.get(value, []) for leaf in _leaves(axis)} for value in operands]
        known = [{leaf for term in spread.along for leaf in _leaves(term)} for spread in (a, b)]
        kept = (known[0] - leaves[1]) | (known[1] - leaves[0]) | (known[0] & known[1] if polynomial else set())
        alone = [value.kind in ("parameter", "buffer") and self.uses[value] == 1 for value in operands]
        level = max(a.level, b.level)
        if name in ("mul", "div"):
            for k in (0, 1):
                kept |= known[k] if alone[k] else set()
            return Spread(tuple(kept) if level == NONZERO else (), polynomial, level)
        for k, (mine, other) in enumerate(((a, b), (b, a))):
            if alone[k]:
                level = NONZERO if mine.level == NONZERO else other.level
                return Spread(tuple(kept | known[0] | known[1]), polynomial, level)
        return Spread(tuple(kept), polynomial, level if level == FLAT else min(a.level, b.level))

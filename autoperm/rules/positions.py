"""Values that are positions: the indices of experts, of codebook entries, of whatever ``topk`` or ``argmax`` points at.

An integer tensor may hold **positions along** an axis ``X``. Where ``X`` is permuted, such a tensor is not permuted
along any axis of its own: its *values* change, as the units of ``X`` change their places. What it stands for is its
one-hot tensor, which has the axis ``X`` as one more; so what reads or writes at such places is a contraction with that
tensor, and the axis that is looked up is made one with ``X`` instead of being pinned. A router's outputs and the
experts that it chooses, the distances to a codebook and its rows, are permuted together.

* *Sources*: ``topk``, ``sort``, ``argmax`` and the like along an axis; ``arange(n)``, which holds the positions along
  any axis of length ``n``, its own (:class:`Positions` of a constant are made anew for each call).
* *Users*: lookups (:mod:`autoperm.rules.lookup`), ``one_hot``, comparisons of positions with positions, ``histc``.
* *Handed on* by whatever only moves values. Everything else (arithmetic, comparison with a number, a cast to a type
  that has no room) needs the numbers themselves, and so pins ``X``; so does a model that returns them. That is done in
  one place, for every operation that is not named here.

**Ties.** Which of two equal values comes first is decided by their places, and no permutation of values can tell. So a
source counts only if the values along its axis are known to differ (:mod:`autoperm.rules.distinct`); otherwise its
axis is pinned.

**Arranged axes.** Sorting positions groups equal ones: the tokens for expert 0, then those for expert 1, ... With the
experts permuted the groups change places (and with the tokens permuted, what is in them), so the sorted axis ``A`` is
permuted too, in a way that depends on the data and that nobody chooses. Rules hold for every permutation, so also for
this one, if nothing needs the order of ``A`` and ``A`` is never made one with another axis:
:func:`autoperm.presence.pin_disturbed` sees to that at the end. Each slot of ``A`` belongs to one unit of ``X``. So
wherever ``A`` is present, ``X`` is, and the hidden units of each expert may be permuted in their own way. ``A`` comes
to be by sorting along a tensor's only axis: with further axes it would be permuted differently for each of their
positions. The order of the sort holds each position of the axis ``T`` that was sorted *once*; by it tensors go from
``T`` to ``A``, and by its own inverse back. How many equal positions there are, added up along ``X``, are the *ends*
of the groups: what a grouped matrix product needs, and nothing else can use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..graph import Value
from ..terms import EVERYWHERE, Arranged, Pin, Term, factor, find, product
from .context import Axes
from .lookup import READS, WRITES, LookupRow
from .meaning import Positions, PositionsContext, values_in
from .text import dims_of

Found = Axes | list[Axes] | None
PositionsRule = Callable[..., Found]
"""Returns the axes of the results, or None if the operation does not use positions in this call."""

TIES = "equal values would be told apart by their place"


# --- lookups


class _Operands:
    """Answers a row's questions about its indices, and remembers which were asked about."""

    def __init__(self, ctx: PositionsContext) -> None:
        self.ctx = ctx
        self.asked: dict[Value, Positions] = {}

    def __call__(self, index: Value, size: int, name: str = "x") -> tuple[str, str]:
        found = self.ctx.positions(index)
        if found is None or found.ends:
            return "_", ""
        self.asked[index] = found
        return (name, f" {name}") if found.along.size == size else ("_", " _")

    def once(self, index: Value) -> bool:
        found = self.ctx.positions(index)
        return found is not None and found.once


def _lookup(row: LookupRow, *, reads: bool) -> PositionsRule:
    """Bind a row to operands of which those that hold positions have one more axis."""

    def rule(ctx: PositionsContext, *args: Any, **kwargs: Any) -> Found:
        at = _Operands(ctx)
        text = row(at, *args, **kwargs)
        operands = list(values_in([*args, *kwargs.values()]))
        carried = ctx.positions(operands[0] if reads else operands[-1])
        if not reads and not (carried and _overwrites(ctx, operands)):
            carried = None
        if not at.asked and (carried is None or not reads):
            return None
        if reads and text.startswith(("x ", "x0 ")) and (selected := _select_own(ctx, operands)) is not None:
            return selected
        left, _arrow, right = text.partition(" ->")
        patterns = left.split(",")
        if carried is not None:
            place = 0 if reads else -1
            patterns[place] += " carried"
            right += " carried"
        text = f"{','.join(patterns)} ->{right}"
        axes = []
        for place, value in enumerate(operands):
            mine = at.asked.get(value) if place else None
            if place == (0 if reads else len(operands) - 1) and carried is not None:
                mine = carried
            axes.append(ctx.axes(value) if mine is None else [*mine.axes, mine.along])
            if mine is None:
                ctx.forget(value, "they are computed with")
        shape = ctx.result.shape
        (found,) = ctx.bind(text, axes, [shape if carried is None else (*shape, carried.along.size)])
        if carried is not None:
            *found, along = found
            ctx.note(ctx.result, Positions(along, once=carried.once and not reads, bag=object()))
        return found

    return rule


def _overwrites(ctx: PositionsContext, operands: Sequence[Value]) -> bool:
    """Tell whether everything is written, and once: nothing stays of what was there."""
    index = ctx.positions(operands[1]) if len(operands) == 3 else None
    return index is not None and index.once and [v.shape for v in operands] == [operands[1].shape] * 3


def _select_own(ctx: PositionsContext, operands: Sequence[Value]) -> Axes | None:
    """Look up, for each slot of an arranged axis, the unit to which the slot belongs."""
    if len(operands) != 2:
        return None
    table, index = operands
    found = ctx.positions(index)
    if found is None or not found.arranged or table.shape[:1] != (found.along.size,) or ctx.positions(table):
        return None
    row = " ".join(f"a{i}" for i in range(table.ndim))
    ctx.bind(f"{row}, a0 -> ", [ctx.axes(table), [found.along]], [()])
    return [found.axes[0], *ctx.axes(table)[1:]]


# --- sources


def _choose(
    ctx: PositionsContext, value: Value, dim: int | None, keepdim: bool, place: Value | None, *, ties: bool = False
) -> Axes:
    """Return the axes that are left when one value is taken along an axis (or of all), and say where it stood."""
    ctx.forget(value, "they are compared")
    axes = ctx.axes(value)
    along = product(axes) if dim is None else axes[dim % len(axes)] if axes else factor(1)
    gone = dims_of(dim, len(axes))
    kept = [factor(1) if i in gone else axis for i, axis in enumerate(axes) if i not in gone or keepdim]
    if place is not None and place.used:
        _point(ctx, value, along, place, ties=ties)
    return kept


def _point(
    ctx: PositionsContext, value: Value, along: Term, place: Value, *, ties: bool = False, once: bool = False
) -> None:
    if ties or not ctx.is_distinct(value, along):
        ctx.pin([along], TIES)
    if find(along).mixed:
        return  # where all values are the same, their places decide, and are numbers
    ctx.note(place, Positions(along, once=once, bag=object()))


def _arg_extreme(ctx: PositionsContext, self: Value, dim: int | None = None, keepdim: bool = False) -> Found:
    return _choose(ctx, self, dim, keepdim, ctx.result)


def _extreme(ctx: PositionsContext, self: Value, *args: Any, **kwargs: Any) -> Found:
    """``max``, ``min``, ``median`` along an axis, with the place where it stands; other forms have no place."""
    if len(ctx.results) < 2:
        return None
    dim, keepdim = [*args, *(kwargs[name] for name in ("dim", "keepdim") if name in kwargs), False][:2]
    kept = _choose(ctx, self, dim, keepdim, ctx.results[1])
    return [kept, kept]


def _kth_value(ctx: PositionsContext, self: Value, k: int, dim: int = -1, keepdim: bool = False) -> Found:
    kept = _choose(ctx, self, dim, keepdim, ctx.results[1])
    return [kept, kept]


def _mode(ctx: PositionsContext, self: Value, dim: int = -1, keepdim: bool = False) -> Found:
    """The most frequent value: where all differ it is any of them, so only ties make sense, and break by place."""
    kept = _choose(ctx, self, dim, keepdim, ctx.results[1], ties=True)
    return [kept, kept]


def _topk(
    ctx: PositionsContext, self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Found:
    """The k largest, in the order of their values; unsorted, in an order that depends on the places of all."""
    ctx.forget(self, "they are compared")
    axes = list(ctx.axes(self))
    if not axes:
        return [axes, axes]
    along = axes[dim]
    if not sorted and k > 1:
        ctx.pin([along], "the order of what is found depends on the places")
    axes[dim] = factor(k, Pin("ordered by value", ctx.call))
    place = ctx.results[1]
    if place is not None and place.used:
        _point(ctx, self, along, place)
    return [axes, axes]


def _sort(
    ctx: PositionsContext, self: Value, dim: int = -1, descending: bool = False, *, stable: Any = None
) -> list[Axes]:
    return _sorted(ctx, self, dim, ctx.results[0], ctx.results[1])


def _argsort(
    ctx: PositionsContext, self: Value, dim: int = -1, descending: bool = False, *, stable: Any = None
) -> Found:
    return _sorted(ctx, self, dim, None, ctx.results[0])[1]


def _sorted(ctx: PositionsContext, self: Value, dim: int, values: Value | None, order: Value | None) -> list[Axes]:
    """Of numbers: their order, which is one of values. Of positions: see above."""
    found = ctx.positions(self)
    axes = list(ctx.axes(self) if found is None else found.axes)
    if not axes:
        return [axes, axes]
    if found is None or found.ends or len(axes) > 1:
        ctx.forget(self, "they are sorted along one of several axes")
        along = axes[dim]
        axes[dim] = factor(along.size, Pin("ordered by value", ctx.call))
        if order is not None and order.used:
            _point(ctx, self, along, order, once=len(axes) == 1)
        return [axes, axes]
    if found.once:  # sorted they are all positions in their order; each unit's place in the tensor is what sorts them
        slots = find(found.along)
    else:
        slots = factor(axes[0].size)
        slots.rigid.add(EVERYWHERE)  # one order of the slots, whatever else stands beside them
        ctx.arranged.append(Arranged(slots, found.along, axes[0], found.bag))
    if values is not None:
        ctx.note(values, replace(found, axes=(), arranged=True))
    if order is not None:
        ctx.note(order, Positions(axes[0], once=True, bag=object()))
    return [[slots], [slots]]


# --- users


def _one_hot(ctx: PositionsContext, self: Value, num_classes: int = -1) -> Found:
    found = ctx.positions(self)
    if found is None or found.ends or ctx.result.shape[-1] != found.along.size:
        return None
    return [*found.axes, found.along]


def _equal(ctx: PositionsContext, self: Value, other: Any) -> Found:
    """Positions along one axis are equal or not, wherever they are."""
    pair = [ctx.positions(value) if isinstance(value, Value) else None for value in (self, other)]
    a, b = pair
    if a is None or b is None or a.ends or b.ends or a.along.size != b.along.size:
        return None
    (found,) = ctx.bind("... x, ... x -> ...", [[*a.axes, a.along], [*b.axes, b.along]], [ctx.result.shape])
    return found


def _histc(ctx: PositionsContext, self: Value, bins: int = 100, min: float = 0, max: float = 0) -> Found:
    """How often each position stands in a tensor. With this range each bin holds exactly one whole number."""
    found = ctx.positions(self)
    if found is None or found.ends or (bins, min, max) != (found.along.size, 0, found.along.size - 1):
        return None
    ctx.counts[ctx.result] = found.bag
    return [found.along]


def _cumsum(ctx: PositionsContext, self: Value, dim: int, **_: Any) -> Found:
    if self not in ctx.counts:
        return None
    (along,) = ctx.axes(self)
    ctx.note(ctx.result, Positions(along, bag=ctx.counts[self], ends=True))
    return [along]


def grouped_mm(
    ctx: PositionsContext, self: Value, mat2: Value, offs: Value | None = None, *rest: Any, **_: Any
) -> Found:
    """Each slot is multiplied with the matrix of the unit to which it belongs."""
    ends = ctx.positions(offs) if offs is not None else None
    if ends is None or not ends.ends or any(rest) or (self.ndim, mat2.ndim) != (2, 3):
        return None
    slots, inner = ctx.axes(self)
    if not any(find(a.axis) is find(slots) and a.bag is ends.bag and a.bag is not None for a in ctx.arranged):
        return None
    for value in (self, mat2):
        ctx.forget(value, "they are multiplied")
    matrices = ctx.axes(mat2)
    ctx.bind("x i o, x -> ", [matrices, [ends.along]], [()])
    return ctx.bind("a i, a i o -> a o", [[slots, inner], [slots, *matrices[1:]]], [ctx.result.shape])


POSITIONS_RULES: dict[str, PositionsRule] = {
    **{name: _lookup(row, reads=True) for name, row in READS.items()},
    **{name: _lookup(row, reads=False) for name, row in WRITES.items()},
    "aten.argmax": _arg_extreme,
    "aten.argmin": _arg_extreme,
    **dict.fromkeys(("aten.max", "aten.min", "aten.median", "aten.nanmedian"), _extreme),
    "aten.kthvalue": _kth_value,
    "aten.mode": _mode,
    "aten.topk": _topk,
    "aten.sort": _sort,
    "aten.argsort": _argsort,
    "aten.one_hot": _one_hot,
    "aten.eq": _equal,
    "aten.ne": _equal,
    "aten.histc": _histc,
    "aten.cumsum": _cumsum,
    "aten._grouped_mm": grouped_mm,
    "transformers.grouped_mm_fallback": grouped_mm,
}

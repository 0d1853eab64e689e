"""What the numbers in an integer tensor may mean: positions along an axis. See :mod:`autoperm.rules.positions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..graph import Value
from ..terms import Arranged, Term, constant, factor
from .context import Context


@dataclass(frozen=True, slots=True)
class Positions:
    """What the numbers in a tensor mean.

    Attributes:
        along: the axis whose positions they are.
        axes: the tensor's own axes (to be left out where they are said elsewhere).
        once: the tensor has one axis, and holds each position exactly once.
        bag: equal for tensors that hold the same positions, each equally often.
        arranged: equal positions stand side by side, and groups in the order of ``along``.
        ends: not positions, but the ends of their groups.
    """

    along: Term
    axes: tuple[Term, ...] = ()
    once: bool = False
    bag: object = None
    arranged: bool = False
    ends: bool = False


class PositionsContext(Context, Protocol):
    """What a rule on positions may ask of discovery."""

    arranged: list[Arranged]
    counts: dict[Value, object]

    def positions(self, value: Value) -> Positions | None:
        """Return what the numbers in a value mean, if they are positions."""
        ...

    def note(self, value: Value, meaning: Positions) -> None:
        """Say what the numbers in a result mean."""
        ...

    def forget(self, value: Value, reason: str) -> None:
        """Need the numbers themselves: pin the axis whose positions they are."""
        ...

    def is_distinct(self, value: Value, axis: Term) -> bool:
        """Tell whether no two values along an axis are equal."""
        ...


def values_in(argument: Any) -> Sequence[Value]:
    """Return the values among arguments, lists unrolled."""
    if isinstance(argument, Value):
        return [argument]
    return [value for item in argument for value in values_in(item)] if isinstance(argument, (list, tuple)) else []


# --- handed on

_SAME = "clone alias detach contiguous lift_fresh lift_fresh_copy _to_copy to positive".split()
_SAME_NUMBERS = "view reshape _unsafe_view flatten unflatten permute transpose t unsqueeze squeeze movedim".split()
_MOVED = (
    "expand broadcast_to repeat repeat_interleave slice select narrow split split_with_sizes chunk unbind "
    "cat concat stack swapaxes swapdims moveaxis tile"
).split()
_JOINED = ("aten.cat", "aten.concat", "aten.stack")


def hand_on(ctx: PositionsContext, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Positions | None:
    """Return what the numbers in an operation's results mean, if it only moves those of its operands."""
    base = name.removeprefix("aten.")
    if base not in _HANDS_ON or not name.startswith("aten."):
        return None
    operands = values_in(args[0])
    # A constant that counts would hold positions along its own axis, which what moves it does not know to be that.
    found = [None if value.kind == "constant" else ctx.positions(value) for value in operands]
    first = found[0] if found else None
    if first is None or (first.ends and base not in _SAME):
        return None
    if name in _JOINED:
        if any(other is None or other.ends or other.along.size != first.along.size for other in found):
            return None
        along = [[other.along] for other in found if other is not None]
        ctx.bind(f"{', '.join('x' * len(along))} -> ", along, [()])
        return Positions(first.along, bag=object())
    if base == "to" and len(values_in([*args, *kwargs.values()])) > 1:
        return None  # to the type of another tensor, which a value does not tell
    types = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.dtype)]
    if any(first.along.size > _room(dtype) for dtype in types):
        return None
    if base in _SAME:
        return first
    if types:
        return None  # the same bytes read as another type
    return Positions(first.along, bag=first.bag if base in _SAME_NUMBERS else None)


_HANDS_ON = {*_SAME, *_SAME_NUMBERS, *_MOVED}


def _room(dtype: torch.dtype) -> float:
    """How many positions a type can tell apart."""
    if dtype == torch.bool or dtype.is_complex:
        return 1
    return 2 / torch.finfo(dtype).eps if dtype.is_floating_point else torch.iinfo(dtype).max


def counting_axis(value: Value) -> int | None:
    """Return the axis of a constant along which it counts 0, 1, 2, ..., the same along all others, if there is one."""
    data = value.data
    if value.kind != "constant" or data is None or data.is_meta or data.is_floating_point() or data.is_complex():
        return None
    for dim, size in enumerate(value.shape):
        if size > 1 and data.dtype != torch.bool:
            line = torch.arange(size).view([-1 if i == dim else 1 for i in range(value.ndim)])
            if bool((data.cpu() == line).all()):
                return dim
    return None


def counting(value: Value, dim: int) -> Positions:
    """Read a constant that counts along an axis as the positions along that axis, whichever it is."""
    axis = factor(value.shape[dim])
    axes = tuple(axis if i == dim else constant(n) if n > 1 else factor(1) for i, n in enumerate(value.shape))
    return Positions(axis, axes, once=value.ndim == 1, bag=object(), arranged=False)

"""Tensors that share memory, followed functionally: a write through one of them is seen through all the others.

A model writes in place: ``x[:, :k] = y`` makes a view of ``x`` and copies into it. In a functional graph nothing is
written; there ``x`` is from then on another value, ``slice_scatter(x, y)``, and whoever reads an older view of ``x``
reads a new slice of that. Each view keeps the step that made it from its parent; writing goes up along the steps by
their inverses, reading comes down along them again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..graph import Value

aten = torch.ops.aten

_LARGEST = 1 << 22
"""Of larger tensors no places are looked up."""


class Emit(Protocol):
    """Adds a call to the graph, or folds it; ``made`` is what the model's own run has there."""

    def __call__(self, op: Any, args: tuple[Any, ...], made: Tensor) -> Value:
        """Return the call's only result."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """How a view is made: ``op(parent, *args)``."""

    op: Any
    args: tuple[Any, ...] = ()


@dataclass(eq=False, slots=True)
class Slot:
    """A tensor of the run, and the value that stands for it in the graph.

    Attributes:
        tensor: the tensor itself, so that nothing else takes its place in memory.
        value: what it was when it was last looked at.
        parent: of a view, the tensor that it is a view of.
        step: of a view, how it is made from its parent.
        writes: how often the memory had been written to when ``value`` was read; of a tensor that is no view, how often
            it has been.
    """

    tensor: Tensor
    value: Value
    parent: Slot | None = None
    step: Step | None = None
    writes: int = 0

    @property
    def root(self) -> Slot:
        """The tensor that is no view."""
        return self if self.parent is None else self.parent.root


def read(slot: Slot, emit: Emit) -> Value:
    """Return the value of a tensor now, after whatever was written to its memory."""
    if slot.parent is not None and slot.step is not None and slot.writes != slot.root.writes:
        source = read(slot.parent, emit)
        slot.value = emit(slot.step.op, (source, *slot.step.args), slot.tensor)
        slot.writes = slot.root.writes
    return slot.value


def write(slot: Slot, value: Value, emit: Emit) -> None:
    """Give a tensor a new value, and with it all that it is a view of."""
    if slot.parent is None:
        slot.writes += 1
    else:
        before = read(slot.parent, emit)
        write(slot.parent, _scatter(slot, before, value, emit), emit)
        slot.writes = slot.root.writes
    slot.value = value


def _scatter(slot: Slot, before: Value, value: Value, emit: Emit) -> Value:
    """Return a view's parent with the view's place overwritten."""
    assert slot.parent is not None
    assert slot.step is not None
    whole, step = slot.parent.tensor, slot.step
    match step.op:
        case aten.slice.Tensor:
            return emit(aten.slice_scatter.default, (before, value, *step.args), whole)
        case aten.select.int:
            return emit(aten.select_scatter.default, (before, value, *step.args), whole)
        case aten.permute.default:
            dims: list[int] = step.args[0]
            back = sorted(range(len(dims)), key=dims.__getitem__)
            return emit(aten.permute.default, (value, back), whole)
        case aten.view.default:
            return emit(aten.view.default, (value, list(whole.shape)), whole)
        case aten.alias.default:
            return value
    return emit(aten.as_strided_scatter.default, (before, value, *as_strided(slot.tensor).args), whole)


def steps_of(name: str, args: tuple[Any, ...], whole: Tensor, parts: list[Tensor]) -> list[Step]:
    """Return how each result of a call that makes views is made, in the few operations that can be undone.

    Args:
        name: the operation.
        args: its arguments after the tensor that the views are of.
        whole: that tensor.
        parts: the views.
    """
    if name in _STEPS:
        return _STEPS[name](whole, parts, *args)
    if name in _RESHAPES and len(parts) == 1 and parts[0].dtype == whole.dtype and parts[0].numel() == whole.numel():
        same = parts[0].shape == whole.shape
        return [Step(aten.alias.default) if same else Step(aten.view.default, (list(parts[0].shape),))]
    if name in _PERMUTATIONS and len(parts) == 1:
        dims = list(range(whole.ndim))
        moved = _PERMUTATIONS[name](dims, *args)
        return [Step(aten.permute.default, (moved,))]
    return [as_strided(part) for part in parts]


def as_strided(part: Tensor) -> Step:
    """Return how a view is made of the bare memory. No rule follows that: it pins."""
    return Step(aten.as_strided.default, (list(part.shape), list(part.stride()), part.storage_offset()))


def emit_as_strided(whole: Slot, value: Value, part: Tensor, emit: Emit) -> Value:
    """Emit a view of bare memory: axes that go as they went before come through, places along the others are looked up.

    Overlapping windows are made so.
    """
    found = _lookup(whole.tensor, part)
    if found is None:
        step = as_strided(part)
        return emit(step.op, (value, *step.args), part)
    kept, places = found
    source, target = whole.tensor, part
    before, after = [i for i, _ in kept], [j for _, j in kept]
    rest = [i for i in range(source.ndim) if i not in before]
    looked_up = [j for j in range(target.ndim) if j not in after]
    sizes = [source.shape[i] for i in before]
    order = [*looked_up, *after]
    steps: list[tuple[Any, tuple[Any, ...]]] = [
        (aten.permute.default, ([*rest, *before],)),
        (aten.reshape.default, ([math.prod(source.shape[i] for i in rest), *sizes],)),
        (aten.index_select.default, (0, Value("places", tuple(places.shape), "constant", places))),
        (aten.reshape.default, ([*(target.shape[j] for j in looked_up), *sizes],)),
        (aten.permute.default, (sorted(range(len(order)), key=order.__getitem__),)),
    ]
    made = source
    for op, args in steps:
        made = op(made, *(places if isinstance(argument, Value) else argument for argument in args))
        value = emit(op, (value, *args), made)
    return value


def _lookup(whole: Tensor, part: Tensor) -> tuple[list[tuple[int, int]], Tensor] | None:
    """Find the most axes that two views of one memory share, and where the rest of one stands in the rest of the other.

    Any address that is the sum of one in the rest and one along the shared axes is in both: so it is enough that the
    rest's addresses are found.
    """
    if whole.dtype != part.dtype or whole.numel() * part.numel() == 0 or max(whole.numel(), part.numel()) > _LARGEST:
        return None
    axes = [(size, stride, j) for j, (size, stride) in enumerate(zip(part.shape, part.stride(), strict=True))]
    shared: list[tuple[int, int]] = []
    for i, key in enumerate(zip(whole.shape, whole.stride(), strict=True)):
        match = next((j for *other, j in axes if tuple(other) == key and j not in {b for _, b in shared}), None)
        if match is not None:
            shared.append((i, match))
    shift = part.storage_offset() - whole.storage_offset()
    for count in range(len(shared), 0, -1):
        for kept in itertools.combinations(shared, count):
            have = _addresses(whole, {i for i, _ in kept})
            ordered, order = have.sort()
            want = _addresses(part, {j for _, j in kept}) + int(shift)
            at = torch.searchsorted(ordered, want).clamp_max(len(ordered) - 1)
            if torch.equal(ordered[at], want):
                return list(kept), order[at].to(whole.device)
    return None


def _addresses(tensor: Tensor, without: set[int]) -> Tensor:
    """Return the place in memory of each element along all axes but some, row-major, from the tensor's first."""
    found = torch.zeros(1, dtype=torch.long)
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if axis not in without:
            found = (found[:, None] + torch.arange(size) * stride).flatten()
    return found


def _pieces(whole: Tensor, parts: list[Tensor], _: object, dim: int = 0) -> list[Step]:
    stops = list(itertools.accumulate((part.shape[dim] for part in parts), initial=0))
    return [Step(aten.slice.Tensor, (dim % whole.ndim, *bounds)) for bounds in itertools.pairwise(stops)]


def _unbind(whole: Tensor, parts: list[Tensor], dim: int = 0) -> list[Step]:
    return [Step(aten.select.int, (dim % whole.ndim, index)) for index in range(len(parts))]


def _slice(whole: Tensor, parts: list[Tensor], *args: Any) -> list[Step]:
    return [Step(aten.slice.Tensor, args)]


def _narrow(whole: Tensor, parts: list[Tensor], dim: int, start: int, length: int) -> list[Step]:
    start += whole.shape[dim] if start < 0 else 0
    return [Step(aten.slice.Tensor, (dim, start, start + length))]


def _select(whole: Tensor, parts: list[Tensor], *args: Any) -> list[Step]:
    return [Step(aten.select.int, args)]


def _swap(dims: list[int], first: int, second: int) -> list[int]:
    dims[first], dims[second] = dims[second], dims[first]
    return dims


_STEPS: dict[str, Callable[..., list[Step]]] = {
    "aten.slice": _slice,
    "aten.narrow": _narrow,
    "aten.select": _select,
    "aten.unbind": _unbind,
    **dict.fromkeys(("aten.split", "aten.chunk", "aten.split_with_sizes"), _pieces),
}

_RESHAPES = frozenset(
    "aten." + name
    for name in (
        "view reshape flatten unflatten unsqueeze squeeze expand expand_as view_as reshape_as _unsafe_view alias "
        "detach contiguous to _reshape_alias lift_fresh"
    ).split()
)
"""Views that keep all elements in their order."""

_PERMUTATIONS: dict[str, Callable[..., list[int]]] = {
    "aten.permute": lambda dims, order: [dims[dim] for dim in order],
    **dict.fromkeys(("aten.transpose", "aten.swapaxes", "aten.swapdims"), _swap),
    **dict.fromkeys(("aten.t", "aten.numpy_T"), lambda dims: dims[::-1]),
    "aten.mT": lambda dims: [*dims[:-2], *dims[:-3:-1]],
}

"""Rows of lookups: tables that are read, and written, at places which an index tells.

A looked-up axis is ordered, because an index holds numbers. Not so where the index holds *positions* along a
permutable axis (:mod:`autoperm.rules.positions`): such an index stands for its own one-hot tensor, which has that axis
as one more, and a lookup is a contraction with it. So each row asks ``at`` of each index which pattern the looked-up
axis has, and which pattern follows the index's own axes: ``_`` and nothing, or a name, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..graph import Value
from .text import letters, put


class At(Protocol):
    """What a row may ask of an index."""

    def __call__(self, index: Value, size: int, name: str = "x") -> tuple[str, str]:
        """Return the pattern of the axis that is looked up, of a length, and what follows the index's own pattern."""
        ...

    def once(self, index: Value) -> bool:
        """Tell whether an index of one axis holds every position exactly once."""
        ...


class Numbers:
    """Indices that are numbers."""

    def __call__(self, index: Value, size: int, name: str = "x") -> tuple[str, str]:
        """Return the pattern of an ordered axis."""
        return "_", ""

    def once(self, index: Value) -> bool:
        """Nothing is known of the numbers."""
        return False


LookupRow = Callable[..., str]
"""A function of ``at`` and of an operation's own arguments that returns a row."""


def _neighbours(places: Sequence[int]) -> bool:
    return list(places) == list(range(places[0], places[-1] + 1))


def _index(at: At, self: Value, indices: Sequence[Value | None], *_: object) -> str:
    """The looked-up places stand where they were if they are neighbours, else first."""
    axes, patterns = letters(self), []
    for place, index in enumerate(indices):
        if index is not None:
            axes[place], suffix = at(index, self.shape[place], f"x{place}")
            patterns.append(f"...{suffix}")
    places = [place for place, index in enumerate(indices) if index is not None]
    kept = [axis for place, axis in enumerate(axes) if place not in places]
    first = places[0] if _neighbours(places) else 0
    return f"{', '.join([' '.join(axes), *patterns])} -> {' '.join([*kept[:first], '...', *kept[first:]])}"


def _index_select(at: At, input: Value, dim: int, index: Value) -> str:
    """The places in the index are free."""
    axes = letters(input) or ["_"]
    place = dim % len(axes)
    looked_up, suffix = at(index, input.shape[place]) if input.ndim else ("_", "")
    return f"{' '.join(put(axes, place, looked_up)[: input.ndim])}, {'s' * index.ndim}{suffix} -> " + (
        " ".join(put(axes, place, "s" if index.ndim else "1")[: input.ndim])
    )


def _gather(at: At, input: Value, dim: int, index: Value, **_: object) -> str:
    """Along the other axes each place of the index reads its own place of the input, as far as it reaches."""
    if not input.ndim:
        return f",{at(index, 1)[1]} -> "
    place = dim % input.ndim
    looked_up, suffix = at(index, input.shape[place])
    pairs = zip(letters(input), input.shape, index.shape, strict=True)
    row = ["_" if n != m else axis for axis, n, m in pairs]
    places = " ".join(put(row, place, "s"))
    return f"{' '.join(put(row, place, looked_up))}, {places}{suffix} -> {places}"


def _take_along_dim(at: At, input: Value, index: Value, dim: int | None = None) -> str:
    """As ``gather``, but other axes are broadcast."""
    if dim is None:
        looked_up, suffix = at(index, input.shape[0]) if input.ndim == 1 else (" ".join("_" * input.ndim), "")
        return (
            f"{looked_up}, {' '.join(letters(index))}{suffix} -> {' '.join(letters(index)) if index.ndim == 1 else '_'}"
        )
    place = dim % input.ndim
    looked_up, suffix = at(index, input.shape[place])
    axes = letters(input)
    return f"{' '.join(put(axes, place, looked_up))}, {' '.join(put(axes, place, 's'))}{suffix} -> " + (
        " ".join(put(axes, place, "s"))
    )


def _embedding(at: At, weight: Value, indices: Value, *_: object) -> str:
    looked_up, suffix = at(indices, weight.shape[0])
    return f"{looked_up} d, ...{suffix} -> ... d"


def _index_add(at: At, input: Value, dim: int, index: Value, source: Value, *_: object, **__: object) -> str:
    """Additions may come in any order."""
    place = dim % input.ndim
    looked_up, suffix = at(index, input.shape[place])
    row = " ".join(put(letters(input), place, looked_up))
    return f"{row}, s{suffix}, {' '.join(put(letters(input), place, 's'))} -> {row}"


def _index_copy(at: At, input: Value, dim: int, index: Value, source: Value) -> str:
    """Of what is written to one place twice, the last stays."""
    place = dim % input.ndim
    looked_up, suffix = at(index, input.shape[place])
    s = "s" if at.once(index) else "_"
    row = " ".join(put(letters(input), place, looked_up))
    return f"{row}, {s}{suffix}, {' '.join(put(letters(input), place, s))} -> {row}"


def _index_fill(at: At, input: Value, dim: int, index: Value, value: Any) -> str:
    """The same is written everywhere, so in any order."""
    place = dim % input.ndim
    looked_up, suffix = at(index, input.shape[place])
    row = " ".join(put(letters(input), place, looked_up))
    return f"{row}, {'s' * index.ndim}{suffix}{', ' if isinstance(value, Value) else ''} -> {row}"


def _index_put(
    at: At, input: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False, *_: object
) -> str:
    """What is written to one place twice depends on the order, unless it is added up."""
    places = [i for i, index in enumerate(indices) if index is not None]
    found = [index for index in indices if index is not None]
    marks = [at(index, input.shape[place], f"x{place}") for place, index in zip(places, found, strict=True)]
    # An index of several axes may be a mask over as many axes of the input: a value does not tell its dtype.
    pairs = zip(places, found, strict=True)
    if any(index.ndim > 1 and index.shape == input.shape[i : i + index.ndim] for i, index in pairs):
        pinned = [" ".join("_" * value.ndim) for value in (input, *found, values)]
        for k, (_looked_up, suffix) in enumerate(marks):
            pinned[k + 1] += " _" if suffix else ""
        return f"{', '.join(pinned)} -> {pinned[0]}"
    axes = letters(input)
    for place, (looked_up, _suffix) in zip(places, marks, strict=True):
        axes[place] = looked_up
    kept = [axis for i, axis in enumerate(axes) if i not in places]
    first = places[0] if _neighbours(places) else 0
    ndim = max(index.ndim for index in found)
    any_order = accumulate or all(map(at.once, found))
    written_at = [f"s{i}" if any_order else "_" for i in range(ndim)]
    written = [*kept[:first], *written_at, *kept[first:]]
    operands = [axes]
    for index, (_looked_up, suffix) in zip(found, marks, strict=True):
        operands.append([*written_at[ndim - index.ndim :], *suffix.split()])
    operands.append(written[len(written) - values.ndim :])
    return f"{', '.join(map(' '.join, operands))} -> {' '.join(axes)}"


def _scatter(at: At, input: Value, dim: int, index: Value, src: Any, *, any_order: bool) -> str:
    """Along the other axes each place of the index writes to its own place, as far as it reaches."""
    if not input.ndim:
        return f",{at(index, 1)[1]}{', ' * isinstance(src, Value)} -> "
    place = dim % input.ndim
    looked_up, suffix = at(index, input.shape[place])
    source = src if isinstance(src, Value) and src.ndim else index
    axes = letters(input)
    for i, axis in enumerate(axes):
        lengths = {index.shape[i], source.shape[i], *([] if i == place else [input.shape[i]])}
        axes[i] = "_" if len(lengths) > 1 else axis
    s = axes[place] if any_order else "_"
    table, places = " ".join(put(axes, place, looked_up)), " ".join(put(axes, place, s))
    operand = "" if not isinstance(src, Value) else f", {places}" if src.ndim else ", "
    return f"{table}, {places}{suffix}{operand} -> {table}"


def _scatter_one(
    at: At, input: Value, dim: int, index: Value, src: Any = None, *rest: object, reduce: str | None = None, **kw: Any
) -> str:
    """What is written to one place twice depends on the order, unless it is the same, or added or multiplied up."""
    src = kw.get("value", src)
    same = not (isinstance(src, Value) and src.ndim)
    return _scatter(at, input, dim, index, src, any_order=same or reduce is not None)


def _scatter_many(at: At, input: Value, dim: int, index: Value, src: Value, *_: object, **__: object) -> str:
    return _scatter(at, input, dim, index, src, any_order=True)


READS: dict[str, LookupRow] = {
    "aten.embedding": _embedding,
    "aten.index": _index,
    "aten._unsafe_index": _index,
    "aten.index_select": _index_select,
    "aten.gather": _gather,
    "aten.take_along_dim": _take_along_dim,
}
"""What comes out are values of the first operand."""

WRITES: dict[str, LookupRow] = {
    "aten.index_put": _index_put,
    "aten._unsafe_index_put": _index_put,
    "aten.index_add": _index_add,
    "aten.index_reduce": _index_add,
    "aten.index_copy": _index_copy,
    "aten.index_fill": _index_fill,
    "aten.scatter": _scatter_one,
    "aten.scatter_add": _scatter_many,
    "aten.scatter_reduce": _scatter_many,
}

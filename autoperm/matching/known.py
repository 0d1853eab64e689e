"""Gram matrices that follow B as it moves, so that few are computed twice.

When a few units of a block move, the Gram matrices of its neighbours change by the products of those units alone; and
its own has the same entries in other places. Late sweeps, which move few units, cost a fraction of the first ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layout import Cell
from .nested import Nested
from .task import add_product

if TYPE_CHECKING:
    from .problem import Problem

_WORTH = 1 << 24
"""Gram matrices that take fewer multiplications are computed anew: following costs more."""

_FEW = 0.25
"""If a larger share of a factor's units has moved, computing anew costs no more."""

_OFTEN = 64
"""After so many changes a Gram matrix is computed anew, since each adds its rounding."""


class KnownGrams:
    """Gram matrices as :class:`~autoperm.matching.task.Task` makes them, by the factors that move together."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._grams: dict[frozenset[str], dict[str, Tensor]] = {}
        self._readers: dict[int, set[frozenset[str]]] = {}
        self._changes: Counter[frozenset[str]] = Counter()
        # Together they take no more memory than the model.
        self._left = sum(tensor.numel() for tensor in problem.a.values())

    def __contains__(self, active: frozenset[str]) -> bool:
        return active in self._grams

    def __iter__(self) -> Iterator[frozenset[str]]:
        return iter(self._grams)

    def __getitem__(self, active: frozenset[str]) -> Mapping[str, Tensor]:
        return self._grams[active]

    def keep(self, active: frozenset[str], grams: Mapping[str, Tensor]) -> None:
        """Keep Gram matrices of all cells, if that is worth it."""
        problem = self._problem
        cells = problem.carrying(active)
        size = sum(gram.numel() for gram in grams.values())
        units = max((gram.shape[-1] for gram in grams.values()), default=0)
        work = units * sum(problem.views(cell)[0].numel() for cell in cells)
        # A factor that stands twice in a cell changes its own Gram matrix in ways that are not followed.
        twice = any(cell.names.count(name) > 1 for cell in cells for name in active)
        if active in self._grams or work < _WORTH or size > self._left or twice:
            return
        self._grams[active] = dict(grams)
        self._left -= size
        self._changes[active] = 0
        for cell in cells:
            self._readers.setdefault(id(cell), set()).add(active)

    def forget(self, tensors: Iterable[str]) -> None:
        """Forget what was computed from some tensors."""
        for cell in [cell for cell in self._problem.cells if cell.tensor in set(tensors)]:
            for active in list(self._readers.get(id(cell), ())):
                self._drop(active)

    def _drop(self, active: frozenset[str]) -> None:
        grams = self._grams.pop(active)
        self._left += sum(gram.numel() for gram in grams.values())
        for cell in self._problem.carrying(active):
            self._readers[id(cell)].discard(active)

    def turn(self, found: Mapping[str, Tensor]) -> None:
        """Follow a move of the factors that Gram matrices compare: B's side is in another order."""
        for active in [active for active in self._grams if not active.isdisjoint(found)]:
            nested = Nested(self._problem.spec, active)
            moved = {name: index for name, index in found.items() if name in active}
            for name, gram in self._grams[active].items():
                path = nested.path(name)
                names = [*nested.aligned(name), *[None] * len(path), *path]
                self._grams[active][name] = self._problem.gathered(gram, names, range(len(names)), moved)

    @contextmanager
    def following(self, cell: Cell, found: Mapping[str, Tensor]) -> Generator[None, None, None]:
        """Follow a change of B's side of a cell, made within the block, by a move."""
        a, b = self._problem.views(cell)
        followers: list[frozenset[str]] = []
        dims = [dim for dim, name in enumerate(cell.names) if name in found]
        places = self._few(cell, dims, found)
        for active in list(self._readers.get(id(cell), ())):
            others = [dim for dim in dims if cell.names[dim] not in active]
            if not others:
                continue  # turned
            summed = all(dims[0] in unfold.summed for unfold in self._problem.unfold(active, cell))
            if places is None or not summed or self._changes[active] >= _OFTEN:
                self._drop(active)
            else:
                followers.append(active)
        before = b.index_select(dims[0], places) if followers and places is not None else None
        yield
        if before is None or places is None:
            return
        part_a, change = a.index_select(dims[0], places), b.index_select(dims[0], places) - before
        for active in followers:
            self._changes[active] += 1
            for unfold in self._problem.unfold(active, cell):
                gram = self._grams[active][unfold.factor]
                flat = {unfold.factor: gram.reshape(prod(unfold.batch), prod(unfold.rows), prod(unfold.rows))}
                add_product(flat, unfold.factor, unfold(part_a), unfold(change), self._problem.weights[cell.tensor])
                self._grams[active][unfold.factor] = flat[unfold.factor].reshape(gram.shape)

    def _few(self, cell: Cell, dims: list[int], found: Mapping[str, Tensor]) -> Tensor | None:
        """Return which positions of the one dimension that changes do change, if they are few."""
        if len(dims) != 1:
            return None
        name = str(cell.names[dims[0]])
        index = found[name]
        if index.ndim > 1:
            return None
        places = (index != torch.arange(len(index))).nonzero().flatten()
        return places.to(self._problem.b[cell.tensor].device) if len(places) <= _FEW * len(index) else None

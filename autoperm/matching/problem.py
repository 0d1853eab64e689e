"""Two sets of weights and the permutation between them: the objective, Gram matrices, and one exact step.

:mod:`autoperm.matching.weight` says what is solved, and in which order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import layout
from ..errors import SpecError, WeightsError
from ..layout import Cell
from ..permutation import Permutation
from ..spec import PermutationSpec
from .assignment import Array
from .blocks import Block
from .nested import Nested

Kernel = Literal["linear", "cosine"]

_VECTOR_SHARE = 1e-3
"""How much a tensor with one number for each unit counts beside a matrix, in the cosine kernel."""

_ROUNDING = 1e-9
"""A step must raise the objective by this much of its scale: less is rounding."""


class Problem:
    """Two sets of weights, and the indices found so far."""

    def __init__(
        self,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        kernel: Kernel,
        start: Permutation,
    ) -> None:
        names = [n for n in spec.patterns if n in params_a and n not in spec.tied]
        for name in names:
            if name not in params_b or tuple(params_b[name].shape) != spec.shapes[name]:
                shape = list(params_b[name].shape) if name in params_b else "missing"
                raise SpecError(f"{name} is {list(spec.shapes[name])} in the specification and {shape} in model B")
            if tuple(params_a[name].shape) != spec.shapes[name]:
                shape = list(params_a[name].shape)
                raise SpecError(f"{name} is {list(spec.shapes[name])} in the specification and {shape} in model A")
            for which, params in (("A", params_a), ("B", params_b)):
                if not bool(params[name].isfinite().all()):
                    raise WeightsError(f"{name} of model {which} has NaN or infinite values; nothing was matched")
        self.spec = spec
        self.a = {name: _work(params_a[name]) for name in names}
        self.b = {name: _work(params_b[name]) for name in names}
        self.cells = [cell for name in names for cell in layout.cells(spec, name)]
        self.weights = {name: self._weight(name) if kernel == "cosine" else 1.0 for name in names}
        self.indices: dict[str, Tensor] = {}
        for factor in spec.free:
            self.indices[factor.name] = start[factor.name].clone()

    def _weight(self, name: str) -> float:
        norm = float(self.a[name].norm().double() * self.b[name].norm().double())
        share = 1.0 if sum(size > 1 for size in self.spec.shapes[name]) > 1 else _VECTOR_SHARE
        return share / norm if norm else 0.0

    def objective(self) -> float:
        """The weighted inner product of A and the permuted B."""
        return sum(map(self._cell_objective, self.cells))

    def grow(self, blocks: Sequence[Block]) -> None:
        """Solve the blocks one by one from the pinned axes inwards; keep that if it is better than the start."""
        before, start = dict(self.indices), self.objective()
        masses = [(cell, frozenset(cell.names), self._mass(cell)) for cell in self.cells]
        inside = {
            block.root: {factor.name for factor in self.spec.free if block.root in (factor.name, *factor.over)}
            for block in blocks
        }
        unsettled = {name for names in inside.values() for name in names}
        left = list(blocks)
        while left:
            found: list[tuple[float, list[Cell], Block]] = []
            for block in left:
                own = inside[block.root]
                whole = [item for item in masses if own & item[1]]
                known = [item for item in whole if not (unsettled - own) & item[1]]
                share = sum(mass for _, _, mass in known) / max(sum(mass for _, _, mass in whole), 1e-300)
                found.append((share, [cell for cell, _, _ in known], block))
            _, known_cells, block = max(found, key=lambda item: item[0])
            for active in block.rounds:
                self.step(block, active, known_cells)
            left.remove(block)
            unsettled -= inside[block.root]
        if self.objective() < start:
            self.indices = before

    def _mass(self, cell: Cell) -> float:
        """What a cell could at most add to the objective."""
        a, b = (cell.view(tensors[cell.tensor]) for tensors in (self.a, self.b))
        return self.weights[cell.tensor] * float(a.norm().double() * b.norm().double())

    def _cell_objective(self, cell: Cell) -> float:
        a = cell.view(self.a[cell.tensor])
        b = self._permuted(cell, self.b[cell.tensor], range(len(cell.names)))
        return self.weights[cell.tensor] * float(torch.sum(a * b, dtype=torch.float64))

    def _permuted(self, cell: Cell, tensor: Tensor, dims: Sequence[int]) -> Tensor:
        """The view of a cell with some of its dimensions permuted."""
        view = cell.view(tensor)
        for dim in sorted(dims, key=lambda dim: len(self._over(cell, dim))):
            name = cell.names[dim]
            if name in self.indices:
                view = self._gather(view, dim, self.indices[name], [cell.dim(n, dim) for n in self._over(cell, dim)])
        return view

    def _over(self, cell: Cell, dim: int) -> tuple[str, ...]:
        name = cell.names[dim]
        return self.spec.factors[name].over if name is not None else ()

    @staticmethod
    def _gather(view: Tensor, dim: int, index: Tensor, over: Sequence[int]) -> Tensor:
        index = index.to(view.device)
        if not over:
            return view.index_select(dim, index)
        front = view.movedim([*over, dim], list(range(len(over) + 1)))
        index = index.reshape(*index.shape, *[1] * (front.ndim - index.ndim)).expand(front.shape)
        return front.gather(len(over), index).movedim(list(range(len(over) + 1)), [*over, dim])

    # --- one step

    def step(self, block: Block, active: frozenset[str], cells: Sequence[Cell]) -> float:
        """Solve some factors of a block for some cells, while the rest stands still.

        Returns:
            By how much those cells' part of the objective rose.
        """
        nested = Nested(self.spec, active)
        grams = self.grams(active, cells)
        before = nested.value(grams, self.indices)
        scale = sum(float(np.abs(gram).max(initial=0.0)) for gram in grams.values())
        best, found = nested.solve(grams, self.indices)
        if not block.quadratic:
            gain = best - before
            if gain <= _ROUNDING * scale:
                return 0.0
            self.indices |= found
            return gain
        if all(torch.equal(index, self.indices[name]) for name, index in found.items()):
            return 0.0
        touched = [cell for cell in cells if active & set(cell.names)]
        old, start = dict(self.indices), sum(map(self._cell_objective, touched))
        self.indices |= found
        gain = sum(map(self._cell_objective, touched)) - start
        if gain <= _ROUNDING * scale:
            self.indices = old
            return 0.0
        return gain

    def grams(self, active: frozenset[str], cells: Sequence[Cell]) -> dict[str, Array]:
        """For each active factor, inner products of A's and B's units, summed over all cells where it is innermost.

        Their shape is that of :class:`~autoperm.matching.nested.Nested`.
        """
        nested = Nested(self.spec, active)
        grams: dict[str, Array] = {}
        for cell in cells:
            here = [name for name in dict.fromkeys(cell.names) if name in active]
            if not here:
                continue
            innermost = max(here, key=lambda name: len(self.spec.factors[name].over))
            for place in (dim for dim, name in enumerate(cell.names) if name == innermost):
                gram = self.weights[cell.tensor] * self._cell_gram(cell, innermost, place, nested)
                grams[innermost] = grams[innermost] + gram if innermost in grams else gram
        return grams

    def _cell_gram(self, cell: Cell, name: str, place: int, nested: Nested) -> Array:
        active = nested.active
        path = [*(cell.dim(outer, place) for outer in nested.path(name)[:-1]), place]
        aligned = [cell.dim(outer, place) for outer in nested.aligned(name)]
        still = [dim for dim in range(len(cell.names)) if dim not in path]
        # What varies over an active factor but stands still keeps its index array at each place of that factor.
        loose = [dim for dim in still if active & set(self._over(cell, dim)) and cell.names[dim] in self.indices]
        a = cell.view(self.a[cell.tensor])
        b = self._permuted(cell, self.b[cell.tensor], [dim for dim in still if dim not in loose])
        if not loose:
            return self._inner(a, b, aligned, path)
        held = sorted({cell.dim(n, dim) for dim in loose for n in self._over(cell, dim) if n in active} & set(path))
        sizes = [a.shape[dim] for dim in held]
        slots = [len(aligned) + path.index(dim) for dim in held]
        whole = np.zeros([a.shape[dim] for dim in (*aligned, *path, *path)])
        for position in np.ndindex(*sizes):
            chosen = a
            for dim, i in zip(held, position, strict=True):
                chosen = chosen.narrow(dim, i, 1)
            at = dict(zip((cell.names[dim] for dim in held), position, strict=True))
            moved = b
            for dim in sorted(loose, key=lambda dim: len(self._over(cell, dim))):
                index = self.indices[str(cell.names[dim])]
                over: list[int] = []
                for outer in self._over(cell, dim):
                    if outer in at:
                        index = index.select(len(over), at[outer])
                    else:
                        over.append(cell.dim(outer, dim))
                moved = self._gather(moved, dim, index, over)
            where = [slice(None)] * whole.ndim
            for slot, i in zip(slots, position, strict=True):
                where[slot] = slice(i, i + 1)
            whole[tuple(where)] = self._inner(chosen, moved, aligned, path)
        return whole

    @staticmethod
    def _inner(a: Tensor, b: Tensor, aligned: Sequence[int], path: Sequence[int]) -> Array:
        """Contract all but the aligned dimensions (one by one) and the path (every position with every other)."""
        order = [*aligned, *path, *(dim for dim in range(a.ndim) if dim not in {*aligned, *path})]
        batch = [a.shape[dim] for dim in aligned]
        rows, columns = ([t.shape[dim] for dim in path] for t in (a, b))

        def unfold(tensor: Tensor, sizes: list[int]) -> Tensor:
            return tensor.permute(order).reshape(int(np.prod(batch)), int(np.prod(sizes)), -1)

        gram = unfold(a, rows) @ unfold(b, columns).transpose(1, 2)
        return gram.reshape(*batch, *rows, *columns).to("cpu", torch.float64).numpy()


def _work(tensor: Tensor) -> Tensor:
    """Half precision is too coarse to sum in."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

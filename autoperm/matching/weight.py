r"""Weight matching: coordinate descent over blocks, Algorithm 1 of Git Re-Basin, for wreath products too.

.. math:: \max_\pi \langle \theta_A, \pi(\theta_B) \rangle

A **block** is a root factor with all that varies over it: attention heads, and the channels inside each head. One step
solves a block while the rest stands still. With no dependents that is one linear assignment on the Gram matrix, summed
over every parameter axis that carries the factor. With dependents it is nested: for each pair (i, j) of positions of
the root, the best inner assignment says what it is worth to put j in the place of i; one outer assignment on those
values then solves the whole block exactly.

Two cases are not linear in a block, and are never allowed to lower the objective. Dependents of one root that multiply
each other in one parameter (the channels into and out of a group of a grouped convolution) are solved in turns. And a
factor on two axes of one parameter (recurrent weights) makes its block quadratic: the step is taken against the other
axis as it stands, and kept only if the true objective rises.

Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.2 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import SpecError, WeightsError
from ..layout import Cell, cells
from ..permutation import Permutation
from ..spec import Factor, PermutationSpec
from .assignment import Array, Indices, assign
from .match import Match

_ROUNDING = 1e-9
"""A step must raise the objective by this much of its scale: less is rounding."""


def weight_matching(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    start: Permutation | None = None,
    progress: bool = False,
) -> Match:
    """Align B's weights with A's by coordinate descent.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; those that the specification does not know are ignored.
        params_b: tensors of model B, of the same names and shapes.
        seed: of the random order in which blocks are visited, new for each sweep.
        max_sweeps: stop after so many, even if the last one still improved.
        start: the permutation to start from, the identity if left out.
        progress: show a progress bar.

    Returns:
        The permutation of B, with the history of the objective, which never falls.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = weight_matching(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """
    problem = _Problem(spec, params_a, params_b, start)
    rng = np.random.default_rng(seed)
    history = [problem.objective()]
    blocks = _blocks(spec, problem.cells)
    converged = not blocks
    sweeps = 0
    bar = tqdm(total=max_sweeps * len(blocks), desc="weight matching", disable=not progress, leave=False)
    while not converged and sweeps < max_sweeps:
        sweeps += 1
        converged = True
        for number in rng.permutation(len(blocks)):
            for active in blocks[number].rounds:
                gain = problem.step(blocks[number], active)
                if gain > 0:
                    converged = False
                    history.append(history[-1] + gain)
            bar.update()
        bar.set_postfix(objective=f"{history[-1]:.6g}")
    bar.close()
    return Match(
        Permutation(spec, problem.indices),
        tuple(history),
        sweeps,
        converged,
        tuple(block.root for block in blocks if len(block.rounds) > 1),
    )


@dataclass(frozen=True)
class _Block:
    """A root and what varies over it.

    Attributes:
        root: the name of the root.
        rounds: sets of factors that one step solves together, the root always among them.
        quadratic: whether a factor of the block stands on two axes of one parameter.
    """

    root: str
    rounds: tuple[frozenset[str], ...]
    quadratic: bool


def _blocks(spec: PermutationSpec, found: Sequence[Cell]) -> list[_Block]:
    free = {factor.name for factor in spec.free}
    blocks = []
    for root in spec.groups:
        dependents = [factor.name for factor in spec.free if root.name in factor.over]
        conflicts: nx.Graph[str] = nx.Graph()
        conflicts.add_nodes_from(dependents)
        quadratic = False
        for cell in found:
            here = [name for name in cell.names if name == root.name or name in dependents]
            quadratic |= len(set(here)) < len(here)
            inner = [name for name in dict.fromkeys(here) if name != root.name]
            for i, first in enumerate(inner):
                for second in inner[i + 1 :]:
                    if first not in spec.factors[second].over and second not in spec.factors[first].over:
                        conflicts.add_edge(first, second)
        colours = nx.greedy_color(conflicts)
        rounds = [
            frozenset({root.name, *(name for name in dependents if colours[name] == colour)})
            for colour in range(max(colours.values(), default=0) + 1)
        ]
        if any(root.name in cell.names for cell in found) and root.name in free:
            blocks.append(_Block(root.name, tuple(rounds), quadratic))
    return blocks


class _Problem:
    """Two sets of weights, and the indices found so far."""

    def __init__(
        self,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        start: Permutation | None,
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
        self.cells = [cell for name in names for cell in cells(spec, name)]
        self.indices: dict[str, Tensor] = {}
        start = start or spec.identity()
        for factor in spec.free:
            self.indices[factor.name] = start[factor.name].clone()

    def objective(self) -> float:
        """The inner product of A and the permuted B."""
        return sum(self._cell_objective(cell) for cell in self.cells)

    def _cell_objective(self, cell: Cell) -> float:
        a = cell.view(self.a[cell.tensor])
        b = self._permuted(cell, self.b[cell.tensor], range(len(cell.names)))
        return float(torch.sum(a * b, dtype=torch.float64))

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

    def step(self, block: _Block, active: frozenset[str]) -> float:
        """Solve some factors of a block while the rest stands still; return by how much the objective rose."""
        grams = self._grams(active)
        order = sorted(active & grams.keys() | {block.root}, key=lambda name: -len(self.spec.factors[name].over))
        before = sum(self._value(name, gram, active) for name, gram in grams.items())
        scale = sum(float(np.abs(gram).max(initial=0.0)) for gram in grams.values())
        best, found = self._solve(order, grams, active)
        if not block.quadratic:
            gain = best - before
            if gain <= _ROUNDING * scale:
                return 0.0
            self.indices |= found
            return gain
        if all(torch.equal(index, self.indices[name]) for name, index in found.items()):
            return 0.0
        touched = [cell for cell in self.cells if active & set(cell.names)]
        old, start = dict(self.indices), sum(map(self._cell_objective, touched))
        self.indices |= found
        gain = sum(map(self._cell_objective, touched)) - start
        if gain <= _ROUNDING * scale:
            self.indices = old
            return 0.0
        return gain

    def _aligned(self, name: str, active: frozenset[str]) -> list[str]:
        return [outer for outer in self.spec.factors[name].over if outer not in active]

    def _path(self, name: str, active: frozenset[str]) -> list[str]:
        return [*(outer for outer in self.spec.factors[name].over if outer in active), name]

    def _grams(self, active: frozenset[str]) -> dict[str, Array]:
        """For each active factor, inner products of A's and B's units, summed over all cells where it is innermost.

        Shape: what it varies over and stands still, then A's positions along the path from the root to the factor, then
        B's positions along that path.
        """
        grams: dict[str, Array] = {}
        for cell in self.cells:
            here = [name for name in dict.fromkeys(cell.names) if name in active]
            if not here:
                continue
            innermost = max(here, key=lambda name: len(self.spec.factors[name].over))
            for place in (dim for dim, name in enumerate(cell.names) if name == innermost):
                gram = self._cell_gram(cell, innermost, place, active)
                grams[innermost] = grams[innermost] + gram if innermost in grams else gram
        return grams

    def _cell_gram(self, cell: Cell, name: str, place: int, active: frozenset[str]) -> Array:
        path = [*(cell.dim(outer, place) for outer in self._path(name, active)[:-1]), place]
        aligned = [cell.dim(outer, place) for outer in self._aligned(name, active)]
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

    def _value(self, name: str, gram: Array, active: frozenset[str]) -> float:
        """The part of the objective that a Gram matrix stands for, at the indices as they are."""
        aligned, path = self._aligned(name, active), self._path(name, active)
        names = [*aligned, *path]
        sizes = gram.shape[: len(names)]
        grid = dict(zip(names, np.meshgrid(*map(np.arange, sizes), indexing="ij", sparse=True), strict=True))
        sources = []
        for step in path:
            index = self.indices[step].numpy()
            sources.append(index[(*(grid[outer] for outer in self.spec.factors[step].over), grid[step])])
        return float(gram[(*grid.values(), *sources)].sum())

    def _solve(
        self, order: Sequence[str], grams: Mapping[str, Array], active: frozenset[str]
    ) -> tuple[float, dict[str, Tensor]]:
        """Nested assignment from the innermost factors out; then read the permutations from the root in."""
        scores: dict[str, Array] = {}
        for name, gram in grams.items():
            scores[name] = _interleave(gram, len(self._aligned(name, active)), len(self._path(name, active)))
        chosen: dict[str, Indices] = {}
        best = 0.0
        for name in order:
            if name not in scores:
                continue
            chosen[name], values = assign(scores[name])
            path = self._path(name, active)
            if len(path) == 1:
                best += float(values.sum())
                continue
            outer = path[-2]
            keep = self._aligned(outer, active)
            gone = tuple(i for i, other in enumerate(self._aligned(name, active)) if other not in keep)
            values = values.sum(gone)
            scores[outer] = scores[outer] + values if outer in scores else values
        return best, self._read(chosen, active)

    def _read(self, chosen: Mapping[str, Indices], active: frozenset[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in sorted(chosen, key=lambda name: len(self.spec.factors[name].over)):
            aligned, path = self._aligned(name, active), self._path(name, active)
            factor: Factor = self.spec.factors[name]
            sizes = [self.spec.factors[outer].size for outer in factor.over]
            grid = dict(zip(factor.over, np.meshgrid(*map(np.arange, sizes), indexing="ij"), strict=True))
            where: list[Indices] = [grid[outer] for outer in aligned]
            for step in path[:-1]:
                source = found[step].numpy() if step in found else self.indices[step].numpy()
                where += [grid[step], source[(*(grid[o] for o in self.spec.factors[step].over), grid[step])]]
            found[name] = torch.from_numpy(np.ascontiguousarray(chosen[name][tuple(where)] if where else chosen[name]))
        return found


def _interleave(gram: Array, aligned: int, path: int) -> Array:
    """Put each of A's positions beside B's on the same level: ``(..., h, d, h', d')`` to ``(..., h, h', d, d')``."""
    order = [*range(aligned), *(aligned + i + side * path for i in range(path) for side in (0, 1))]
    return gram.transpose(order)


def _work(tensor: Tensor) -> Tensor:
    """Half precision is too coarse to sum in."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

"""Two sets of weights, B moving towards A: the objective, Gram matrices, and one exact step.

B is kept as it stands now, permuted by all that was found so far, and a step looks for what is still to be done: the
identity means that nothing is. So Gram matrices need no gathering, and what a step does not move stays where it is.
:mod:`autoperm.matching.weight` says what is maximised, and in which order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from .. import layout
from ..errors import AutopermError, SpecError, WeightsError
from ..layout import Cell
from ..permutation import Permutation
from ..spec import PermutationSpec
from .blocks import Block
from .known import KnownGrams
from .nested import Nested
from .task import Solution, Task, Unfolding

Kernel = Literal["linear", "cosine"]

_VECTOR_SHARE = 1e-3
"""How much a tensor with one number for each unit counts beside a matrix, in the cosine kernel."""

_KEPT = 1 << 22
"""Copies of A's cells with fewer elements are kept."""


class Problem:
    """Weights of A, weights of B as they stand, and how B came there.

    Attributes:
        cells: of all tensors that count.
        norms: for each tensor, A's norm times B's.
        weights: of each tensor in the objective.
        a: A's tensors by name.
        b: B's tensors by name, permuted by what was found so far. Half precision is worked on in float32.
        indices: what was found so far: for each free factor, the index arrays of a :class:`~autoperm.Permutation`.
        changed: for each tensor, the number of the last move that changed it.
        known: Gram matrices for B as it stands.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        kernel: Kernel = "cosine",
        start: Permutation | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        check_option("kernel", kernel, get_args(Kernel))
        names = [n for n in spec.patterns if n in params_a and n not in spec.tied]
        norms = {name: _norms(spec, name, params_a, params_b) for name in names}
        for pattern in exclude:
            if not any(fnmatchcase(name, pattern) for name in spec.patterns):
                raise SpecError(f"no parameter is called {pattern!r}; the first are {list(spec.patterns)[:5]}")
        excluded = {name for name in spec.patterns if any(fnmatchcase(name, pattern) for pattern in exclude)}
        excluded |= {spec.tied[name] for name in excluded if name in spec.tied}
        names = [name for name in names if name not in excluded]
        self.spec = spec
        self.a = {name: _work(params_a[name]) for name in names}
        self.b = {name: _work(params_b[name]).clone() for name in names}
        self.cells = [cell for name in names for cell in layout.cells(spec, name)]
        self.norms = {name: norms[name][0] * norms[name][1] for name in names}
        self.weights = {name: self._weight(name) if kernel == "cosine" else 1.0 for name in names}
        self.changed = dict.fromkeys(names, 0)
        self.moves = 0
        self.indices: dict[str, Tensor] = {}
        for factor in spec.free:
            shape = [spec.factors[outer].size for outer in factor.over]
            self.indices[factor.name] = torch.arange(factor.size).repeat(*shape, 1)
        self._views = {
            id(cell): (cell.view(self.a[cell.tensor]), cell.view(self.b[cell.tensor])) for cell in self.cells
        }
        self._carrying: dict[str, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            for name in {name for name in cell.names if name in self.indices}:
                self._carrying[name].append(cell)
        self._unfoldings: dict[tuple[frozenset[str], int], list[Unfolding]] = {}
        self._kept: dict[tuple[int, Unfolding], Tensor] = {}
        self._identity = self.indices
        self._rounding = 4 * max((torch.finfo(tensor.dtype).eps for tensor in self.a.values()), default=0.0)
        self.known = KnownGrams(self)
        if start is not None and not start.is_identity:
            self.move({name: start[name] for name in start.indices})

    def _weight(self, name: str) -> float:
        norm = self.norms[name]
        return share(self.spec.shapes[name]) / norm if norm else 0.0

    def objective(self, names: Iterable[str] | None = None) -> float:
        """Return the weighted inner product of A and B as it stands, of all tensors or of some."""
        return sum(self.weights[name] * self.inner(name) for name in (self.a if names is None else names))

    def inner(self, name: str) -> float:
        """Return the inner product of a tensor of A and of B as it stands."""
        return float(torch.sum(self.a[name] * self.b[name], dtype=torch.float64))

    def carrying(self, names: Iterable[str]) -> list[Cell]:
        """Return the cells that carry one of some factors."""
        return list({id(cell): cell for name in names for cell in self._carrying[name]}.values())

    def views(self, cell: Cell) -> tuple[Tensor, Tensor]:
        """Return a cell of A and of B as it stands."""
        return self._views[id(cell)]

    def permutation(self) -> Permutation:
        """Return what was found so far."""
        return Permutation(self.spec, self.indices)

    def reset(self, permutation: Permutation) -> None:
        """Let B stand where a permutation of what it was at first takes it."""
        self.move(permutation.compose(self.permutation().inverse()).indices)

    def mass(self, cell: Cell) -> float:
        """Return what a cell could at most add to the objective."""
        a, b = self.views(cell)
        whole = a.numel() == self.a[cell.tensor].numel()
        norm = self.norms[cell.tensor] if whole else float(a.norm().double() * b.norm().double())
        return self.weights[cell.tensor] * norm

    # --- moving

    def move(self, found: Mapping[str, Tensor]) -> None:
        """Permute B as it stands, by index arrays of some factors."""
        found = {name: index for name, index in found.items() if not torch.equal(index, self._identity[name])}
        if not found:
            return
        self.moves += 1
        self.known.turn(found)
        for cell in self.carrying(found):
            view = self.views(cell)[1]
            with self.known.following(cell, found):
                view.copy_(self.gathered(view, cell.names, cell.axes, found))
            self.changed[cell.tensor] = self.moves
        indices = dict(self.indices)
        for name, index in indices.items():
            names = (*self.spec.factors[name].over, name)
            if not found.keys().isdisjoint(names):
                indices[name] = self.gathered(index, names, range(len(names)), found)
        self.indices = indices

    def gathered(
        self, view: Tensor, names: Sequence[str | None], axes: Sequence[int], found: Mapping[str, Tensor]
    ) -> Tensor:
        """Permute the dimensions of a view, what others vary over first: the rest is indexed by where it ends up."""
        for dim in sorted(range(len(names)), key=lambda dim: len(self._over(names[dim]))):
            name = names[dim]
            if name is None or name not in found:
                continue
            index = found[name].to(view.device)
            over = [_near(outer, names, axes, dim) for outer in self._over(name)]
            if not over:
                view = view.index_select(dim, index)
                continue
            front = view.movedim([*over, dim], list(range(len(over) + 1)))
            places = torch.arange(index.numel() // index.shape[-1], device=index.device) * index.shape[-1]
            flat = (index + places.reshape(*index.shape[:-1], 1)).flatten()
            moved = front.flatten(0, len(over)).index_select(0, flat).reshape(front.shape)
            view = moved.movedim(list(range(len(over) + 1)), [*over, dim])
        return view

    def _over(self, name: str | None) -> tuple[str, ...]:
        return self.spec.factors[name].over if name is not None else ()

    # --- one step

    def step(self, block: Block, active: frozenset[str], cells: Sequence[Cell] | None = None) -> float:
        """Solve some factors of a block for some cells (all), while the rest stands still, and move B.

        Returns:
            By how much those cells' part of the objective rose.
        """
        solution = self.task(active, cells).solve()
        if cells is None:
            self.known.keep(active, solution.grams)
        return self.take(block, solution)

    def take(self, block: Block, solution: Solution) -> float:
        """Move B as a solution for a block says, if that is a gain, and return the gain."""
        gain, found, _ = solution
        if not gain:
            return 0.0
        if not block.quadratic:
            self.move(found)
            return gain
        before, kept = self.objective(block.tensors), {name: self.b[name].clone() for name in block.tensors}
        indices, changed, rises = self.indices, dict(self.changed), False
        try:
            self.move(found)
            gain = self.objective(block.tensors) - before
            rises = gain > self._rounding * abs(before)
        finally:  # an interruption takes it back too
            if not rises:
                for name, tensor in kept.items():
                    self.b[name].copy_(tensor)
                self.indices, self.changed = indices, changed
                self.known.forget(block.tensors)
        return gain if rises else 0.0

    def task(self, active: frozenset[str], cells: Sequence[Cell] | None = None) -> Task:
        """Return the search for the best move of some factors, for some cells (all)."""
        nested = Nested(self.spec, active)
        if cells is None and active in self.known:
            return Task(nested, [], {}, self._identity, self._rounding, self.known[active])
        products, shapes = [], {}
        for cell in self.carrying(active) if cells is None else cells:
            for unfold in self.unfold(active, cell):
                a, b = self._unfolded_a(cell, unfold), unfold(self.views(cell)[1])
                products.append((unfold.factor, a, b, self.weights[cell.tensor]))
                shapes[unfold.factor] = unfold.shape
        return Task(nested, products, shapes, self._identity, self._rounding)

    def _unfolded_a(self, cell: Cell, unfold: Unfolding) -> Tensor:
        """A's side does not change, so that copies of it are kept, if they are not large."""
        key = (id(cell), unfold)
        if key in self._kept:
            return self._kept[key]
        unfolded = unfold(self.views(cell)[0])
        if unfolded.numel() < _KEPT:
            self._kept[key] = unfolded
        return unfolded

    def unfold(self, active: frozenset[str], cell: Cell) -> list[Unfolding]:
        """How a cell is unfolded for the innermost of some factors, once for each axis where that stands."""
        key = (active, id(cell))
        if key not in self._unfoldings:
            self._unfoldings[key] = list(self._make_unfoldings(Nested(self.spec, active), cell))
        return self._unfoldings[key]

    def _make_unfoldings(self, nested: Nested, cell: Cell) -> Iterator[Unfolding]:
        here = [name for name in dict.fromkeys(cell.names) if name in nested.active]
        if not here:
            return
        innermost = max(here, key=lambda name: len(self._over(name)))
        shape = self.views(cell)[0].shape
        for place in (dim for dim, name in enumerate(cell.names) if name == innermost):
            aligned = [cell.dim(outer, place) for outer in nested.aligned(innermost)]
            path = [*(cell.dim(outer, place) for outer in nested.path(innermost)[:-1]), place]
            rest = [dim for dim in range(len(shape)) if dim not in {*aligned, *path}]
            sizes = [tuple(shape[dim] for dim in dims) for dims in (aligned, path)]
            yield Unfolding(innermost, (*aligned, *path, *rest), *sizes)


def _near(name: str, names: Sequence[str | None], axes: Sequence[int], near: int) -> int:
    """Return the dimension of a factor; the one beside ``near``'s axis if there are several."""
    found = [dim for dim, other in enumerate(names) if other == name]
    return next((dim for dim in found if axes[dim] == axes[near]), found[0])


def is_matrix(shape: Sequence[int]) -> bool:
    """Tell whether a tensor has more than one number for each unit."""
    return sum(size > 1 for size in shape) > 1


def share(shape: Sequence[int]) -> float:
    """Return how much a tensor counts in the cosine kernel."""
    return 1.0 if is_matrix(shape) else _VECTOR_SHARE


def check_option(option: str, choice: str, choices: Sequence[str]) -> None:
    """Check what was chosen for an option.

    Raises:
        AutopermError: if there is no such choice.
    """
    if choice not in choices:
        raise AutopermError(f"there is no {option} {choice!r}; choose {' or '.join(map(repr, choices))}")


def _norms(
    spec: PermutationSpec, name: str, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Return the norms of a tensor of A and of B, which must be as the specification says, and finite."""
    norms = []
    for which, params in (("A", params_a), ("B", params_b)):
        shape = tuple(params[name].shape) if name in params else None
        if shape != spec.shapes[name]:
            wanted, found = list(spec.shapes[name]), "missing" if shape is None else list(shape)
            raise SpecError(f"{name} is {wanted} in the specification and {found} in model {which}")
        tensor = _work(params[name])
        norm = float(tensor.norm().double())
        if not isfinite(norm) and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{name} of model {which} has NaN or infinite values; nothing was matched")
        norms.append(norm)
    return norms[0], norms[1]


def _work(tensor: Tensor) -> Tensor:
    """Half precision is too coarse to sum in; complex numbers are pairs of real ones."""
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

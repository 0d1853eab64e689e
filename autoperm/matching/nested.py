"""A root factor and what varies over it, solved at once: an assignment of assignments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..spec import PermutationSpec
from .assignment import Array, Indices, assign


@dataclass(frozen=True)
class Nested:
    """Factors of one block that move together while the rest stands still.

    What is maximised is given by Gram matrices, one for each active factor at most. The axes of a factor's Gram matrix
    are: what it varies over and stands still (:meth:`aligned`); then A's positions along the :meth:`path` from the
    block's root to the factor; then B's positions along that path. For channels ``d`` inside heads ``h`` with both
    active that is ``(h, d, h', d')``; with ``d`` alone active it is ``(h, d, d')``. The value of a permutation is the
    sum, over Gram matrices, of the entries that it picks.

    Attributes:
        spec: the specification.
        active: the names of the factors that move.
    """

    spec: PermutationSpec
    active: frozenset[str]

    def aligned(self, name: str) -> list[str]:
        """Return what a factor varies over and stands still."""
        return [outer for outer in self.spec.factors[name].over if outer not in self.active]

    def path(self, name: str) -> list[str]:
        """Return the active factors that a factor varies over, outermost first, and the factor."""
        return [*(outer for outer in self.spec.factors[name].over if outer in self.active), name]

    def value(self, grams: Mapping[str, Array], indices: Mapping[str, Tensor]) -> float:
        """Return the sum that index arrays pick from Gram matrices."""
        return sum(self._picked(name, gram, indices) for name, gram in grams.items())

    def _picked(self, name: str, gram: Array, indices: Mapping[str, Tensor]) -> float:
        aligned, path = self.aligned(name), self.path(name)
        names = [*aligned, *path]
        sizes = gram.shape[: len(names)]
        grid = dict(zip(names, np.meshgrid(*map(np.arange, sizes), indexing="ij", sparse=True), strict=True))
        sources = []
        for step in path:
            index = indices[step].numpy()
            sources.append(index[(*(grid[outer] for outer in self.spec.factors[step].over), grid[step])])
        return float(gram[(*grid.values(), *sources)].sum())

    def solve(self, grams: Mapping[str, Array], indices: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Maximise the value, exactly, by nested assignment from the innermost factors out.

        Args:
            grams: Gram matrices by factor.
            indices: where the other factors stand.

        Returns:
            The best value, and the index arrays of the active factors that a Gram matrix speaks for.
        """
        scores: dict[str, Array] = {}
        for name, gram in grams.items():
            scores[name] = gram.transpose(interleaved(len(self.aligned(name)), len(self.path(name))))
        chosen: dict[str, Indices] = {}
        best = 0.0
        for name in sorted(self.active, key=lambda name: -len(self.spec.factors[name].over)):
            if name not in scores:
                continue
            chosen[name], values = assign(scores[name])
            path = self.path(name)
            if len(path) == 1:
                best += float(values.sum())
                continue
            outer = path[-2]
            keep = self.aligned(outer)
            gone = tuple(i for i, other in enumerate(self.aligned(name)) if other not in keep)
            values = values.sum(gone)
            scores[outer] = scores[outer] + values if outer in scores else values
        return best, self._read(chosen, indices)

    def _read(self, chosen: Mapping[str, Indices], indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the permutations from the root in: what is chosen inside depends on where the outside comes from."""
        found: dict[str, Tensor] = {}
        for name in sorted(chosen, key=lambda name: len(self.spec.factors[name].over)):
            aligned, path = self.aligned(name), self.path(name)
            factor = self.spec.factors[name]
            sizes = [self.spec.factors[outer].size for outer in factor.over]
            grid = dict(zip(factor.over, np.meshgrid(*map(np.arange, sizes), indexing="ij"), strict=True))
            where: list[Indices] = [grid[outer] for outer in aligned]
            for step in path[:-1]:
                source = found[step].numpy() if step in found else indices[step].numpy()
                where += [grid[step], source[(*(grid[o] for o in self.spec.factors[step].over), grid[step])]]
            found[name] = torch.from_numpy(np.ascontiguousarray(chosen[name][tuple(where)] if where else chosen[name]))
        return found


def interleaved(aligned: int, path: int) -> list[int]:
    """Put each of A's positions beside B's on the same level: ``(..., h, d, h', d')`` to ``(..., h, h', d, d')``.

    Returns:
        The order of the axes of a Gram matrix.
    """
    return [*range(aligned), *(aligned + i + side * path for i in range(path) for side in (0, 1))]

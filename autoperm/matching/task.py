"""One search for a best move, with all that it needs, so that another process can do it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .nested import Nested

_SMALL = 1 << 14
"""Cells with fewer elements are multiplied together, as one matrix: many small products cost more than a copy."""


class Unfolding(NamedTuple):
    """How a cell becomes a batch of matrices with a row for each unit of a factor.

    Attributes:
        factor: the factor.
        order: the dimensions of the cell: the batch, the rows, and what is summed over.
        batch: the sizes of the first.
        rows: the sizes of the second: the path to the factor.
    """

    factor: str
    order: tuple[int, ...]
    batch: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the Gram matrix."""
        return (*self.batch, *self.rows, *self.rows)

    @property
    def summed(self) -> tuple[int, ...]:
        """The dimensions that a product sums over."""
        return self.order[len(self.batch) + len(self.rows) :]

    @property
    def path(self) -> tuple[int, ...]:
        """The dimensions of the rows."""
        return self.order[len(self.batch) : len(self.batch) + len(self.rows)]

    def __call__(self, view: Tensor) -> Tensor:
        """Return the view of the cell as a batch of matrices."""
        return view.permute(self.order).reshape(prod(self.batch), prod(self.rows), -1)


class Solution(NamedTuple):
    """The best move of some factors.

    Attributes:
        gain: by how much the objective would rise; 0 if by no more than rounding.
        found: index arrays by factor.
        grams: the Gram matrices that say so.
    """

    gain: float
    found: Mapping[str, Tensor]
    grams: Mapping[str, Tensor]


@dataclass(frozen=True)
class Task:
    """The search for the best move of some factors, with all that it needs: another process can do it.

    Attributes:
        nested: the factors.
        products: for a factor, matrices of A and B whose product is a part of its Gram matrix, and the part's weight.
        shapes: of the Gram matrices.
        identity: the index arrays that move nothing.
        rounding: a gain must be more than this share of the objective: less may be rounding.
        known: the Gram matrices, if they need not be computed.
    """

    nested: Nested
    products: Sequence[tuple[str, Tensor, Tensor, float]]
    shapes: Mapping[str, tuple[int, ...]]
    identity: Mapping[str, Tensor]
    rounding: float
    known: Mapping[str, Tensor] | None = None

    def grams(self) -> Mapping[str, Tensor]:
        """For each factor, inner products of A's and B's units, summed over all cells where it is innermost.

        Their shape is that of :class:`~autoperm.matching.nested.Nested`; B's units are numbered as they stand.
        """
        if self.known is not None:
            return self.known
        sums: dict[str, Tensor] = {}
        small: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, a, b, weight in self.products:
            if a.numel() < _SMALL:
                small[name].append((a * weight, b))
            else:
                add_product(sums, name, a, b, weight)
        for name, pairs in small.items():
            a, b = (torch.cat(side, -1) if len(side) > 1 else side[0] for side in zip(*pairs, strict=True))
            add_product(sums, name, a, b, 1.0)
        return {name: gram.reshape(self.shapes[name]) for name, gram in sums.items()}

    def solve(self) -> Solution:
        """Find the best move; one that would gain no more than rounding counts for nothing."""
        matrices = self.grams()
        grams = {name: gram.cpu().numpy() for name, gram in matrices.items()}
        before = self.nested.value(grams, self.identity)
        best, found = self.nested.solve(grams, self.identity)
        gain = best - before
        gains = gain > self.rounding * (abs(before) + abs(best))
        return Solution(gain if gains else 0.0, found if gains else {}, matrices)


def add_product(sums: dict[str, Tensor], name: str, a: Tensor, b: Tensor, weight: float) -> None:
    """Add to a batch of Gram matrices, without another array of their size."""
    if name in sums:
        sums[name].baddbmm_(a, b.mT, alpha=weight)
    else:
        sums[name] = torch.baddbmm(a.new_zeros(()), a, b.mT, beta=0, alpha=weight)

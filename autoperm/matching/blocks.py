"""Blocks: the factors that one step of a matcher solves together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import networkx as nx

from ..layout import Cell
from ..spec import PermutationSpec

_AFFORDABLE = 1 << 28
"""Blocks whose joint Gram matrix has more entries (1 GiB in float32) are solved in turns."""


@dataclass(frozen=True)
class Block:
    """A root and what varies over it.

    Attributes:
        root: the name of the root.
        rounds: sets of factors, each of which one step solves together. The root is in all of them, unless solving
            both together is too big: then it has the first for itself.
        quadratic: whether a factor of the block stands on two axes of one parameter.
        tensors: names of the parameters that carry a factor of the block.
    """

    root: str
    rounds: tuple[frozenset[str], ...]
    quadratic: bool
    tensors: frozenset[str]


def find_blocks(spec: PermutationSpec, found: Sequence[Cell]) -> list[Block]:
    """Return the blocks of a specification that some cells carry.

    Dependents of one root that stand together in a cell, neither varying over the other, go to different rounds: the
    smallest number of rounds is a colouring of the graph of such pairs.
    """
    free = {factor.name for factor in spec.free}
    cells_with: dict[str, list[Cell]] = {name: [] for name in free}
    for cell in found:
        for name in free.intersection(filter(None, cell.names)):
            cells_with[name].append(cell)
    blocks = []
    for root in spec.groups:
        dependents = [factor.name for factor in spec.free if root.name in factor.over]
        conflicts: nx.Graph[str] = nx.Graph()
        conflicts.add_nodes_from(dependents)
        quadratic = False
        for cell in cells_with[root.name]:
            here = [name for name in cell.names if name == root.name or name in dependents]
            quadratic |= len(set(here)) < len(here)
            inner = [name for name in dict.fromkeys(here) if name != root.name]
            for i, first in enumerate(inner):
                for second in inner[i + 1 :]:
                    if first not in spec.factors[second].over and second not in spec.factors[first].over:
                        conflicts.add_edge(first, second)
        colours = nx.greedy_color(conflicts)
        parts = [
            frozenset(name for name in dependents if colours[name] == colour)
            for colour in range(max(colours.values(), default=0) + 1)
        ]
        together = [part | {root.name} for part in parts]
        if max(_entries(spec, root.name, part) for part in together) > _AFFORDABLE and dependents:
            rounds = (frozenset({root.name}), *parts)
        else:
            rounds = tuple(together)
        tensors = frozenset(cell.tensor for cell in cells_with[root.name])
        if tensors:
            blocks.append(Block(root.name, rounds, quadratic, tensors))
    return blocks


def _entries(spec: PermutationSpec, root: str, active: frozenset[str]) -> int:
    """How many entries the largest Gram matrix of a round has."""
    found = [1]
    for name in active:
        over = spec.factors[name].over
        aligned = prod(spec.factors[outer].size for outer in over if outer not in active)
        path = prod(spec.factors[outer].size for outer in (*over, name) if outer in active)
        found.append(aligned * path**2)
    return max(found)

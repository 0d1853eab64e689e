"""Blocks: the factors that one step of a matcher solves together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from ..layout import Cell
from ..spec import PermutationSpec


@dataclass(frozen=True)
class Block:
    """A root and what varies over it.

    Attributes:
        root: the name of the root.
        rounds: sets of factors that one step solves together, the root always among them.
        quadratic: whether a factor of the block stands on two axes of one parameter.
    """

    root: str
    rounds: tuple[frozenset[str], ...]
    quadratic: bool


def find_blocks(spec: PermutationSpec, found: Sequence[Cell]) -> list[Block]:
    """Return the blocks of a specification that some cells carry.

    Dependents of one root that stand together in a cell, neither varying over the other, go to different rounds: the
    smallest number of rounds is a colouring of the graph of such pairs.
    """
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
            blocks.append(Block(root.name, tuple(rounds), quadratic))
    return blocks

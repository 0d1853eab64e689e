"""Growing a permutation from the pinned axes inwards: where descent starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..layout import Cell
from .blocks import Block
from .problem import Problem


def grow(problem: Problem, blocks: Sequence[Block]) -> None:
    """Solve blocks one by one from the pinned axes inwards; keep that if it is better than where B stands.

    A cell is *known* to a block when all its other factors are settled. The next block is always the one with the
    largest known share of what its cells could add to the objective at most, and its known cells alone decide.
    """
    before, start = problem.permutation(), problem.objective()
    own = {block.root: {f.name for f in problem.spec.free if block.root in (f.name, *f.over)} for block in blocks}
    free = {name for names in own.values() for name in names}  # a group that has no block stays as it is
    open_names = [free.intersection(filter(None, cell.names)) for cell in problem.cells]  # not settled yet
    masses = [problem.mass(cell) for cell in problem.cells]
    roots = {name: [root for root, names in own.items() if name in names] for name in free}
    roots_of = [dict.fromkeys(root for name in names for root in roots[name]) for names in open_names]
    cells_of: dict[str, list[int]] = defaultdict(list)
    for i, found in enumerate(roots_of):
        for root in found:
            cells_of[root].append(i)
    whole = {root: sum(masses[i] for i in numbers) for root, numbers in cells_of.items()}
    known: dict[str, dict[int, Cell]] = {block.root: {} for block in blocks}
    mass = dict.fromkeys(known, 0.0)

    def learn(root: str, number: int) -> None:
        if number not in known[root] and open_names[number] <= own[root]:
            known[root][number] = problem.cells[number]
            mass[root] += masses[number]

    for root, numbers in cells_of.items():
        for i in numbers:
            learn(root, i)
    left = {block.root: block for block in blocks}
    try:
        while left:
            # Of equal shares, as the layers of models scaled to a norm have, rounding must not decide.
            root = max(left, key=lambda root: round(mass[root] / max(whole[root], 1e-300), 5))
            block = left.pop(root)
            for active in block.rounds:
                problem.step(block, active, list(known[root].values()))
            for i in cells_of[root]:
                open_names[i] -= own[root]
                for other in roots_of[i]:
                    learn(other, i)
    finally:  # an interruption leaves nothing worse either
        if problem.objective() < start:
            problem.reset(before)

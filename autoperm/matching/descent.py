"""Coordinate descent: sweeps over blocks, until no block has anything to gain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .blocks import Block
from .problem import Problem, Task

Order = Literal["random", "forward", "backward", "gain"]

_Round = tuple[Block, frozenset[str]]


class Descent:
    """Sweeps over the blocks of a problem.

    A round of a block is *pending* while one of its parameters has changed since it was last solved.
    """

    def __init__(
        self, problem: Problem, blocks: Sequence[Block], order: Order, seed: int, executor: Executor | None
    ) -> None:
        self.problem = problem
        position = {name: i for i, name in enumerate(problem.a)}
        self._blocks = sorted(blocks, key=lambda block: min(position[name] for name in block.tensors))
        self._order = order
        self._rng = np.random.default_rng(seed)
        self._executor = executor
        self._solved: dict[_Round, int] = {}
        self._gained = dict.fromkeys((block.root for block in blocks), float("inf"))

    def pending(self) -> bool:
        """Tell whether some block may have something to gain."""
        return any(self._is_pending((block, active)) for block in self._blocks for active in block.rounds)

    def _is_pending(self, item: _Round) -> bool:
        solved = self._solved.get(item, -1)
        return any(self.problem.changed[name] > solved for name in item[0].tensors)

    def sweep(self) -> Iterator[float]:
        """Visit every block with something pending, and yield what each step gains."""
        for wave in self._waves():
            items = [item for item in wave if self._is_pending(item)]
            tasks = (self.problem.task(active) for _, active in items)
            for item, (gain, found) in zip(items, self._solve_all(tasks), strict=True):
                block, before = item[0], self.problem.moves
                gain = self.problem.take(block, gain, found)
                # A quadratic block was solved for parameters that its own move has changed.
                self._solved[item] = before if block.quadratic and gain else self.problem.moves
                self._gained[block.root] = gain
                if gain:
                    yield gain

    def _solve_all(self, tasks: Iterable[Task]) -> Iterator[tuple[float, dict[str, Tensor]]]:
        if self._executor is None:
            return (task.solve() for task in tasks)
        return self._executor.map(partial(_solve, torch.get_num_threads()), tasks)

    def _waves(self) -> list[list[_Round]]:
        """Put the rounds in order, and those together that could as well be visited one after the other.

        A round comes one wave after the last one before it with which it shares a parameter.
        """
        waves: list[list[_Round]] = []
        level: dict[str, int] = {}
        for block in self._in_order():
            for active in block.rounds:
                wave = max(level.get(name, 0) for name in block.tensors)
                waves += [[] for _ in range(wave + 1 - len(waves))]
                waves[wave].append((block, active))
                level |= dict.fromkeys(block.tensors, wave + 1)
        return waves

    def _in_order(self) -> list[Block]:
        if self._order == "random":
            return [self._blocks[i] for i in self._rng.permutation(len(self._blocks))]
        if self._order == "gain":
            return sorted(self._blocks, key=lambda block: -self._gained[block.root])
        return self._blocks if self._order == "forward" else self._blocks[::-1]


def _solve(threads: int, task: Task) -> tuple[float, dict[str, Tensor]]:
    """Solve a task in a worker, with as many threads as its caller has: the number changes how sums are rounded."""
    torch.set_num_threads(threads)
    return task.solve()

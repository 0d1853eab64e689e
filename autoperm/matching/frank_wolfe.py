r"""Frank-Wolfe on soft permutations: all blocks move at once, then what was found is rounded.

.. math:: \max_{P_1, \dots, P_N} \sum_{i < j} \sum_t w_{ij,t} \langle P_i(\theta_i)_t, P_j(\theta_j)_t \rangle

where every factor's matrix ranges over the Birkhoff polytope, the doubly stochastic matrices. The first model stands
still: permuting all models alike changes nothing, and a start that is uniform for all of them would be a saddle. With
two models this is the objective of weight matching.

One step: the gradient; the corner of the polytope that it points to, one assignment for each factor and position of
what it varies over; then an exact line search. Along a segment the objective is a polynomial: each model's part of a
cell has as degree the number of its factors that move.

From the middle of the polytope a factor sees the average of its neighbours' units until those have made up their mind.
The units next to pinned axes do so first, and the rest follows, softly. At a corner the gradient is that of coordinate
descent, and little escapes from it. So the start is the middle.

References: Frank and Wolfe, *An algorithm for quadratic programming*, 1956; Vogelstein et al., *Fast Approximate
Quadratic Programming for Graph Matching*, PLOS ONE 2015; Crisostomi et al., *C2M3: Cycle-Consistent Multi-Model
Merging*, NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import layout
from ..errors import AutopermError
from ..layout import Cell
from ..permutation import Permutation
from ..spec import PermutationSpec
from .match import Match, stop_if_interrupted
from .problem import Kernel, Problem
from .soft import Soft, act, harden, random_soft, soften, uniform
from .weight import weight_matching

Start = Permutation | Literal["boundary", "uniform"]


class Relaxation:
    """Weights of several models, scaled by a kernel, and the objective on soft permutations of all but the first."""

    def __init__(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], kernel: Kernel) -> None:
        self.spec = spec
        self.states: list[dict[str, Tensor]] = []
        for state in states:
            # A kernel's weight of a pair is a product of one number for each model.
            problem = Problem(spec, states[0], state, kernel, spec.identity())
            own = Problem(spec, state, state, kernel, spec.identity())
            self.states.append({name: own.weights[name] ** 0.5 * tensor for name, tensor in problem.b.items()})
        self.cells = [cell for name in self.states[0] for cell in layout.cells(spec, name)]
        free = {factor.name for factor in spec.free}
        moving = [sum(name in free for name in cell.names) for cell in self.cells]
        self.degree = max(moving, default=0) * min(len(states) - 1, 2)

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that soft permutations should have."""
        return next(iter(self.states[0].values()), torch.zeros(()))

    def corner(self, start: Start, number: int = 1) -> Permutation:
        """Return the permutation of a model that a start stands for: where it begins, or what it must not fall below.

        Raises:
            AutopermError: for a start that there is not.
            KeyboardInterrupt: if weight matching was interrupted.
        """
        if start == "uniform":
            return self.spec.identity()
        if isinstance(start, str) and start != "boundary":
            raise AutopermError(f"there is no start {start!r}; choose 'uniform', 'boundary' or a permutation")
        first, state = self.states[0], self.states[number]  # scaled by the kernel already
        match = weight_matching(self.spec, first, state, kernel="linear", start=start, max_sweeps=0)
        stop_if_interrupted(match)
        return match.permutation

    def value(self, softs: Sequence[Soft]) -> float:
        """Return the objective."""
        with torch.no_grad():
            return sum(float(self._part(cell, softs)) for cell in self.cells)

    def gradient(self, softs: Sequence[Soft]) -> tuple[float, list[Soft]]:
        """Return the objective and its gradient, cell by cell: the graph of one cell is all that memory must hold."""
        leaves = [{name: matrix.detach().requires_grad_() for name, matrix in soft.items()} for soft in softs]
        value = 0.0
        with torch.enable_grad():
            for cell in self.cells:
                part = self._part(cell, leaves)
                if part.requires_grad:
                    part.backward()  # type: ignore[no-untyped-call]
                value += float(part.detach())
        zero = torch.zeros_like
        return value, [
            {n: zero(leaf) if leaf.grad is None else leaf.grad for n, leaf in soft.items()} for soft in leaves
        ]

    def _part(self, cell: Cell, softs: Sequence[Soft]) -> Tensor:
        """What a cell adds to the objective: each model against the sum of those before it."""
        seen, *views = (cell.view(state[cell.tensor]) for state in self.states)
        total = torch.zeros((), dtype=torch.float64, device=seen.device)
        for soft, view in zip(softs, views, strict=True):
            moved = act(self.spec, soft, cell, view)
            total = total + torch.sum(seen * moved, dtype=torch.float64)
            seen = seen + moved
        return total

    def step(self, softs: Sequence[Soft]) -> tuple[float, float, list[Soft]]:
        """Take one step.

        Returns:
            The objective before it, the gap (by how much a concave objective could still rise, at most), and where the
            step ends.
        """
        value, gradients = self.gradient(softs)
        corners = [soften(harden(self.spec, gradient), self.like) for gradient in gradients]
        ways = [{name: corner[name] - soft[name] for name in soft} for soft, corner in zip(softs, corners, strict=True)]
        gap = sum(
            float(torch.sum(gradient[name] * way[name], dtype=torch.float64))
            for gradient, way in zip(gradients, ways, strict=True)
            for name in way
        )

        def at(length: float) -> list[Soft]:
            return [
                {name: torch.add(soft[name], way[name], alpha=length) for name in soft}
                for soft, way in zip(softs, ways, strict=True)
            ]

        # The polynomial's value and slope at 0 are known, so it takes one evaluation less than its degree.
        nodes = [i / (self.degree - 1) for i in range(1, self.degree)]
        values = [self.value(at(node)) for node in nodes]
        length = _maximise(value, gap, nodes, values)
        return value, gap, corners if length == 1 else at(length)


def _maximise(value: float, slope: float, nodes: Sequence[float], values: Sequence[float]) -> float:
    """Return where on [0, 1] a polynomial is largest, that has a value and slope at 0 and values at some nodes."""
    rows = [[node**power for power in range(2, len(nodes) + 2)] for node in nodes]
    rest = [found - value - slope * node for node, found in zip(nodes, values, strict=True)]
    higher = np.linalg.solve(np.array(rows), np.array(rest)) if rows else np.zeros(0)
    polynomial = np.polynomial.Polynomial([value, slope, *higher])
    rate = polynomial.deriv()
    # A leading coefficient that is only rounding would make roots beyond what a float holds.
    still = [float(root.real) for root in rate.trim(1e-15 * abs(rate.coef).max()).roots() if abs(root.imag) < 1e-9]
    return max([0.0, 1.0, *(root for root in still if 0 < root < 1)], key=lambda place: float(polynomial(place)))


@dataclass(frozen=True)
class Ascent:
    """Where Frank-Wolfe ended, after how many steps, and whether it stopped by itself or was interrupted."""

    softs: list[Soft]
    steps: int
    converged: bool
    interrupted: bool = False


def ascend(relaxation: Relaxation, softs: list[Soft], *, max_steps: int, tolerance: float, bar: tqdm[None]) -> Ascent:
    """Step until the gap, or the gain of three steps, is small beside the objective."""
    values: list[float] = []
    try:
        while len(values) < max_steps:
            value, gap, after = relaxation.step(softs)
            small = tolerance * max(abs(value), 1e-300)
            if gap <= small or (len(values) > 2 and value - values[-3] <= small):
                return Ascent(softs, len(values), converged=True)
            values.append(value)
            softs = after
            bar.update()
            bar.set_postfix(objective=f"{value:.6g}")
    except KeyboardInterrupt:
        return Ascent(softs, len(values), converged=False, interrupted=True)
    return Ascent(softs, max_steps, converged=False)


def frank_wolfe(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    kernel: Kernel = "cosine",
    seed: int = 0,
    start: Start = "uniform",
    restarts: int = 0,
    max_steps: int = 100,
    tolerance: float = 1e-6,
    max_sweeps: int = 100,
    progress: bool = False,
) -> Match:
    """Align B's weights with A's by Frank-Wolfe on soft permutations, rounding, and coordinate descent.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; those that the specification does not know are ignored.
        params_b: tensors of model B, of the same names and shapes.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        seed: of the restarts, and of the order in which blocks are visited in the end.
        start: ``"uniform"``, the middle of the polytope; ``"boundary"``, the permutation that weight matching grows
            from the pinned axes inwards; or a permutation. From a permutation, what coordinate descent alone makes of
            it is the least that comes back; Frank-Wolfe often stays near it.
        restarts: how often to start again, from random places inside the polytope; the best is kept.
        max_steps: of Frank-Wolfe, from each start.
        tolerance: stop where an objective that were concave could rise by no more than this share, or where three steps
            raised it by less.
        max_sweeps: of the coordinate descent that follows the rounding.
        progress: show a progress bar.

    Returns:
        The permutation of B. The objective's history is that of permutations, soft ones do not count: the start, for
        ``"uniform"`` the identity, and each that was better. The sweeps are the steps and sweeps that found the best.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = frank_wolfe(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """
    relaxation = Relaxation(spec, [params_a, params_b], kernel)

    def descend(start: Permutation, sweeps: int) -> Match:
        return weight_matching(spec, params_a, params_b, kernel=kernel, seed=seed, start=start, max_sweeps=sweeps)

    try:
        corner = relaxation.corner(start)
    except KeyboardInterrupt:
        return Match(spec.identity(), (), 0, converged=False, interrupted=True)
    best = descend(corner, 0 if start == "uniform" else max_sweeps)
    if best.interrupted:
        return best
    first = uniform(spec, relaxation.like) if start == "uniform" else soften(corner, relaxation.like)
    history = [*best.objective]
    generator = torch.Generator().manual_seed(seed)
    with tqdm(desc="Frank-Wolfe", disable=not progress, leave=False) as bar:
        for number in range(restarts + 1):
            soft = random_soft(spec, relaxation.like, generator) if number else first
            ascent = ascend(relaxation, [soft], max_steps=max_steps, tolerance=tolerance, bar=bar)
            found = descend(harden(spec, ascent.softs[0]), 0 if ascent.interrupted else max_sweeps)
            interrupted = ascent.interrupted or found.interrupted
            if found.objective[-1] >= best.objective[-1]:
                history += [value for value in found.objective if value > history[-1]]
                best = replace(
                    found, sweeps=ascent.steps + found.sweeps, converged=ascent.converged and found.converged
                )
            if interrupted:
                return replace(best, objective=tuple(history), converged=False, interrupted=True)
    return replace(best, objective=tuple(history))

r"""Graduated assignment: every block answers the others softly, ever less so, until it is a permutation.

.. math:: P_b \leftarrow \operatorname{Sinkhorn}(G_b(P) / \tau), \qquad \tau \to 0

where :math:`G_b` is the Gram matrix that weight matching would solve exactly, but against the soft permutations of the
other blocks. While it is hot, a block sees averages of its neighbours' units, and what only a wrong neighbour would
say is averaged away. What can be known is settled first, wherever it is in the network, and the rest follows. Descent
from a permutation cannot do that: it must decide on everything at once, and then listens to its own mistakes.

With dependents the answer is nested, as in weight matching: for each pair of positions of the root a soft assignment of
what is inside, and a soft assignment of the root on what those are worth.

The temperature is relative to the spread of a Gram matrix, :math:`\tau = T \sigma \sqrt{2 \log n}`, about the largest
entry that chance makes: at T = 1 nothing stands out.

Reference: Gold and Rangarajan, *A graduated assignment algorithm for graph matching*, IEEE Transactions on Pattern
Analysis and Machine Intelligence 18, 1996; for many assignments at once as mean-field annealing, as here, Kosowsky and
Yuille, *The invisible hand algorithm*, Neural Networks 7, 1994.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log, sqrt

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..layout import Cell
from ..permutation import Permutation
from ..spec import PermutationSpec
from .blocks import find_blocks
from .match import Match
from .nested import Nested, interleaved
from .problem import Kernel, Problem
from .soft import Soft, harden, mix, soften, uniform
from .task import Unfolding, add_product
from .weight import weight_matching

_HOT, _REHEATED, _COLD = 1.0, 0.2, 0.02
"""Temperatures: where nothing stands out, where what is clear stays, and where all has been decided."""


def graduated_assignment(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    kernel: Kernel = "cosine",
    seed: int = 0,
    sweeps: int = 15,
    reheats: int = 4,
    exclude: Sequence[str] = (),
    progress: bool = False,
) -> Match:
    """Align B's weights with A's by annealing all blocks together, and descend from there.

    The result is never worse than that of :func:`~autoperm.weight_matching` with the same kernel and seed, which is
    tried first. The first annealing starts with every unit going everywhere; each further one softens the best
    permutation so far, and looks around it.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name; those that the specification does not know are ignored.
        params_b: tensors of model B, of the same names and shapes.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        seed: of the random order in which blocks are visited, new for each sweep.
        sweeps: of the first annealing, from the hottest to the coldest.
        reheats: how many annealings follow, of less than half the length.
        exclude: parameters that have no say, by name or pattern (``"*.bias"``). They are permuted with the others.
        progress: show a progress bar.

    Returns:
        The permutation of B, and the objective's history: of weight matching, then of each result that was better. The
        sweeps are those of all annealings. An interruption (control-C) returns the best until then.

    Raises:
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = graduated_assignment(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """
    descend = partial(weight_matching, spec, params_a, params_b, kernel=kernel, seed=seed, exclude=exclude)
    best = descend()
    history, done = [*best.objective], 0
    annealing = Annealing(Problem(spec, params_a, params_b, kernel, exclude=exclude), seed)
    reheat = [float(t) for t in np.geomspace(_REHEATED, _COLD, max(1, round(0.4 * sweeps)))]
    schedules = [[float(t) for t in np.geomspace(_HOT, _COLD, sweeps)], *[reheat] * reheats]
    interrupted = best.interrupted
    with tqdm(total=sum(map(len, schedules)), desc="graduated assignment", disable=not progress, leave=False) as bar:
        try:
            for number, schedule in enumerate(schedules if not interrupted else []):
                if number:
                    annealing.soften(best.permutation)
                for temperature in schedule:
                    annealing.sweep(temperature)
                    done += 1
                    bar.update()
                found = descend(start=harden(spec, annealing.soft))
                if found.objective[-1] > best.objective[-1]:
                    best = found
                    history.append(found.objective[-1])
                    bar.set_postfix(objective=f"{history[-1]:.6g}")
                if found.interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            interrupted = True
    converged = best.converged and not interrupted
    return replace(best, objective=tuple(history), sweeps=done, converged=converged, interrupted=interrupted)


class Annealing:
    """The soft permutations of all blocks, at a falling temperature.

    Attributes:
        soft: the matrices by factor; at first every unit goes everywhere alike.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.spec = problem.spec
        self._like = next(iter(problem.a.values()), torch.zeros(()))
        self.soft: Soft = uniform(problem.spec, self._like)
        self.blocks = find_blocks(problem.spec, problem.cells)
        self._prices: dict[frozenset[str], Soft] = {}  # a factor over two roots is in the blocks of both
        self._rng = np.random.default_rng(seed)

    def soften(self, permutation: Permutation) -> None:
        """Start again from a permutation."""
        self.soft = soften(permutation, self._like)

    def sweep(self, temperature: float) -> None:
        """Let every block answer once, in random order."""
        for number in self._rng.permutation(len(self.blocks)):
            for active in self.blocks[number].rounds:
                nested = Nested(self.spec, active)
                prices = self._prices.setdefault(active, {})
                self.soft |= _answer(nested, self._grams(nested), temperature, prices)

    def _grams(self, nested: Nested) -> dict[str, Tensor]:
        """The Gram matrices of :class:`~autoperm.matching.nested.Nested`, against what stands still, softly."""
        sums: dict[str, Tensor] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for cell in self.problem.carrying(nested.active):
            for unfold in self.problem.unfold(nested.active, cell):
                a, b = (unfold(view) for view in self._still(cell, unfold))
                add_product(sums, unfold.factor, a, b, self.problem.weights[cell.tensor])
                shapes[unfold.factor] = unfold.shape
        return {name: gram.reshape(shapes[name]) for name, gram in sums.items()}

    def _still(self, cell: Cell, unfold: Unfolding) -> tuple[Tensor, Tensor]:
        """A cell of A and of B, mixed along what stands still.

        What varies over a factor that moves belongs to places, and only A's rows are places: so A's side is mixed back.
        """
        a, b = self.problem.views(cell)
        over = {
            dim: [cell.dim(outer, dim) for outer in self.spec.factors[name].over]
            for dim, name in enumerate(cell.names)
            if name in self.soft and dim not in unfold.path
        }
        for dim in sorted(over, key=lambda dim: len(over[dim])):
            if set(unfold.path).isdisjoint(over[dim]):
                b = mix(self.spec, self.soft, cell, b, dim)
        for dim in sorted(over, key=lambda dim: -len(over[dim])):
            if not set(unfold.path).isdisjoint(over[dim]):
                a = mix(self.spec, self.soft, cell, a, dim, back=True)
        return a, b


def _answer(nested: Nested, grams: Mapping[str, Tensor], temperature: float, prices: Soft) -> Soft:
    """Solve a block softly: :meth:`~autoperm.matching.nested.Nested.solve` at a temperature."""
    factors = nested.spec.factors
    scores = {n: gram.permute(interleaved(len(nested.aligned(n)), len(nested.path(n)))) for n, gram in grams.items()}
    inside: Soft = {}  # for each pair of positions of what a factor varies over
    for name in sorted(nested.active, key=lambda name: -len(factors[name].over)):
        if name not in scores:
            continue
        inside[name], prices[name] = _sinkhorn(scores[name], temperature, prices.get(name))
        path = nested.path(name)
        if len(path) > 1:
            keep = nested.aligned(path[-2])
            gone = [i for i, outer in enumerate(nested.aligned(name)) if outer not in keep]
            values = (inside[name] * scores[name]).sum([*gone, -2, -1])
            scores[path[-2]] = scores[path[-2]] + values if path[-2] in scores else values
    return {name: _at_places(nested, name, inside) for name in inside}


def _at_places(nested: Nested, name: str, inside: Soft) -> Tensor:
    """The soft permutation of a factor for each place of what it varies over: the mean over who comes there."""
    aligned, path = nested.aligned(name), nested.path(name)
    letter = {outer: chr(ord("a") + i) for i, outer in enumerate([*aligned, *path])}  # A's positions; B's are capitals

    def subscripts(step: str) -> str:
        pairs = "".join(letter[outer] + letter[outer].upper() for outer in nested.path(step))
        return "".join(letter[outer] for outer in nested.aligned(step)) + pairs

    steps = [step for step in path if step in inside]
    places = "".join(letter[outer] for outer in nested.spec.factors[name].over)
    result = f"{places}{letter[name]}{letter[name].upper()}"
    return torch.einsum(f"{','.join(map(subscripts, steps))}->{result}", *(inside[step] for step in steps))


def _sinkhorn(scores: Tensor, temperature: float, prices: Tensor | None, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Return nearly doubly stochastic matrices that put their mass where scores are high.

    Args:
        scores: shape ``(..., n, n)``.
        temperature: relative to the spread of the scores.
        prices: of the columns, shape ``(..., 1, n)``, from a problem that was much the same.
        iterations: how often rows and columns are scaled.

    Returns:
        The matrices, of which the rows sum to 1, and the prices.
    """
    n = scores.shape[-1]
    unit = temperature * float(scores.std()) * sqrt(2 * log(n)) if n > 1 else 0.0
    if not unit > 0:
        return torch.full_like(scores, 1 / n), scores.new_zeros(*scores.shape[:-2], 1, n)
    logits = scores / unit if prices is None else (scores - prices) / unit
    logits = logits - logits.logsumexp(-1, keepdim=True)
    extra = logits.logsumexp(-2, keepdim=True)
    matrix = (logits - extra).exp()
    rows = columns = matrix.new_ones(*matrix.shape[:-1], 1)
    tiny = torch.finfo(matrix.dtype).tiny
    for _ in range(iterations):  # the rows last: whatever comes to a place, it is one unit
        columns = 1 / (matrix.mT @ rows).clamp_min(tiny)
        rows = 1 / (matrix @ columns).clamp_min(tiny)
    found = unit * (extra - columns.clamp(tiny, 1 / tiny).log().mT)
    return rows * matrix * columns.mT, found if prices is None else found + prices

r"""Simulated annealing over permutations, as Entezari et al. did before there was weight matching.

A step swaps two units of one factor, at one position of what it varies over. It is kept if the objective J rises, and
if it falls with probability :math:`\exp(\Delta J / T)`; the temperature T goes down geometrically. J is minus the loss
barrier, or, without data, the inner product of the weights. It needs orders of magnitude more steps than the other
matchers, and is here to be compared with.

Reference: Entezari, Sedghi, Saukh and Neyshabur, *The Role of Permutation Invariance in Linear Mode Connectivity of
Neural Networks*, ICLR 2022, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cache, partial
from math import exp
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..batches import check_rereadable
from ..errors import MatcherError
from ..evaluate import Loss
from ..permutation import Permutation
from ..spec import PermutationSpec
from .match import Match
from .matcher import Matcher
from .path import Path, first_batches
from .problem import Problem

_TRIALS = 20
"""How many first steps tell how much one step changes the objective."""


@dataclass(frozen=True)
class SimulatedAnnealing:
    """Swap pairs of units at random, at a falling temperature.

    BatchNorm normalises by the statistics of the batch, and dropout is off. The models are not changed.

    Attributes:
        data: batches ``(input, target)``, which can be read more than once; without, weights alone are matched.
        loss: ``loss(output, target)``, the mean over the batch.
        steps: how many swaps to try.
        points: at how many points between the models the loss is measured; 1 is the midpoint.
        batches: on how many batches the loss is measured, the same for all permutations; all of them for None.
        temperature: of the first step, in the unit of the objective; by default what the first swaps change on average.
        cooling: the temperature of the last step, as a share of the first.
        seed: of the swaps.
        progress: show a progress bar.

    Raises:
        MatcherError: if there are data without a loss, or a loss without data, or an option is not positive.
        EvaluationError: if the data can be read only once.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = SimulatedAnnealing(steps=500)(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    _: KW_ONLY
    steps: int = 1000
    points: int = 1
    batches: int | None = 1
    temperature: float | None = None
    cooling: float = 1e-3
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if (self.data is None) != (self.loss is None):
            missing = "data" if self.data is None else "loss"
            raise MatcherError(f"annealing needs data and loss, or neither; {missing} is missing")
        for option in ("steps", "points", "batches", "temperature", "cooling"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise MatcherError(f"{option} is {value}, but must be positive")
        if self.data is not None:
            check_rereadable(self.data)

    def bind(self, model_a: nn.Module, model_b: nn.Module, /) -> Matcher:
        """Return the matcher for two models, whose barrier it lowers if there are data."""
        return self if self.data is None else partial(self._lower_barrier, (model_a, model_b))

    def __call__(
        self, spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
    ) -> Match:
        """Return the permutation of the largest inner product that was met.

        Raises:
            MatcherError: if there are data, but no models to run on them.
        """
        if self.data is not None:
            raise MatcherError("annealing with data runs the models; call bind(model_a, model_b) first, as align does")
        problem = Problem(spec, params_a, params_b, "linear")

        def inner_product(indices: Mapping[str, Tensor]) -> float:
            problem.reset(Permutation(spec, indices))
            return problem.objective()

        return self._anneal(spec, inner_product)

    def _lower_barrier(
        self,
        models: tuple[nn.Module, nn.Module],
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        /,
    ) -> Match:
        assert self.data is not None  # bind
        assert self.loss is not None  # __post_init__
        path = Path(models, (params_a, params_b), self.loss)
        data = self.data

        @cache  # in the first step, where an interruption is expected
        def batches() -> list[Any]:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                return first_batches(data, self.batches)

        def loss(permutation: Permutation, lam: float) -> float:
            path.move(permutation, lam)
            return path.mean_loss(batches())

        @cache
        def ends() -> tuple[float, float]:
            return loss(spec.identity(), 0.0), loss(spec.identity(), 1.0)

        def barrier(indices: Mapping[str, Tensor]) -> float:
            permutation = Permutation(spec, indices)
            at_a, at_b = ends()
            lams = [point / (self.points + 1) for point in range(1, self.points + 1)]
            return max(loss(permutation, lam) - (1 - lam) * at_a - lam * at_b for lam in lams)

        return self._anneal(spec, lambda indices: -barrier(indices))

    def _anneal(self, spec: PermutationSpec, objective: Callable[[Mapping[str, Tensor]], float]) -> Match:
        rng = np.random.default_rng(self.seed)
        now = {factor.name: spec.identity()[factor.name].clone() for factor in spec.free}
        best = spec.identity()
        units = np.array([index.numel() for index in now.values()], dtype=float)
        history: list[float] = []
        changes: list[float] = []
        step = 0
        interrupted = False
        bar = tqdm(total=self.steps, desc="annealing", disable=not self.progress, leave=False)
        try:
            value = objective(now)
            history.append(value)
            while now and step < self.steps:
                name = list(now)[rng.choice(len(units), p=units / units.sum())]
                swapped = {**now, name: _swap(now[name], rng)}
                proposed = objective(swapped)
                if len(changes) < _TRIALS:
                    changes.append(abs(proposed - value))
                hot = fmean(changes) if self.temperature is None else self.temperature
                cold = max(hot, 1e-300) * self.cooling ** (step / self.steps)
                if proposed >= value or rng.random() < exp((proposed - value) / cold):
                    now, value = swapped, proposed
                    if value > history[-1]:
                        best = Permutation(spec, now)
                        history.append(value)
                step += 1
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
        bar.close()
        return Match(best, tuple(history), step, False, interrupted=interrupted)


def _swap(index: Tensor, rng: np.random.Generator) -> Tensor:
    """Swap two units of a factor, at one position."""
    swapped = index.clone()
    rows = swapped.view(-1, swapped.shape[-1])
    row = int(rng.integers(len(rows)))
    i, j = rng.choice(rows.shape[-1], 2, replace=False).tolist()
    rows[row, i], rows[row, j] = index.view(rows.shape)[row, j], index.view(rows.shape)[row, i]
    return swapped

r"""Sinkhorn re-basin: soft permutations that are differentiable, learnt by gradient descent on a loss.

Each factor has a matrix of latent numbers X, for each position of what it varies over. Rows and columns of
:math:`\exp(X / \tau)` are normalised in turns, which ends in a doubly stochastic matrix. What is minimised is one of

.. math::
    \text{l2:}\quad & \tfrac12 \sum_t | \alpha_t A_t - \beta_t P(B)_t |^2 \\
    \text{midpoint:}\quad & L(\tfrac12 A + \tfrac12 P(B)) \\
    \text{random:}\quad & L((1 - \lambda) A + \lambda P(B)), \quad \lambda \sim U(0, 1) \text{ anew in each step}

with the kernel's scales in the first, which needs no data, and a model's loss L on a batch in the others. After each
pass the nearest permutation is read off by assignment, and the best one is kept.

The paper differentiates the normalisation implicitly; here its few iterations are unrolled, which gives the gradient of
what was computed and costs memory in proportion to their number.

Reference: Guerrero Peña, Medeiros, Dubail, Aminbeidokhti, Granger, Pedersoli, *Re-basin via implicit Sinkhorn
differentiation*, CVPR 2023, arXiv 2212.12042.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..batches import check_rereadable
from ..errors import AutopermError, EvaluationError, MatcherError
from ..evaluate import Loss
from ..permutation import Permutation
from ..spec import PermutationSpec
from ..state import interpolates
from .frank_wolfe import Relaxation
from .match import Match
from .matcher import Matcher
from .path import EMPTY, Optimizer, Path
from .problem import Kernel
from .soft import Soft, act, harden, normalize, soft_apply, soften

Objective = Literal["l2", "midpoint", "random"]

_adam = partial(torch.optim.Adam, lr=0.2)


@dataclass(frozen=True)
class Sinkhorn:
    """Align two models by gradient descent on soft permutations.

    With a loss on the path, the network between the models runs in eval mode, but BatchNorm normalises by each batch:
    running statistics of the ends do not fit what lies between them. All other buffers are those of the midpoint.

    Attributes:
        data: batches ``(input, target)`` for a loss on the path, which can be read more than once; ``"l2"`` needs none.
        loss: the loss of a model's output, as a mean over the batch.
        objective: ``"l2"``, the distance of the weights; ``"midpoint"``, the loss half-way between the models;
            ``"random"``, at a random place on the path.
        steps: how many.
        temperature: the latent numbers are divided by it; a small one makes matrices harder.
        iterations: how often rows and columns are normalised.
        start: ``"boundary"``, the permutation that weight matching grows from the pinned axes inwards; ``"uniform"``,
            the middle of the polytope; or a permutation.
        kernel: scales of the tensors for ``"l2"``, and of weight matching's for the start.
        seed: of the random places on the path; the order of the batches is that of the data.
        optimizer: of the latent numbers; by default Adam with learning rate 0.2.
        progress: show a progress bar.

    Raises:
        AutopermError: for an unknown objective, or one on the path without data.
        EvaluationError: if the data can be read only once.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> planted = spec.random(1)
        >>> found = Sinkhorn(steps=5)(spec, net.state_dict(), planted.apply(net.state_dict()))
        >>> found.permutation.compose(planted) == spec.identity()
        True
    """

    data: Iterable[Any] | None = None
    loss: Loss = F.cross_entropy
    _: KW_ONLY
    objective: Objective = "l2"
    steps: int = 200
    temperature: float = 1.0
    iterations: int = 20
    start: Permutation | Literal["boundary", "uniform"] = "boundary"
    kernel: Kernel = "cosine"
    seed: int = 0
    optimizer: Optimizer = _adam
    progress: bool = False

    def __post_init__(self) -> None:
        """Check that the objective has what it needs."""
        if self.objective not in ("l2", "midpoint", "random"):
            raise AutopermError(f"there is no objective {self.objective!r}; choose 'l2', 'midpoint' or 'random'")
        if self.objective != "l2":
            if self.data is None:
                raise AutopermError(f"objective {self.objective!r} is a loss on data; give batches (input, target)")
            check_rereadable(self.data)

    def bind(self, model_a: nn.Module, model_b: nn.Module, /) -> Matcher:
        """Return the matcher for two models, between which the loss is taken if the objective is one on the path."""
        return self if self.objective == "l2" else partial(self._match, (model_a, model_b))

    def __call__(
        self, spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
    ) -> Match:
        """Return the permutation of B.

        Its objective is the inner product of the weights for ``"l2"``, else minus the loss over all the data, at the
        midpoint for both; and it never falls, for the best permutation is kept. The sweeps are the steps.

        Raises:
            MatcherError: if the objective needs the models.
            EvaluationError: if there is no data, or the loss is NaN or infinite; the message says in which step.
            ArchitectureError: if tables of integers differ, between which there is no path.
            SpecError: if names or shapes do not fit.
            WeightsError: if weights are NaN or infinite.
        """
        if self.objective != "l2":
            raise MatcherError(
                f"objective {self.objective!r} runs the models; use align, or call bind(model_a, model_b) first"
            )
        return self._match(None, spec, params_a, params_b)

    def _match(
        self,
        models: tuple[nn.Module, nn.Module] | None,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        /,
    ) -> Match:
        relaxation = Relaxation(spec, [params_a, params_b], self.kernel)
        try:
            best = last = relaxation.corner(self.start)
        except KeyboardInterrupt:
            return Match(spec.identity(), (), 0, converged=False, interrupted=True)
        latents = self._latents(best, relaxation)
        task = _Distance(relaxation) if models is None else self._path_loss(models, spec, params_a, params_b)
        if not latents:
            return Match(best, (task.judge(best),), 0, converged=True)
        optimizer = self.optimizer(list(latents.values()))
        history: list[float] = []
        step, interrupted = 0, False
        try:
            history.append(task.judge(best))
            for step in tqdm(range(1, self.steps + 1), desc="Sinkhorn", disable=not self.progress, leave=False):
                loss, judge = task.step(self._soft(latents))
                if not bool(loss.isfinite()):
                    raise EvaluationError(
                        f"the loss in step {step} is {float(loss.detach())}; check the data, or lower the learning rate"
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if judge or step == self.steps:
                    found = harden(spec, latents)
                    value = task.judge(found) if found != last else history[-1]
                    last = found
                    if value > history[-1]:
                        best = found
                        history.append(value)
        except KeyboardInterrupt:
            interrupted = True
        return Match(best, tuple(history), step, converged=False, interrupted=interrupted)

    def _path_loss(
        self,
        models: tuple[nn.Module, nn.Module],
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
    ) -> _PathLoss:
        assert self.data is not None  # __post_init__
        generator = torch.Generator().manual_seed(self.seed) if self.objective == "random" else None
        path = Path(models, (params_a, params_b), self.loss)
        return _PathLoss(path, spec, params_a, params_b, self.data, generator)

    def _latents(self, start: Permutation, relaxation: Relaxation) -> dict[str, Tensor]:
        """Latent numbers of the start; a permutation has half of the mass, and the rest is spread evenly."""
        carried = {name for cell in relaxation.cells for name in cell.names}
        latents = {}
        for name, matrix in soften(start, relaxation.like).items():
            if name in carried:
                height = 0.0 if self.start == "uniform" else self.temperature * log(max(matrix.shape[-1], 1))
                latents[name] = (height * matrix).requires_grad_()
        return latents

    def _soft(self, latents: Mapping[str, Tensor]) -> Soft:
        return {name: normalize(latent / self.temperature, self.iterations) for name, latent in latents.items()}


class _Distance:
    """Half the squared distance of the scaled weights; for permutations it falls as their inner product rises."""

    def __init__(self, relaxation: Relaxation) -> None:
        self._relaxation = relaxation

    def step(self, soft: Soft) -> tuple[Tensor, bool]:
        """Return the loss, and that a permutation may be judged after each step."""
        whole = self._relaxation
        loss = whole.like.new_zeros(())
        for cell in whole.cells:
            a, b = (cell.view(state[cell.tensor]) for state in whole.states)
            loss = loss + (a - act(whole.spec, soft, cell, b)).square().sum() / 2
        return loss, True

    def judge(self, permutation: Permutation) -> float:
        """Return the inner product."""
        return self._relaxation.value([soften(permutation, self._relaxation.like)])


class _PathLoss:
    """The loss of a network between A and B."""

    def __init__(
        self,
        path: Path,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        data: Iterable[Any],
        generator: torch.Generator | None,
    ) -> None:
        self._path, self._spec, self._data, self._generator = path, spec, data, generator
        self._a, self._b = (
            {name: tensor.detach() for name, tensor in params.items() if interpolates(tensor)}
            for params in (params_a, params_b)
        )
        self._batches = _passes(data)

    def step(self, soft: Soft) -> tuple[Tensor, bool]:
        """Return the loss on the next batch, and whether that was the last one of a pass."""
        batch, last = next(self._batches)
        lam = 0.5 if self._generator is None else float(torch.rand((), generator=self._generator))
        moved = soft_apply(self._spec, soft, self._b)
        names = [name for name in self._a if name not in self._spec.tied]
        return self._path.loss(batch, {name: torch.lerp(self._a[name], moved[name], lam) for name in names}), last

    def judge(self, permutation: Permutation) -> float:
        """Return minus the mean loss per sample at the midpoint."""
        self._path.move(permutation)
        return -self._path.mean_loss(self._data)


def _passes(data: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield the batches over and over, and whether each is the last of a pass."""
    while True:
        waiting: list[Any] = []
        for batch in data:
            if waiting:
                yield waiting.pop(), False
            waiting.append(batch)
        if not waiting:
            raise EvaluationError(EMPTY)
        yield waiting.pop(), True

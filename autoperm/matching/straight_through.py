r"""Straight-through estimation: Algorithm 2 of Git Re-Basin, which lowers the loss between the models themselves.

.. math:: \min_{\tilde\Theta} L\big(\tfrac12 (\Theta_A + \pi(\Theta_B))\big), \qquad
          \pi = \operatorname{proj}(\tilde\Theta) = \arg\max_\pi \langle \tilde\Theta, \pi(\Theta_B) \rangle

The weights :math:`\tilde\Theta` are free, and start as A's. Each step projects them to a permutation by weight
matching, takes the gradient of the loss at the midpoint of that permutation, and moves the free weights against it, as
if there had been no projection. Each projection starts from the one before, which takes a sweep or two.

The free weights stand for the midpoint or for B's end of the path, and the projection is the largest inner product or
the smallest distance. For the midpoint those differ: the nearest midpoint is that of the permutation that best fits
:math:`2 \tilde\Theta - \Theta_A`. For B's end they are the same, since permutations keep norms.

The paper keeps the permutation of the smallest loss on one batch, which favours easy batches. Here every candidate is
judged on the same batches. The first is that of weight matching, so that the result is never worse there.

Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.3, appendix A.9 and Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..batches import check_rereadable
from ..errors import EvaluationError, MatcherError, WeightsError
from ..evaluate import Loss
from ..permutation import Permutation
from ..spec import PermutationSpec
from ..state import interpolates
from .match import Match, stop_if_interrupted
from .matcher import Matcher
from .path import Optimizer, Path, endless, first_batches
from .problem import Kernel
from .weight import weight_matching

_sgd = partial(torch.optim.SGD, lr=0.03, momentum=0.9)


@dataclass(frozen=True)
class StraightThrough:
    """Find the permutation of the smallest loss at the midpoint, by gradient descent through weight matching.

    BatchNorm normalises by the statistics of the batch, and dropout is off. The models are not changed.

    Attributes:
        data: batches ``(input, target)`` of training data, which can be read more than once.
        loss: ``loss(output, target)``, the mean over the batch.
        steps: how many batches to take a step on; the data are read anew when they end.
        optimizer: of the free weights; by default SGD with learning rate 0.03 and momentum 0.9.
        at: what the free weights stand for: the ``"midpoint"``, or ``"b"``, model B's end of the path.
        projection: to the permutation of the largest ``"inner"`` product, or of the smallest ``"l2"`` distance.
        kernel: of the weight matching that projects: ``"cosine"``, or ``"linear"`` as in the paper.
        project_every: how many steps to take before the next projection; 1 in the paper.
        judge_every: how many steps to take before the permutation is judged again.
        judge_batches: on how many batches of the data it is judged, the same ones each time; all of them for None.
        seed: of the order of sweeps, and of torch's random numbers meanwhile, such as a loader's shuffling.
        progress: show a progress bar.

    Raises:
        MatcherError: for an option that there is not.
        EvaluationError: if the data can be read only once.

    Example:
        >>> from autoperm import align
        >>> batch = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> a, b = (nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2))
        >>> aligned = align(a, b, matcher=StraightThrough([batch], nn.CrossEntropyLoss(), steps=5))
        >>> aligned.match.sweeps
        5
    """

    data: Iterable[Any]
    loss: Loss
    _: KW_ONLY
    steps: int = 500
    optimizer: Optimizer = _sgd
    at: Literal["midpoint", "b"] = "midpoint"
    projection: Literal["inner", "l2"] = "inner"
    kernel: Kernel = "cosine"
    project_every: int = 1
    judge_every: int = 10
    judge_batches: int | None = 10
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        check_rereadable(self.data)
        for option, choices in {"at": ("midpoint", "b"), "projection": ("inner", "l2")}.items():
            if getattr(self, option) not in choices:
                raise MatcherError(f"{option} is {getattr(self, option)!r}; choose {choices[0]!r} or {choices[1]!r}")
        for option in ("steps", "project_every", "judge_every", "judge_batches"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise MatcherError(f"{option} is {value}, but must be at least 1")

    def bind(self, model_a: nn.Module, model_b: nn.Module, /) -> Matcher:
        """Return the matcher for two models."""
        return partial(self._match, (model_a, model_b))

    def _match(
        self,
        models: tuple[nn.Module, nn.Module],
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        /,
    ) -> Match:
        start = weight_matching(spec, params_a, params_b, kernel=self.kernel, seed=self.seed)
        if not spec.free or not any(map(interpolates, params_a.values())):
            return replace(start, objective=())
        path = Path(models, (params_a, params_b), self.loss)
        # B's end moves the midpoint half as far.
        free = _FreeWeights(path, params_a, self.optimizer, share=0.5 if self.at == "b" else 1.0)
        best = permutation = judged = start.permutation
        losses: list[float] = []
        step = 0
        interrupted = False
        bar = tqdm(total=self.steps, desc="straight-through", disable=not self.progress, leave=False)
        try:
            stop_if_interrupted(start)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                judges = first_batches(self.data, self.judge_batches)
                path.move(permutation)
                losses.append(path.mean_loss(judges))
                for batch in endless(self.data):
                    free.step(batch, step)
                    step += 1
                    if step % self.project_every == 0:
                        found = self._project(spec, free, params_a, params_b, permutation, step)
                        if found.permutation != permutation:
                            permutation = found.permutation
                            path.move(permutation)
                        stop_if_interrupted(found)
                    if (step % self.judge_every == 0 or step == self.steps) and permutation != judged:
                        judged = permutation
                        loss = path.mean_loss(judges)
                        if loss < losses[-1]:
                            best = permutation
                            losses.append(loss)
                        bar.set_postfix(loss=f"{losses[-1]:.4g}")
                    bar.update()
                    if step == self.steps:
                        break
        except KeyboardInterrupt:
            interrupted = True
        bar.close()
        return Match(best, tuple(-loss for loss in losses), step, False, interrupted=interrupted)

    def _project(
        self,
        spec: PermutationSpec,
        free: _FreeWeights,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        start: Permutation,
        step: int,
    ) -> Match:
        weights = free.weights()
        if self.at == "midpoint" and self.projection == "l2":
            weights = {name: 2 * weights[name] - params_a[name] for name in weights}
        try:
            return weight_matching(spec, weights, params_b, kernel=self.kernel, seed=self.seed + step, start=start)
        except WeightsError as error:
            raise WeightsError(
                f"the free weights are no longer finite after step {step}; lower the learning rate of the optimizer"
            ) from error


class _FreeWeights:
    """What the optimizer moves, by the gradient at the midpoint."""

    def __init__(self, path: Path, params_a: Mapping[str, Tensor], optimizer: Optimizer, share: float) -> None:
        self._path = path
        self._share = share
        self._params_a = params_a
        first: dict[Tensor, str] = {}
        for name, parameter in path.model.named_parameters(remove_duplicate=False):
            first.setdefault(parameter, name)
        self._first = {name: first[p] for name, p in path.model.named_parameters(remove_duplicate=False)}
        self._points = {name: point for point, name in first.items() if point.requires_grad}
        # Steps are often smaller than half precision can tell.
        self._weights = {name: _widen(params_a[name].detach()).clone() for name in self._points}
        self._optimizer = optimizer(list(self._weights.values()))

    def step(self, batch: Any, number: int) -> None:
        """Move against the gradient of the loss of one batch.

        Raises:
            EvaluationError: if the loss is NaN or infinite.
        """
        for point in self._points.values():
            point.grad = None
        with torch.enable_grad():
            loss = self._path.loss(batch)
            if not bool(loss.isfinite()):
                raise EvaluationError(
                    f"the loss at the midpoint is {loss.item()} in step {number}; check that batch, and the loss"
                )
            torch.autograd.backward(loss)
        for name, point in self._points.items():
            gradient = None if point.grad is None else self._share * point.grad.to(self._weights[name].dtype)
            self._weights[name].grad = gradient
        self._optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        """Return the free weights by all names of the model's parameters."""
        return {name: self._weights.get(self._first[name], self._params_a[name]) for name in self._params_a}


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

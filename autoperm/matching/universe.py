r"""Many models at once through a universe: cycle-consistent matching, C2M3.

.. math:: \max_{P_1, \dots, P_N} \sum_{i < j} \sum_t w_{ij,t} \langle P_i(\theta_i)_t, P_j(\theta_j)_t \rangle

Every model has one permutation into a common order, the universe. What takes model j to model i is then
:math:`P_i^{-1} P_j`, and going round a cycle of models changes nothing. Matching each pair by itself does not give
that.

All permutations are found together by Frank-Wolfe (:mod:`autoperm.matching.frank_wolfe`), or by graduated assignment
(:mod:`autoperm.matching.graduated`), which is not in the paper. They are rounded, and polished: one model after the
other is matched by coordinate descent to the sum of the others, as long as the objective rises.

Permuting all models alike changes nothing, so the universe's own order is free. It is model 0's: :math:`P_0` is the
identity.

Reference: Crisostomi, Fumero, Baieri, Bernard, Rodolà, *C2M3: Cycle-Consistent Multi-Model Merging*, NeurIPS 2024,
arXiv 2405.17897.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import AutopermError, SpecError
from ..permutation import Permutation
from ..spec import PermutationSpec
from ..state import check_finite
from .frank_wolfe import Ascent, Relaxation, ascend
from .match import ManyMatch
from .problem import Kernel
from .soft import Soft, harden, normalize, soft_apply, soften, uniform
from .weight import weight_matching

_ROUNDING = 1e-9
"""A model moves only if the objective rises by more than this share: less is rounding."""


_SHARPNESS = (0.5, 30.0)
"""The first and the last: at 0.5 all is nearly uniform, at 30 a lead of a tenth of a standard deviation decides."""


@dataclass(frozen=True)
class Universe:
    """Match many models through a universe.

    Attributes:
        method: ``"frank-wolfe"``, the paper's, or ``"graduated"``, graduated assignment.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        seed: of the order in which models and blocks are visited in the end.
        start: ``"uniform"``, the middle of the polytope for all models but the first, or ``"boundary"``, the
            permutations that weight matching grows for each of them.
        max_steps: of Frank-Wolfe; graduated assignment takes 20, or these if they are fewer.
        tolerance: stop Frank-Wolfe where an objective that were concave could rise by no more than this share, or where
            three steps raised it by less.
        max_sweeps: of the coordinate descent that follows the rounding, over the models and, for each, over its blocks.
        progress: show a progress bar.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> states = [spec.random(seed).apply(net.state_dict()) for seed in range(3)]
        >>> found = Universe().match_many(spec, states)
        >>> first, *others = (p.apply(state) for p, state in zip(found.permutations, states))
        >>> all(torch.equal(other["0.weight"], first["0.weight"]) for other in others)
        True
    """

    _: KW_ONLY
    method: Literal["frank-wolfe", "graduated"] = "frank-wolfe"
    kernel: Kernel = "cosine"
    seed: int = 0
    start: Literal["uniform", "boundary"] = "uniform"
    max_steps: int = 100
    tolerance: float = 1e-6
    max_sweeps: int = 100
    progress: bool = False

    def match_many(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], /) -> ManyMatch:
        """Return each model's permutation into the universe, whose order is model 0's.

        Args:
            spec: which axes may be permuted.
            states: for each model its tensors by name; those that the specification does not know are ignored.

        Returns:
            The permutations, the first of them the identity. The objective's history is that of permutations, soft ones
            do not count: the start, for ``"uniform"`` the identity for all, and each that was better. The sweeps are
            the steps and sweeps that found the best.

        Raises:
            AutopermError: if there are fewer than two models.
            SpecError: if names or shapes do not fit.
            WeightsError: if weights are NaN or infinite.
        """
        if len(states) < 2:
            raise AutopermError(f"there are {len(states)} models; matching needs at least 2")
        for number, state in enumerate(states):
            for name in (name for name in spec.patterns if name in states[0]):
                if name not in state or tuple(state[name].shape) != spec.shapes[name]:
                    shape = list(state[name].shape) if name in state else "missing"
                    raise SpecError(
                        f"{name} is {list(spec.shapes[name])} in the specification and {shape} in model {number}"
                    )
            check_finite({name: state[name] for name in spec.patterns if name in state}, f"model {number}")
        if self.method not in ("frank-wolfe", "graduated"):
            raise AutopermError(f"there is no method {self.method!r}; choose 'frank-wolfe' or 'graduated'")
        relaxation = Relaxation(spec, states, self.kernel)
        found = ManyMatch(tuple(spec.identity() for _ in states), (), 0, converged=False)
        try:
            with tqdm(desc="universe", disable=not self.progress, leave=False) as bar:
                first = [relaxation.corner(self.start, number) for number in range(1, len(states))]
                found = self._descend(relaxation, first, 0 if self.start == "uniform" else self.max_sweeps, bar)
                return found if found.interrupted else self._improve(relaxation, found, first, bar)
        except KeyboardInterrupt:
            return replace(found, converged=False, interrupted=True)

    def _improve(
        self, relaxation: Relaxation, before: ManyMatch, first: Sequence[Permutation], bar: tqdm[None]
    ) -> ManyMatch:
        """Return what is found from soft permutations, or what was there before, if that is better."""
        spec = relaxation.spec
        if self.start == "uniform":
            softs = [uniform(spec, relaxation.like) for _ in first]
        else:
            softs = [soften(permutation, relaxation.like) for permutation in first]
        if self.method == "frank-wolfe":
            ascent = ascend(relaxation, softs, max_steps=self.max_steps, tolerance=self.tolerance, bar=bar)
        else:
            ascent = _anneal(relaxation, softs, steps=min(self.max_steps, 20), iterations=10, bar=bar)
        rounded = [harden(spec, soft) for soft in ascent.softs]
        after = self._descend(relaxation, rounded, 0 if ascent.interrupted else self.max_sweeps, bar)
        interrupted = ascent.interrupted or after.interrupted
        if after.objective[-1] < before.objective[-1]:
            return replace(before, converged=before.converged and not interrupted, interrupted=interrupted)
        return replace(
            after,
            objective=(*before.objective, *(value for value in after.objective if value > before.objective[-1])),
            sweeps=ascent.steps + after.sweeps,
            converged=ascent.converged and after.converged,
            interrupted=interrupted,
        )

    def _descend(
        self, relaxation: Relaxation, first: Sequence[Permutation], max_sweeps: int, bar: tqdm[None]
    ) -> ManyMatch:
        """Match one model after the other to the sum of the others, model 0 too; then give it its own order back."""
        spec, states = relaxation.spec, relaxation.states
        found = [spec.identity(), *first]
        moved = [soft_apply(spec, soften(p, relaxation.like), state) for p, state in zip(found, states, strict=True)]
        history = [relaxation.value([soften(permutation, relaxation.like) for permutation in first])]
        rng = np.random.default_rng(self.seed)
        sweeps, converged, interrupted = 0, False, False
        try:
            while sweeps < max_sweeps and not converged:
                sweeps, converged = sweeps + 1, True
                for i in map(int, rng.permutation(len(states))):
                    others = {
                        n: torch.stack([state[n] for j, state in enumerate(moved) if j != i]).sum(0) for n in states[i]
                    }
                    # The states are scaled by the kernel already.
                    match = weight_matching(
                        spec, others, states[i], kernel="linear", seed=self.seed, start=found[i], max_sweeps=max_sweeps
                    )
                    gain = match.objective[-1] - match.objective[0]
                    if gain > _ROUNDING * abs(history[-1]):
                        converged = False
                        history.append(history[-1] + gain)
                        found[i] = match.permutation
                        moved[i] = soft_apply(spec, soften(found[i], relaxation.like), states[i])
                    if match.interrupted:
                        raise KeyboardInterrupt
                    bar.update()
                    bar.set_postfix(objective=f"{history[-1]:.6g}")
        except KeyboardInterrupt:
            converged, interrupted = False, True
        back = found[0].inverse()
        return ManyMatch(tuple(back.compose(p) for p in found), tuple(history), sweeps, converged, interrupted)


def _anneal(relaxation: Relaxation, softs: list[Soft], *, steps: int, iterations: int, bar: tqdm[None]) -> Ascent:
    """Sharpen soft permutations step by step."""
    for step, sharpness in enumerate(np.geomspace(*_SHARPNESS, steps)):
        try:
            _, gradients = relaxation.gradient(softs)
            softs = [_sharpen(gradient, float(sharpness), iterations) for gradient in gradients]
        except KeyboardInterrupt:
            return Ascent(softs, step, converged=False, interrupted=True)
        bar.update()
    return Ascent(softs, steps, converged=True)


def _sharpen(gradient: Soft, sharpness: float, iterations: int) -> Soft:
    """Return doubly stochastic matrices that favour large entries of the gradient."""
    found = {}
    for name, matrix in gradient.items():
        spread = matrix.std((-1, -2), correction=0, keepdim=True)
        scores = (matrix - matrix.mean((-1, -2), keepdim=True)) / spread.clamp_min(torch.finfo(matrix.dtype).tiny)
        found[name] = normalize(sharpness * scores, iterations)
    return found

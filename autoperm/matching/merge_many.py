r"""Match each of many models to the mean of the others: MergeMany, Algorithm 3 of Git Re-Basin.

.. math:: \max_{\pi_1 \dots \pi_N} \sum_{i < j} \langle \pi_i(\Theta_i), \pi_j(\Theta_j) \rangle

Weight matching of one model with the mean of the others raises this sum, since all else stands still. So the models
are visited in random order until none moves. Kernel ``"cosine"`` first gives every tensor of every model the norm 1, or
less if it has only one number for each unit, so that each has the same say; permutations change no norm.

The mean of models that have not been matched yet says little. So at first each model is matched with the mean of those
that have been, one after the other; the paper starts with the mean of all.

Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, appendix A.10 and Algorithm 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial, reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import MatcherError
from ..permutation import Permutation
from ..spec import PermutationSpec
from ..state import check_finite, check_same_architecture
from .match import ManyMatch, permutation_of, stop_if_interrupted
from .matcher import WarmMatcher
from .problem import Kernel, share
from .weight import weight_matching

_ROUNDING = 1e-9
"""A model must raise the objective by this much of its scale: less is rounding."""

_linear = partial(weight_matching, kernel="linear")


@dataclass(frozen=True)
class MergeMany:
    """Match each model to the mean of the others, until none moves.

    Attributes:
        matcher: of pairs, which can start from a permutation: weight matching with some options. The tensors it gets
            are scaled already, so its kernel is the linear one.
        kernel: ``"linear"``, the inner product of all weights, or ``"cosine"``, which gives every tensor the same say.
        start: ``"growing"`` matches each model first with the mean of those before it; ``"identity"`` starts with the
            models as they are, as the paper does.
        seed: of the random order in which models are visited, new for each sweep.
        max_sweeps: stop after so many, even if the last one still improved.
        progress: show a progress bar.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> states = [spec.random(seed).apply(net.state_dict()) for seed in range(4)]
        >>> match = MergeMany().match_many(spec, states)
        >>> first, *others = (p.compose(spec.random(i)) for i, p in enumerate(match.permutations))
        >>> all(other == first for other in others)
        True
    """

    matcher: WarmMatcher = _linear
    _: KW_ONLY
    kernel: Kernel = "cosine"
    start: Literal["growing", "identity"] = "growing"
    seed: int = 0
    max_sweeps: int = 100
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            MatcherError: for a kernel or a start that there is not.
        """
        if self.kernel not in ("linear", "cosine"):
            raise MatcherError(f"there is no kernel {self.kernel!r}; choose 'linear' or 'cosine'")
        if self.start not in ("growing", "identity"):
            raise MatcherError(f"there is no start {self.start!r}; choose 'growing' or 'identity'")

    def match_many(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], /) -> ManyMatch:
        """Return a permutation for each model.

        Args:
            spec: which axes may be permuted.
            states: for each model its parameters by name.

        Returns:
            The permutations, with the history of the objective, which never falls.

        Raises:
            MatcherError: if there are fewer than two models, or the inner matcher returns no permutation.
            ArchitectureError: if the models' tensors differ in name, shape, dtype or device.
            WeightsError: if weights are NaN or infinite.
        """
        models = _Models(spec, states, self.kernel)
        everyone = list(range(len(states)))
        rng = np.random.default_rng(self.seed)
        history = [models.objective()]
        sweeps, converged, interrupted = 0, False, False
        bar = tqdm(total=self.max_sweeps * len(states), desc="merge many", disable=not self.progress, leave=False)
        try:
            if self.start == "growing":
                grown = models.copy()
                try:
                    self._grow(grown, rng.permutation(everyone).tolist())
                finally:
                    if grown.objective() > history[0]:
                        models, history = grown, [grown.objective()]
            while not converged and sweeps < self.max_sweeps:
                sweeps += 1
                converged = True
                for i in rng.permutation(everyone).tolist():
                    mean = models.mean([j for j in everyone if j != i])
                    found = self.matcher(spec, mean, models.now[i], seed=self.seed + sweeps, start=spec.identity())
                    gain = (len(states) - 1) * models.move(i, permutation_of(found, spec, self.matcher), mean)
                    if gain > 0:
                        converged = False
                        history.append(history[-1] + gain)
                    stop_if_interrupted(found)
                    bar.update()
                bar.set_postfix(objective=f"{history[-1]:.6g}")
        except KeyboardInterrupt:
            interrupted = True
        bar.close()
        return ManyMatch(tuple(models.permutations), tuple(history), sweeps, converged and not interrupted, interrupted)

    def _grow(self, models: _Models, order: list[int]) -> None:
        """Match each model with the mean of those before it."""
        for n, i in enumerate(order[1:], start=1):
            mean = models.mean(order[:n])
            found = self.matcher(models.spec, mean, models.now[i], seed=self.seed)
            models.move(i, permutation_of(found, models.spec, self.matcher), mean)
            stop_if_interrupted(found)


class _Models:
    """The models' parameters as they have been permuted so far, scaled for a kernel."""

    def __init__(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], kernel: Kernel) -> None:
        if len(states) < 2:
            raise MatcherError(f"matching needs 2 models or more, and got {len(states)}")
        for state in states[1:]:
            check_same_architecture(states[0], state)
        for i, state in enumerate(states):
            check_finite(state, f"model {i}")
        names = [name for name in spec.patterns if name in states[0]]
        self.spec = spec
        self.now = [{name: _scaled(state[name], kernel) for name in names} for state in states]
        self.permutations = [spec.identity() for _ in states]
        # Permutations are of all tensors, also of buffers, which are not there.
        tied = {name: other for name, other in spec.tied.items() if name in names}
        self._here = replace(
            spec,
            patterns={name: spec.patterns[name] for name in names},
            shapes={name: spec.shapes[name] for name in names},
            tied=tied,
        )
        self._count = [name for name in names if name not in tied]

    def copy(self) -> _Models:
        """Return models that can be moved while these stay."""
        copied = copy(self)
        copied.now, copied.permutations = list(self.now), list(self.permutations)
        return copied

    def mean(self, among: Sequence[int]) -> dict[str, Tensor]:
        """Return the mean of some models."""
        return {name: reduce(torch.add, [self.now[i][name] for i in among]) / len(among) for name in self.now[0]}

    def move(self, i: int, permutation: Permutation, mean: Mapping[str, Tensor]) -> float:
        """Permute a model, if that brings it closer to a mean.

        Returns:
            By how much the inner product with the mean rose.
        """
        moved = Permutation(self._here, permutation.indices).apply(self.now[i])
        before = self._inner(mean, self.now[i])
        gain = self._inner(mean, moved) - before
        if gain <= _ROUNDING * (self._inner(mean, mean) * self._inner(self.now[i], self.now[i])) ** 0.5:
            return 0.0
        self.now[i] = moved
        self.permutations[i] = permutation.compose(self.permutations[i])
        return gain

    def objective(self) -> float:
        """The sum of inner products over pairs."""
        mean = self.mean(range(len(self.now)))
        count = len(self.now)
        return (count**2 * self._inner(mean, mean) - sum(self._inner(state, state) for state in self.now)) / 2

    def _inner(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        return sum(float(torch.sum(a[name] * b[name], dtype=torch.float64)) for name in self._count)


def _scaled(tensor: Tensor, kernel: Kernel) -> Tensor:
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    norm = float(tensor.norm().double())
    if kernel == "linear" or norm == 0:
        return tensor
    scaled: Tensor = tensor * (share(tensor.shape) ** 0.5 / norm)
    return scaled

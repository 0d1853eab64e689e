"""Many models by pairs: each is matched to one reference, and fits the others as well as both fit the reference.

Pairwise permutations compose, but their errors do too: models that fit the reference need not fit each other.
:mod:`autoperm.matching.merge_many` fits each to all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import MatcherError
from ..spec import PermutationSpec
from .match import ManyMatch, Match, name_of, permutation_of, stop_if_interrupted
from .matcher import ManyMatcher, Matcher, ModelMatcher
from .weight import weight_matching


@dataclass(frozen=True)
class ToReference:
    """Match every model to one of them, which stays.

    Attributes:
        matcher: of pairs of models.
        reference: the number of the model that stays.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
        >>> states = [spec.random(seed).apply(net.state_dict()) for seed in range(3)]
        >>> match = ToReference(reference=1).match_many(spec, states)
        >>> match.permutations[0].compose(spec.random(0)) == spec.random(1)
        True
    """

    matcher: Matcher | ModelMatcher = weight_matching
    reference: int = 0

    def bind_many(self, models: Sequence[nn.Module], /) -> ManyMatcher:
        """Return the matcher for these models: one that runs models gets each with the reference."""
        self._check(len(models))
        if not isinstance(self.matcher, ModelMatcher):
            return self
        stays = models[self.reference]
        return _Pairs(tuple(self.matcher.bind(stays, model) for model in models), self.reference)

    def match_many(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], /) -> ManyMatch:
        """Return a permutation for each model, the identity for the reference.

        Args:
            spec: which axes may be permuted.
            states: for each model its parameters by name.

        Returns:
            The permutations. If the matcher says how it found them, the objective is the sum over all pairs, before
            and after. After an interruption the models that are left do not move.

        Raises:
            MatcherError: if there is no such model, or the matcher runs the models and was not bound to them.
        """
        self._check(len(states))
        if isinstance(self.matcher, ModelMatcher) and not callable(self.matcher):
            raise MatcherError(
                f"matcher {name_of(self.matcher)!r} runs the models; call bind_many(models) first, as align_many does"
            )
        return _Pairs((self.matcher,) * len(states), self.reference).match_many(spec, states)

    def _check(self, models: int) -> None:
        if not 0 <= self.reference < models:
            raise MatcherError(f"there is no model {self.reference} to match to; the {models} models count from 0")


@dataclass(frozen=True)
class _Pairs:
    matchers: tuple[Matcher, ...]
    reference: int

    def match_many(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], /) -> ManyMatch:
        permutations = [spec.identity() for _ in states]
        matches: list[Match] = []
        interrupted = False
        try:
            for i, matcher in enumerate(self.matchers):
                if i == self.reference:
                    continue
                found = matcher(spec, states[self.reference], states[i])
                permutations[i] = permutation_of(found, spec, matcher)
                if isinstance(found, Match):
                    matches.append(found)
                stop_if_interrupted(found)
        except KeyboardInterrupt:
            interrupted = True
        told = [match for match in matches if match.objective]
        return ManyMatch(
            tuple(permutations),
            (sum(m.objective[0] for m in told), sum(m.objective[-1] for m in told)) if told else (),
            max((match.sweeps for match in matches), default=1),
            not interrupted and all(match.converged for match in matches),
            interrupted,
        )

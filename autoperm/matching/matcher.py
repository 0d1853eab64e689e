"""What a matcher is: of two models' tensors, of two models, of many models' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from ..permutation import Permutation
from ..spec import PermutationSpec
from .match import ManyMatch, Match


class Matcher(Protocol):
    """Anything that finds a permutation of B's parameters that aligns them with A's."""

    def __call__(
        self, spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
    ) -> Permutation | Match:
        """Return the permutation, or a :class:`Match` that also says how it was found."""
        ...


class WarmMatcher(Protocol):
    """A matcher that can start from a permutation, such as :func:`autoperm.weight_matching`."""

    def __call__(
        self,
        spec: PermutationSpec,
        params_a: Mapping[str, Tensor],
        params_b: Mapping[str, Tensor],
        /,
        *,
        seed: int = 0,
        start: Permutation | Literal["boundary"] = "boundary",
    ) -> Permutation | Match:
        """Return the permutation, or a :class:`Match` that also says how it was found."""
        ...


@runtime_checkable
class ModelMatcher(Protocol):
    """A matcher that runs the models: tensors alone do not tell it enough."""

    def bind(self, model_a: nn.Module, model_b: nn.Module, /) -> Matcher:
        """Return the matcher for these two models."""
        ...


@runtime_checkable
class ManyMatcher(Protocol):
    """Anything that finds one permutation for each of several models, so that all fit each other."""

    def match_many(self, spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]], /) -> ManyMatch:
        """Return a permutation for each model.

        Args:
            spec: which axes may be permuted.
            states: for each model its parameters by name.
        """
        ...


@runtime_checkable
class ManyModelMatcher(Protocol):
    """A matcher of many models that runs them."""

    def bind_many(self, models: Sequence[nn.Module], /) -> ManyMatcher:
        """Return the matcher for these models."""
        ...

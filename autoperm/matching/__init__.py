"""Find the permutation of model B that brings it closest to model A."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from torch import Tensor

from ..errors import AutopermError
from ..permutation import Permutation
from ..spec import PermutationSpec
from .frank_wolfe import frank_wolfe
from .match import ManyMatch, Match
from .sinkhorn import Sinkhorn
from .universe import Universe
from .weight import weight_matching

__all__ = ["ManyMatch", "Match", "Matcher", "Sinkhorn", "Universe", "frank_wolfe", "get_matcher", "weight_matching"]


class Matcher(Protocol):
    """Anything that finds a permutation of B's parameters that aligns them with A's."""

    def __call__(
        self, spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
    ) -> Permutation | Match:
        """Return the permutation, or a :class:`Match` that also says how it was found."""
        ...


_MATCHERS: dict[str, Callable[..., Permutation | Match]] = {"weight": weight_matching}


def get_matcher(matcher: str | Matcher, *, progress: bool = False) -> Matcher:
    """Return a matcher for its name, with or without a progress bar; a callable is returned as it is.

    Raises:
        AutopermError: for a name that no matcher has; the message lists those there are.
    """
    if not isinstance(matcher, str):
        return matcher
    if matcher not in _MATCHERS:
        raise AutopermError(f"no matcher is called {matcher!r}; there are {', '.join(map(repr, _MATCHERS))}")
    return partial(_MATCHERS[matcher], progress=progress)

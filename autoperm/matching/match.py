"""What a matcher found, and how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..errors import MatcherError
from ..permutation import Permutation
from ..spec import PermutationSpec


@dataclass(frozen=True)
class Match:
    """The result of a matcher.

    Attributes:
        permutation: of model B.
        objective: the matcher's objective before the first step and after each one; it never falls.
        sweeps: how often every block was visited; for a matcher that takes steps, how many it took.
        converged: whether the last sweep changed nothing.
        alternating: names of blocks whose parts were solved in turns instead of at once, because two factors that
            vary over the block's root multiply each other in one parameter.
        interrupted: whether it was interrupted; the permutation is the best until then.
    """

    permutation: Permutation
    objective: tuple[float, ...]
    sweeps: int
    converged: bool
    alternating: tuple[str, ...] = ()
    interrupted: bool = False


@dataclass(frozen=True)
class ManyMatch:
    """The result of a matcher of many models.

    Attributes:
        permutations: one for each model.
        objective: the matcher's objective before the first step and after each one; it never falls.
        sweeps: how often every model was visited.
        converged: whether the last sweep changed nothing.
        interrupted: whether it was interrupted; the permutations are the best until then.
    """

    permutations: tuple[Permutation, ...]
    objective: tuple[float, ...]
    sweeps: int
    converged: bool
    interrupted: bool = False


def permutation_of(found: object, spec: PermutationSpec, matcher: object) -> Permutation:
    """Return the permutation that a matcher found, once it is sure to be one.

    Args:
        found: what the matcher returned.
        spec: the specification that it was given.
        matcher: the matcher or its name, for the message.

    Raises:
        MatcherError: if it is neither a permutation nor a match, or belongs to another specification.

    Example:
        >>> permutation_of([2, 0, 1], PermutationSpec({}, {}, {}), "mine")
        Traceback (most recent call last):
        autoperm.errors.MatcherError: matcher 'mine' returned a list, not a Permutation or a Match: [2, 0, 1]
    """
    permutation = found.permutation if isinstance(found, Match) else found
    if not isinstance(permutation, Permutation):
        inside = "a Match with " if isinstance(found, Match) else ""
        raise MatcherError(
            f"matcher {name_of(matcher)!r} returned {inside}a {type(permutation).__name__}, not a Permutation or a "
            f"Match: {repr(permutation)[:60]}"
        )
    if permutation.spec is not spec and permutation.spec != spec:
        raise MatcherError(
            f"matcher {name_of(matcher)!r} returned a permutation of another specification, with the factors "
            f"{_factors(permutation.spec)}; it was given one with {_factors(spec)}"
        )
    return permutation


def stop_if_interrupted(found: object) -> None:
    """Pass on an interruption that a matcher has answered with its best so far.

    Raises:
        KeyboardInterrupt: if the match says that it was interrupted.
    """
    if isinstance(found, Match) and found.interrupted:
        raise KeyboardInterrupt


def course(match: Match | ManyMatch) -> str:
    """Say how a matcher came to its result.

    Example:
        >>> print(course(Match(PermutationSpec({}, {}, {}).identity(), (1.0, 2.5), 3, True)))
        objective 1 -> 2.5, converged after 3 sweeps
    """
    state = "interrupted" if match.interrupted else "converged" if match.converged else "stopped"
    how = f"{state} after {match.sweeps} sweep{'s' * (match.sweeps != 1)}"
    return f"objective {match.objective[0]:.4g} -> {match.objective[-1]:.4g}, {how}" if match.objective else how


def name_of(matcher: object) -> str:
    """Return what a message calls a matcher.

    Example:
        >>> name_of("weight"), name_of(partial(print, end=""))
        ('weight', 'print')
    """
    if isinstance(matcher, str):
        return matcher
    if isinstance(matcher, partial):
        return name_of(matcher.func)
    return getattr(matcher, "__name__", type(matcher).__name__)


def _factors(spec: PermutationSpec) -> str:
    shown = [f"{factor.name}={factor.size}" for factor in spec.free[:6]]
    return ", ".join(shown) + (", ..." if len(spec.free) > 6 else "") if shown else "(none)"

"""What a matcher found, and how."""

from __future__ import annotations

from dataclasses import dataclass

from ..permutation import Permutation


@dataclass(frozen=True)
class Match:
    """The result of a matcher.

    Attributes:
        permutation: of model B.
        objective: the matcher's objective before the first step and after each one; it never falls.
        sweeps: how often every block was visited.
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

r"""Activation matching: one assignment for each block, from second moments of activations. Section 3.1 of Git Re-Basin.

.. math:: \max_\pi \sum_f \sum_i C^f_{i, \pi_f(i)}

over factors f, where :math:`C^f_{ij}` says how much unit i of A and unit j of B have in common on data. Unlike weight
matching the sum has no products of two permutations, so every block is solved exactly, and only once; except where a
factor varies over two that move separately: those blocks are solved in turns, each with the others as they stand.

Reference: Ainsworth, Hayase, Srinivasa, *Git Re-Basin*, ICLR 2023, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ..permutation import Permutation
from ..spec import PermutationSpec
from .assignment import Array
from .match import Match
from .nested import Nested

_ROUNDING = 1e-12
"""A step must raise the objective by this much of its scale: less is rounding."""


def match_moments(spec: PermutationSpec, moments: Mapping[str, Array]) -> Match:
    """Find the permutation of B whose units have most in common with A's.

    Args:
        spec: which units may be permuted.
        moments: for each factor that activations speak for, an array of what units of A and of B have in common. Its
            axes are the pinned factors that the factor varies over; A's positions along the free factors that it varies
            over and along the factor itself; then B's positions along those.

    Returns:
        The permutation. Factors that nothing speaks for do not move.

    Example:
        >>> from torch import nn
        >>> spec = PermutationSpec.from_patterns({"weight": "h _"}, nn.Linear(2, 3))
        >>> match_moments(spec, {"h": np.eye(3)[[1, 2, 0]]}).permutation["h"]
        tensor([1, 2, 0])
    """
    free = {factor.name for factor in spec.free}
    inside = {root.name: {f.name for f in spec.free if root.name in (f.name, *f.over)} for root in spec.groups}
    blocks = {root: frozenset(names) for root, names in inside.items() if names & moments.keys()}
    identity = spec.identity()
    indices = {name: identity[name].clone() for name in free}
    whole = Nested(spec, frozenset(free))
    history: list[float] = []
    pending, rounds = list(blocks), 0
    interrupted = False
    try:
        history.append(whole.value(moments, indices))
        while pending:
            rounds += 1
            moved = [root for root in pending if _improve(spec, blocks[root], moments, indices)]
            if moved:
                history.append(max(whole.value(moments, indices), history[-1]))
            shared = {root: {name for other in moved if other != root for name in blocks[other]} for root in blocks}
            pending = [root for root in blocks if blocks[root] & shared[root] & moments.keys()]
    except KeyboardInterrupt:
        interrupted = True
        history.append(whole.value(moments, indices))
    return Match(Permutation(spec, indices), tuple(history), rounds, not interrupted, interrupted=interrupted)


def _improve(
    spec: PermutationSpec, active: frozenset[str], moments: Mapping[str, Array], indices: dict[str, Tensor]
) -> bool:
    """Solve a block, and tell whether that made it better."""
    nested = Nested(spec, active)
    grams = {name: _held(nested, name, array, indices) for name, array in moments.items() if name in active}
    before = nested.value(grams, indices)
    best, found = nested.solve(grams, indices)
    if best - before <= _ROUNDING * sum(float(np.abs(gram).max(initial=0.0)) for gram in grams.values()):
        return False
    indices |= found
    return True


def _held(nested: Nested, name: str, array: Array, indices: Mapping[str, Tensor]) -> Array:
    """Read an array where the free factors that stand still take B's positions from."""
    factors = nested.spec.factors
    pinned = [outer for outer in factors[name].over if factors[outer].pinned]
    aligned, path = nested.aligned(name), nested.path(name)
    if aligned == pinned:
        return array
    free = [*(outer for outer in factors[name].over if outer not in pinned), name]
    sizes = [factors[other].size for other in (*aligned, *path, *path)]
    grids = np.meshgrid(*map(np.arange, sizes), indexing="ij", sparse=True)
    a_side = dict(zip([*aligned, *path], grids, strict=False))
    b_side = dict(zip(path, grids[len(aligned) + len(path) :], strict=True))
    for outer in aligned:
        if outer in free:
            b_side[outer] = indices[outer].numpy()[(*(a_side[o] for o in factors[outer].over), a_side[outer])]
    where = [*(a_side[n] for n in pinned), *(a_side[n] for n in free), *(b_side[n] for n in free)]
    held: Array = array[tuple(where)]
    return held

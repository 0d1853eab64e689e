"""How alike two models' groups are, before and after matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..permutation import Permutation
from ..spec import Factor, PermutationSpec
from .problem import Problem, is_matrix


@dataclass(frozen=True)
class GroupSimilarity:
    """What matching did to one group of units.

    Attributes:
        factor: the group, or the factor inside it.
        moved: the share of its units that are in another place now.
        before: the mean cosine similarity of A's and B's parameters that carry it (those with one number for each unit
            aside, if there are others), from -1 to 1.
        after: the same for B permuted.
    """

    factor: Factor
    moved: float
    before: float
    after: float


def similarities(
    spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], permutation: Permutation
) -> tuple[GroupSimilarity, ...]:
    """Compare A with B before and after a permutation, factor by factor.

    Args:
        spec: the specification.
        params_a: tensors of model A by name.
        params_b: tensors of model B, of the same names and shapes.
        permutation: of B.

    Returns:
        An entry for each free factor that these tensors carry.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(2, 3, bias=False)
        >>> spec = PermutationSpec.from_patterns({"weight": "h _"}, net)
        >>> planted = spec.random(1)
        >>> found = similarities(spec, net.state_dict(), planted.apply(net.state_dict()), planted.inverse())
        >>> round(found[0].after, 4)
        1.0
    """
    problem = Problem(spec, params_a, params_b)
    before = _cosines(problem)
    problem.reset(permutation)
    after = _cosines(problem)
    found = []
    for factor in spec.free:
        carriers = list(dict.fromkeys(name for name, _ in spec.carriers[factor.name] if name in before))
        named = [name for name in carriers if is_matrix(spec.shapes[name])] or carriers
        if named:
            index = permutation[factor.name]
            moved = float((index != torch.arange(factor.size)).double().mean())
            means = [sum(cosines[name] for name in named) / len(named) for cosines in (before, after)]
            found.append(GroupSimilarity(factor, moved, *means))
    return tuple(found)


def _cosines(problem: Problem) -> dict[str, float]:
    return {name: problem.inner(name) / norm if norm else 0.0 for name, norm in problem.norms.items()}

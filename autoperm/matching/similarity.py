"""How alike two models' groups are, before and after matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SpecError
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
        named = _compared(problem, factor.name)
        if named:
            index = permutation[factor.name]
            moved = float((index != torch.arange(factor.size)).double().mean())
            means = [sum(cosines[name] for name in named) / len(named) for cosines in (before, after)]
            found.append(GroupSimilarity(factor, moved, *means))
    return tuple(found)


def unit_similarity(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    factor: str,
    *,
    permutation: Permutation | None = None,
) -> Tensor:
    """Return the cosine similarity of each unit of A with each unit of B.

    What a unit is compared by are its weights in every tensor that carries it, each tensor divided by its norm; those
    with one number for each unit are left aside, if there are others. The units on the other axes of these tensors are
    in the order in which the models have them: until B is permuted, the units of two hidden layers do not look alike
    even where they are.

    Args:
        spec: the specification.
        params_a: tensors of model A by name.
        params_b: tensors of model B, of the same names and shapes.
        factor: which units. Where they vary over others, as channels do over heads, the units of all of these follow
            each other.
        permutation: of B, before it is compared; by default B is compared as it is.

    Returns:
        A matrix with a row for each unit of A and a column for each unit of B. A unit without weights is like no other.

    Raises:
        SpecError: if the factor is unknown or pinned, or none of these tensors carries it.

    Example:
        >>> a, b = {"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}, {"w": torch.tensor([[0.0, 3.0], [4.0, 0.0]])}
        >>> spec = PermutationSpec.from_patterns({"w": "h _"}, a)
        >>> unit_similarity(spec, a, b, "h").round(decimals=4)
        tensor([[0., 1.],
                [1., 0.]])
    """
    if factor not in {free.name for free in spec.free}:
        names = ", ".join(free.name for free in spec.free)
        raise SpecError(f"there are no units {factor!r} that may be permuted; choose from {names or 'none'}")
    problem = Problem(spec, params_a, params_b)
    if permutation is not None:
        problem.reset(permutation)
    compared = _compared(problem, factor)
    if not compared:
        raise SpecError(f"none of the given tensors carries {factor!r}; they are {', '.join(list(params_a)[:5])}")
    rows_a, rows_b = [], []
    for cell in problem.carrying([factor]):
        if cell.tensor in compared:
            norms = [float(tensors[cell.tensor].norm()) or 1.0 for tensors in (problem.a, problem.b)]
            a, b = (view / norm for view, norm in zip(problem.views(cell), norms, strict=True))
            for place in (dim for dim, name in enumerate(cell.names) if name == factor):
                dims = [*(cell.dim(outer, place) for outer in spec.factors[factor].over), place]
                rows_a.append(_rows(a, dims))
                rows_b.append(_rows(b, dims))
    return normalize(torch.cat(rows_a, 1)) @ normalize(torch.cat(rows_b, 1)).T


def _rows(view: Tensor, dims: Sequence[int]) -> Tensor:
    """Make rows of some dimensions, and columns of the others."""
    return view.movedim(tuple(dims), tuple(range(len(dims)))).flatten(0, len(dims) - 1).unsqueeze(-1).flatten(1)


def _compared(problem: Problem, factor: str) -> list[str]:
    """The tensors by which units are compared."""
    carriers = dict.fromkeys(name for name, _ in problem.spec.carriers[factor] if name in problem.norms)
    return [name for name in carriers if is_matrix(problem.spec.shapes[name])] or list(carriers)


def _cosines(problem: Problem) -> dict[str, float]:
    return {name: problem.inner(name) / norm if norm else 0.0 for name, norm in problem.norms.items()}

"""Try every permutation: what the best one is, for groups that are small enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import permutations, product
from math import factorial, prod

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import MatcherError
from ..permutation import Permutation
from ..spec import PermutationSpec
from .match import Match
from .problem import Kernel, Problem


def exhaustive_matching(
    spec: PermutationSpec,
    params_a: Mapping[str, Tensor],
    params_b: Mapping[str, Tensor],
    /,
    *,
    objective: Callable[[Permutation], float] | None = None,
    kernel: Kernel = "linear",
    limit: int = 100_000,
    progress: bool = False,
) -> Match:
    """Return the best of all permutations.

    Args:
        spec: which axes may be permuted.
        params_a: tensors of model A by name.
        params_b: tensors of model B, of the same names and shapes.
        objective: what is best: a function of the permutation that is largest there. By default the inner product of
            A's weights with B's, as in weight matching.
        kernel: of the inner product: ``"linear"`` or ``"cosine"``.
        limit: refuse groups with more permutations.
        progress: show a progress bar.

    Returns:
        The first permutation of the largest objective, with the objective of the identity and of every permutation
        that was better than those before.

    Raises:
        MatcherError: if there are more permutations than the limit.
        SpecError: if names or shapes do not fit.
        WeightsError: if weights are NaN or infinite.

    Example:
        >>> from torch import nn
        >>> spec = PermutationSpec.from_patterns({"weight": "h _"}, nn.Linear(1, 3, bias=False))
        >>> a, b = {"weight": torch.tensor([[1.0], [2.0], [3.0]])}, {"weight": torch.tensor([[2.0], [3.0], [1.0]])}
        >>> exhaustive_matching(spec, a, b).permutation["h"]
        tensor([2, 0, 1])
    """
    count = prod(factorial(factor.size) ** spec.copies(factor) for factor in spec.free)
    if count > limit:
        size = str(count) if spec.log10_order < 18 else f"10^{spec.log10_order:.1f}"
        raise MatcherError(f"there are {size} permutations, more than the limit of {limit}; take another matcher")
    problem = Problem(spec, params_a, params_b, kernel)

    def inner_product(permutation: Permutation) -> float:
        problem.reset(permutation)
        return problem.objective()

    value_of = objective or inner_product
    best = spec.identity()
    history: list[float] = []
    interrupted = False
    try:
        for permutation in tqdm(elements(spec), total=count, desc="exhaustive", disable=not progress, leave=False):
            value = value_of(permutation)
            if not history or value > history[-1]:
                best = permutation
                history.append(value)
    except KeyboardInterrupt:
        interrupted = True
    return Match(best, tuple(history), 1, not interrupted, interrupted=interrupted)


def elements(spec: PermutationSpec) -> Iterator[Permutation]:
    """Yield every element of a group, the identity first: for small ones.

    Example:
        >>> from torch import nn
        >>> spec = PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, nn.Linear(2, 3))
        >>> sum(1 for _ in elements(spec))
        6
    """
    rows = [
        [torch.tensor(row) for row in permutations(range(factor.size))]
        for factor in spec.free
        for _ in range(spec.copies(factor))
    ]
    for chosen in product(*rows):
        left, indices = list(chosen), {}
        for factor in spec.free:
            count = spec.copies(factor)
            shape = (*(spec.factors[outer].size for outer in factor.over), factor.size)
            indices[factor.name], left = torch.stack(left[:count]).reshape(shape), left[count:]
        yield Permutation(spec, indices)

"""Whatever the discrete matcher: its objective never falls, is what it says it is, and is the same again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import random_state, specs
from test_weight_matching import inner_product

from autoperm import (
    ManyMatch,
    Match,
    MergeMany,
    PermutationSpec,
    SimulatedAnnealing,
    exhaustive_matching,
    frank_wolfe,
    graduated_assignment,
    weight_matching,
)
from autoperm.matching import Universe

LIMIT = 300
"""So many permutations are tried one by one."""

Options = dict[str, Any]


def annealed(spec: PermutationSpec, *states: Any, kernel: str, seed: int) -> Match:
    return SimulatedAnnealing(steps=20, seed=seed)(spec, *states)


def exhausted(spec: PermutationSpec, *states: Any, kernel: str, seed: int) -> Match:
    assume(10**spec.log10_order <= LIMIT)
    return exhaustive_matching(spec, *states, kernel=kernel, limit=LIMIT)


PAIRS: dict[str, Callable[..., Match]] = {
    "weight": weight_matching,
    "graduated": lambda *given, **options: graduated_assignment(*given, sweeps=5, reheats=1, **options),
    "frank-wolfe": lambda *given, **options: frank_wolfe(*given, max_steps=5, **options),
    "exhaustive": exhausted,
    "annealing": annealed,
}
MANY: dict[str, Callable[..., ManyMatch]] = {
    "merge-many": lambda spec, *states, **options: MergeMany(**options).match_many(spec, states),
    "universe": lambda spec, *states, **options: Universe(max_steps=5, **options).match_many(spec, states),
}


@pytest.mark.parametrize("name", [*PAIRS, *MANY])
@settings(max_examples=25)
@given(spec=specs(), seed=st.integers(0, 3), kernel=st.sampled_from(["linear", "cosine"]))
def test_the_objective_never_falls_and_is_what_it_says(
    name: str, spec: PermutationSpec, seed: int, kernel: str
) -> None:
    if name == "annealing":
        kernel = "linear"
    states: Sequence[Any] = [random_state(spec, 3 * seed + i) for i in range(3 if name in MANY else 2)]
    matcher: Callable[..., Any] = (PAIRS | MANY)[name]
    found = matcher(spec, *states, kernel=kernel, seed=seed)
    assert all(later >= earlier for earlier, later in itertools.pairwise(found.objective))
    permutations = found.permutations if name in MANY else (spec.identity(), found.permutation)
    moved = [permutation.apply(state) for permutation, state in zip(permutations, states, strict=True)]
    value = sum(inner_product(spec, a, b, kernel) for a, b in itertools.combinations(moved, 2))
    assert found.objective[-1] == pytest.approx(value, abs=1e-8)
    before = sum(inner_product(spec, a, b, kernel) for a, b in itertools.combinations(states, 2))
    assert value >= before - 1e-8
    assert matcher(spec, *states, kernel=kernel, seed=seed) == found

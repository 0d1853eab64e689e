"""Many models through a universe: cycle-consistent, and as good as pairs where there is only one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import Traced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_state, specs
from test_weight_matching import inner_product
from torch import Tensor

from autoperm import PermutationSpec, weight_matching
from autoperm.errors import AutopermError, SpecError, WeightsError
from autoperm.matching import ManyMatch, Universe, frank_wolfe
from autoperm.matching.frank_wolfe import Relaxation

Trace = Callable[[str], Traced]


def agreement(
    spec: PermutationSpec, states: list[dict[str, Tensor]], match: ManyMatch, kernel: str = "cosine"
) -> float:
    """The objective, written out: the inner product of each pair of models, in the universe's order."""
    moved = [permutation.apply(state) for permutation, state in zip(match.permutations, states, strict=True)]
    return sum(inner_product(spec, a, b, kernel) for a, b in itertools.combinations(moved, 2))


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "grouped_conv", "attention_grouped_sdpa"])
def test_copies_of_one_model_are_all_aligned_exactly(name: str, traced: Trace) -> None:
    net = traced(name)
    planted = [net.spec.random(seed) for seed in range(3)]
    match = Universe().match_many(net.spec, [p.apply(net.model.state_dict()) for p in planted])
    assert match.converged
    assert match.permutations[0].is_identity
    for permutation, moved in zip(match.permutations, planted, strict=True):
        assert permutation.compose(moved) == planted[0]


@settings(max_examples=15)
@given(specs(), st.integers(0, 3), st.sampled_from(["linear", "cosine"]), st.sampled_from(["uniform", "boundary"]))
def test_the_objective_never_falls_and_is_the_sum_over_pairs(
    spec: PermutationSpec, seed: int, kernel: str, start: str
) -> None:
    states = [random_state(spec, 3 * seed + i) for i in range(3)]
    match = Universe(kernel=kernel, seed=seed, start=start).match_many(spec, states)
    assert all(later >= earlier for earlier, later in itertools.pairwise(match.objective))
    assert match.objective[-1] == pytest.approx(agreement(spec, states, match, kernel), abs=1e-8)
    assert match.permutations[0].is_identity
    # Round a cycle nothing changes: what takes j to i is the inverse of P_i after P_j.
    to = {
        (i, j): match.permutations[i].inverse().compose(match.permutations[j])
        for i, j in itertools.permutations(range(3), 2)
    }
    assert to[0, 1].compose(to[1, 2]).compose(to[2, 0]) == spec.identity()


@settings(max_examples=15)
@given(specs(), st.integers(0, 3))
def test_two_models_are_a_pair(spec: PermutationSpec, seed: int) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    pair = frank_wolfe(spec, a, b, kernel="linear", seed=seed)
    match = Universe(kernel="linear", seed=seed).match_many(spec, [a, b])
    assert match.objective[-1] == pytest.approx(pair.objective[-1], abs=1e-8)


def test_models_that_agree_with_each_other_are_matched_better_than_to_a_reference(traced: Trace) -> None:
    """Model 0 has nothing in common with the others, which are copies with noise."""
    spec = traced("mlp").spec
    first, base = random_state(spec, 0), random_state(spec, 1)
    copies = [{n: t + 0.1 * random_state(spec, seed)[n] for n, t in base.items()} for seed in (2, 3)]
    states = [first, *(spec.random(seed).apply(copy) for seed, copy in enumerate(copies))]
    match = Universe().match_many(spec, states)
    pairwise = [weight_matching(spec, first, state).permutation for state in states[1:]]
    reference = ManyMatch((spec.identity(), *pairwise), (), 0, converged=True)
    assert agreement(spec, states, match) > agreement(spec, states, reference)
    moved = [p.apply(state) for p, state in zip(match.permutations, states, strict=True)]
    for name in spec.patterns:
        assert float((moved[1][name] - moved[2][name]).norm()) < 0.3 * float(moved[1][name].norm())


def test_a_seed_gives_the_same_result_again(traced: Trace) -> None:
    spec = traced("mlp").spec
    states = [random_state(spec, seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    first, again = (Universe(seed=3).match_many(spec, states) for _ in range(2))
    assert first == again
    torch.testing.assert_close(states, before, rtol=0, atol=0)


def test_an_interruption_gives_the_best_so_far(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = traced("mlp").spec
    states = [random_state(spec, seed) for seed in range(3)]
    step, calls = Relaxation.step, itertools.count()

    def interrupted(self: Relaxation, softs: object) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(self, softs)

    monkeypatch.setattr(Relaxation, "step", interrupted)
    match = Universe().match_many(spec, states)
    assert match.interrupted
    assert not match.converged
    assert match.objective[-1] == pytest.approx(agreement(spec, states, match), abs=1e-8)


def test_faults_are_named(traced: Trace) -> None:
    spec = traced("mlp").spec
    states = [random_state(spec, seed) for seed in range(3)]
    with pytest.raises(AutopermError, match="there are 1 models; matching needs at least 2"):
        Universe().match_many(spec, states[:1])
    with pytest.raises(AutopermError, match="no kernel 'cosin'; choose 'linear' or 'cosine'"):
        Universe(kernel="cosin").match_many(spec, states)
    with pytest.raises(AutopermError, match="no start 'middle'; choose 'uniform', 'boundary' or a permutation"):
        Universe(start="middle").match_many(spec, states)
    with pytest.raises(SpecError, match=r"2\.bias is \[10\] in the specification and \[11\] in model 2"):
        Universe().match_many(spec, [*states[:2], {**states[2], "2.bias": torch.zeros(11)}])
    states[2]["2.weight"][1, 2] = float("nan")
    with pytest.raises(WeightsError, match="model 2 has NaN"):
        Universe().match_many(spec, states)

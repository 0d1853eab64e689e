"""More than two models: MergeMany, matching to a reference, and their front door."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, floats, randomize
from strategies import random_state, specs
from test_weight_matching import by_hand
from torch import Tensor, nn

from autoperm import (
    ManyMatch,
    Match,
    MergeMany,
    Permutation,
    PermutationSpec,
    SimulatedAnnealing,
    StraightThrough,
    ToReference,
    align,
    align_many,
    weight_matching,
)
from autoperm.errors import ArchitectureError, EquivalenceError, MatcherError, WeightsError

State = Mapping[str, Tensor]
LAYERS = by_hand({"v": ("p _", (7, 3)), "b": ("p", (7,)), "w": ("q p", (6, 7)), "u": ("_ q", (2, 6))}, {})


def mlp(width: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 10), nn.ReLU(), nn.Linear(10, 4))


SPEC = PermutationSpec.from_patterns(
    {"0.weight": "p _", "0.bias": "p", "2.weight": "q p", "2.bias": "q", "4.weight": "_ q"}, mlp()
)


def several(count: int = 4, build: Callable[[], nn.Module] = mlp) -> list[nn.Module]:
    return [randomize(build().double().eval(), seed) for seed in range(count)]


def states_of(spec: PermutationSpec, count: int, seed: int = 0) -> list[State]:
    return [random_state(spec, 100 * seed + i) for i in range(count)]


def kernel_value(spec: PermutationSpec, states: list[State], kernel: str) -> float:
    """The objective, written out: the sum over pairs of models and tensors."""
    total = 0.0
    for a, b in itertools.combinations(states, 2):
        for name in spec.patterns:
            if name not in spec.tied:
                weight = 1.0
                if kernel == "cosine":
                    norms = float(a[name].norm() * b[name].norm())
                    weight = (1.0 if a[name].squeeze().ndim > 1 else 1e-3) / norms if norms else 0.0
                total += weight * float((a[name] * b[name]).sum())
    return total


def moved(match: ManyMatch, states: list[State]) -> list[State]:
    return [permutation.apply(state) for permutation, state in zip(match.permutations, states, strict=True)]


# --- MergeMany ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual_cnn", "lstm", "tied_embedding"])
def test_copies_are_led_back_to_one_order(name: str, traced: Callable[[str], Traced]) -> None:
    network = NETWORKS[name]
    model = network.build()
    spec = traced(name).spec
    planted = [spec.random(seed) for seed in range(3)]
    models = [p.apply(model) for p in planted]
    aligned = align_many(models, example_inputs=network.inputs(), spec=spec, matcher=MergeMany())
    assert aligned.match.converged
    first, *others = (found.compose(p) for found, p in zip(aligned.permutations, planted, strict=True))
    assert all(other == first for other in others)
    for other in aligned.models[1:]:
        torch.testing.assert_close(dict(other.state_dict()), dict(aligned.models[0].state_dict()), rtol=0, atol=0)


@given(specs(), st.integers(2, 4), st.integers(0, 3))
def test_the_objective_never_falls_and_is_the_sum_over_pairs(spec: PermutationSpec, count: int, seed: int) -> None:
    states = states_of(spec, count, seed)
    for kernel, start in (("linear", "identity"), ("cosine", "growing")):
        match = MergeMany(kernel=kernel, start=start, seed=seed).match_many(spec, states)
        assert all(later > earlier for earlier, later in itertools.pairwise(match.objective))
        before, after = (kernel_value(spec, s, kernel) for s in (states, moved(match, states)))
        assert match.objective[-1] == pytest.approx(after, abs=1e-8)
        if start == "identity":
            assert match.objective[0] == pytest.approx(before, abs=1e-8)
        else:
            assert match.objective[0] >= before - 1e-8
        assert match.converged


@given(specs(), st.integers(0, 3))
def test_where_it_stops_no_model_moves(spec: PermutationSpec, seed: int) -> None:
    """Algorithm 3's criterion: weight matching with the mean of the others finds nothing better."""
    states = states_of(spec, 3, seed)
    match = MergeMany(kernel="linear", seed=seed).match_many(spec, states)
    aligned = moved(match, states)
    again = MergeMany(kernel="linear", start="identity", seed=seed + 1).match_many(spec, aligned)
    assert all(permutation.is_identity for permutation in again.permutations)
    assert again.sweeps == 1
    assert len(again.objective) == 1
    for i, state in enumerate(aligned):
        others = [other for j, other in enumerate(aligned) if j != i]
        mean = {name: sum(other[name] for other in others) / len(others) for name in state}
        found = weight_matching(spec, mean, state, kernel="linear", start=spec.identity())
        assert found.objective[-1] == pytest.approx(found.objective[0], abs=1e-8)


def test_two_models_are_matched_as_weight_matching_does() -> None:
    states = states_of(LAYERS, 2)
    for kernel in ("linear", "cosine"):
        many = MergeMany(kernel=kernel).match_many(LAYERS, states)
        two = weight_matching(LAYERS, *states, kernel=kernel)
        assert many.objective[-1] == pytest.approx(two.objective[-1], rel=0.05)
        assert many.objective[-1] == pytest.approx(kernel_value(LAYERS, moved(many, states), kernel))


def test_a_seed_gives_the_same_result_again() -> None:
    states = states_of(LAYERS, 5)
    first, again, *others = (MergeMany(seed=seed).match_many(LAYERS, states) for seed in (0, 0, 1, 2, 3))
    assert first == again
    assert any(other.objective != first.objective for other in others)


def test_sweeps_are_limited() -> None:
    states = states_of(LAYERS, 4)
    match = MergeMany(start="identity", max_sweeps=1).match_many(LAYERS, states)
    assert match.sweeps == 1
    assert not match.converged
    none = MergeMany(start="identity", max_sweeps=0).match_many(LAYERS, states)
    assert all(permutation.is_identity for permutation in none.permutations)


def test_the_states_are_not_changed() -> None:
    states = states_of(LAYERS, 3)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    for matcher in (MergeMany(kernel="linear"), MergeMany(kernel="cosine"), ToReference()):
        matcher.match_many(LAYERS, states)
    torch.testing.assert_close(states, before, rtol=0, atol=0)


def test_a_step_that_makes_it_worse_is_not_taken() -> None:
    """Also where an inner matcher of one's own returns nonsense."""

    def shuffle(
        spec: PermutationSpec, a: State, b: State, /, *, seed: int = 0, start: object = "boundary"
    ) -> Permutation:
        return spec.random(seed)

    states = states_of(LAYERS, 3)
    match = MergeMany(shuffle, max_sweeps=5).match_many(LAYERS, states)
    assert all(later > earlier for earlier, later in itertools.pairwise(match.objective))
    assert match.objective[-1] == pytest.approx(kernel_value(LAYERS, moved(match, states), "cosine"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in random_state(LAYERS).items()}
    planted = [LAYERS.random(seed) for seed in range(3)]
    match = MergeMany().match_many(LAYERS, [p.apply(state) for p in planted])
    first, *others = (found.compose(p) for found, p in zip(match.permutations, planted, strict=True))
    assert all(other == first for other in others)


@pytest.mark.parametrize("calls", [0, 2, 3, 5])
@pytest.mark.parametrize("answers", [True, False])
def test_an_interruption_returns_the_best_so_far(calls: int, answers: bool) -> None:
    """Whether the inner matcher answers it with its best, as weight matching does, or lets it through."""
    left = calls

    def matcher(spec: PermutationSpec, a: State, b: State, /, **options: Any) -> Match:
        nonlocal left
        found = weight_matching(spec, a, b, kernel="linear", **options)
        left -= 1
        if left >= 0:
            return found
        if answers:
            return Match(found.permutation, found.objective, 1, False, interrupted=True)
        raise KeyboardInterrupt

    states = states_of(LAYERS, 4)
    match = MergeMany(matcher).match_many(LAYERS, states)
    assert match.interrupted
    assert not match.converged
    assert left == -1, "nothing is matched after the interruption"
    assert match.objective[-1] == pytest.approx(kernel_value(LAYERS, moved(match, states), "cosine"))
    if calls:
        assert not all(permutation.is_identity for permutation in match.permutations)


def test_faults_of_merge_many() -> None:
    states = states_of(LAYERS, 3)
    with pytest.raises(MatcherError, match="no kernel 'cosin'"):
        MergeMany(kernel="cosin")
    with pytest.raises(MatcherError, match="no start 'boundary'; choose 'growing' or 'identity'"):
        MergeMany(start="boundary")
    with pytest.raises(MatcherError, match="needs 2 models or more, and got 1"):
        MergeMany().match_many(LAYERS, states[:1])
    with pytest.raises(WeightsError, match="model 2 has NaN"):
        MergeMany().match_many(LAYERS, [*states[:2], {**states[2], "w": torch.full((6, 7), torch.nan).double()}])
    with pytest.raises(ArchitectureError, match="w: shape"):
        MergeMany().match_many(LAYERS, [*states, {**states[0], "w": torch.zeros(6, 8)}])

    def nothing(*args: Any, **options: Any) -> Any:
        return None

    with pytest.raises(MatcherError, match="matcher 'nothing' returned a NoneType"):
        MergeMany(nothing).match_many(LAYERS, states)


# --- to a reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [0, 2])
def test_each_model_is_matched_to_the_reference(reference: int) -> None:
    states = states_of(LAYERS, 3)
    match = ToReference(reference=reference).match_many(LAYERS, states)
    assert match.permutations[reference].is_identity
    pairs = [weight_matching(LAYERS, states[reference], s) for i, s in enumerate(states) if i != reference]
    found = [p for i, p in enumerate(match.permutations) if i != reference]
    assert found == [pair.permutation for pair in pairs]
    assert match.objective == pytest.approx([sum(p.objective[end] for p in pairs) for end in (0, -1)])
    assert match.converged


def test_a_reference_that_there_is_not() -> None:
    states = states_of(LAYERS, 3)
    for reference in (3, -1):
        with pytest.raises(MatcherError, match=f"there is no model {reference} to match to; the 3 models count from 0"):
            ToReference(reference=reference).match_many(LAYERS, states)


def test_an_interruption_leaves_the_models_that_are_left() -> None:
    states = states_of(LAYERS, 4)
    calls = 0

    def matcher(spec: PermutationSpec, a: State, b: State, /) -> Match:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return weight_matching(spec, a, b)

    match = ToReference(matcher).match_many(LAYERS, states)
    assert match.interrupted
    assert not match.converged
    assert [permutation.is_identity for permutation in match.permutations] == [True, False, False, True]


def test_a_matcher_that_runs_models_gets_each_with_the_reference() -> None:
    models = several(3)
    x = floats(32, 6)()[0]
    with torch.no_grad():
        data = [(x, models[1](x))]
    matcher = StraightThrough(data, F.mse_loss, steps=5)
    aligned = align_many(models, matcher=ToReference(matcher, reference=1), spec=SPEC)
    for i in (0, 2):
        pair = align(models[1], models[i], spec=aligned.spec, matcher=matcher)
        assert pair.permutation == aligned.permutations[i]
    assert aligned.permutations[1].is_identity
    with pytest.raises(MatcherError, match="'StraightThrough' runs the models"):
        ToReference(matcher).match_many(LAYERS, states_of(LAYERS, 3))


# --- the front door -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matcher", ["merge-many", "reference", "weight", "greedy", lambda spec, *_: spec.random(0)])
def test_every_model_computes_what_it_did(matcher: Any) -> None:
    models = several()
    aligned = align_many(models, matcher=matcher)
    assert len(aligned.models) == len(aligned.permutations) == 4
    assert aligned.errors is not None
    assert max(aligned.errors) < 1e-12
    x = floats(9, 6)()[0]
    for model, given_, permutation in zip(aligned.models, models, aligned.permutations, strict=True):
        torch.testing.assert_close(model(x), given_(x))
        assert permutation.spec is aligned.spec
        torch.testing.assert_close(
            dict(model.state_dict()), dict(permutation.apply(given_).state_dict()), rtol=0, atol=0
        )
    assert sum(not permutation.is_identity for permutation in aligned.permutations) >= 3


def test_merge_many_brings_models_closer_than_pairs_do() -> None:
    """To each other: pairs are closest to the reference."""
    models = several(5)
    values = []
    for matcher in ("identity", "reference", "merge-many"):
        states = [model.state_dict() for model in align_many(models, matcher=matcher, spec=SPEC, check=False).models]
        values.append(kernel_value(SPEC, states, "cosine"))
    assert values[0] < values[1] < values[2]


def test_names_with_data() -> None:
    models = several(3)
    x = floats(32, 6)()[0]
    data = [(x, torch.zeros(32, 4, dtype=torch.float64))]
    aligned = align_many(models, matcher=SimulatedAnnealing(data, F.mse_loss, steps=5), spec=SPEC, check=False)
    assert aligned.match.sweeps == 5
    aligned = align_many(models[:2], matcher="straight-through", data=data, loss=F.mse_loss, spec=SPEC, check=False)
    assert aligned.match.sweeps == 500
    assert aligned.permutations[0].is_identity
    with pytest.raises(MatcherError, match=r"'straight-through' needs .*; loss is missing"):
        align_many(models, matcher="straight-through", data=data)
    with pytest.raises(MatcherError, match="matcher 'merge-many' needs no data"):
        align_many(models, data=data)
    with pytest.raises(MatcherError, match="data is for a matcher that is named"):
        align_many(models, matcher=MergeMany(), data=data)


def test_no_model_is_changed() -> None:
    models = several()
    before = [copy.deepcopy(model.state_dict()) for model in models]
    aligned = align_many(models, spec=SPEC)
    for model, state in zip(models, before, strict=True):
        torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    own = {p.data_ptr() for model in models for p in model.parameters()}
    assert not own & {p.data_ptr() for model in aligned.models for p in model.parameters()}


def test_the_report() -> None:
    aligned = align_many(several(), matcher=partial(weight_matching, seed=1), spec=SPEC)
    text = str(aligned)
    assert "Alignment of 4 models, Sequential" in text
    assert f"found:   2 groups, 10^{aligned.spec.log10_order:.1f} permutations" in text
    assert "matched: objective" in text
    assert "converged after" in text
    assert "checked: each model computes what it did, to" in text
    assert text.splitlines()[-4].split() == ["0", "0%"]
    assert "not checked" in str(align_many(several(), spec=SPEC, check=False))
    assert "converged after 1 sweep\n" in str(align_many(several(), matcher="identity", spec=SPEC))
    assert "13 more" in str(align_many(several(1) * 40, matcher="identity", spec=SPEC, check=False))


@pytest.mark.parametrize("models", [[], several(1), several(1)[0]])
def test_fewer_than_two_models(models: Any) -> None:
    with pytest.raises(ArchitectureError, match=r"list of 2 models or more is needed, and got (0|1|a Sequential)$"):
        align_many(models)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: mlp(13).double(), r"model 2[\s\S]*0\.weight: shape \(12, 6\) in A, \(13, 6\) in B"),
        (lambda: mlp().float(), r"model 2[\s\S]*0\.weight: torch\.float64 in A, torch\.float32 in B"),
        (lambda: mlp().double().to("meta"), r"model 2[\s\S]*0\.weight: on cpu in A, on meta in B"),
    ],
)
def test_the_model_that_does_not_fit_is_named(other: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        align_many([*several(2), other()])


def test_the_model_with_weights_that_are_not_finite_is_named() -> None:
    models = several(3)
    with torch.no_grad():
        models[1][2].weight[3, 4] = torch.nan
    with pytest.raises(WeightsError, match=r"model 1 has NaN or infinite values[\s\S]*2\.weight: 1 of 120"):
        align_many(models)


def test_a_wrong_specification_never_comes_through() -> None:
    models = several(3)
    spec = PermutationSpec.from_patterns({"0.weight": "p _", "0.bias": "_", "2.weight": "_ p"}, models[0])
    with pytest.raises(EquivalenceError, match=r"what model [012] computes"):
        align_many(models, spec=spec)


def test_many_matchers_that_return_something_else_are_named() -> None:
    class Mine:
        def __init__(self, result: Any) -> None:
            self.result = result

        def match_many(self, spec: PermutationSpec, states: Any, /) -> Any:
            return self.result

    models = several(3)
    identity = SPEC.identity()
    with pytest.raises(MatcherError, match="'Mine' returned a list for 3 models, not a ManyMatch"):
        align_many(models, matcher=Mine([identity] * 3), spec=SPEC)
    with pytest.raises(MatcherError, match="'Mine' returned 2 permutations for 3 models"):
        align_many(models, matcher=Mine(ManyMatch((identity,) * 2, (), 1, True)), spec=SPEC)
    with pytest.raises(MatcherError, match="'Mine' returned a permutation of another specification"):
        align_many(models, matcher=Mine(ManyMatch((LAYERS.identity(),) * 3, (), 1, True)), spec=SPEC)
    assert align_many(models, matcher=Mine(ManyMatch((identity,) * 3, (), 1, True)), spec=SPEC).match.converged


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(MatcherError, match="no matcher is called 'mergemany'; there are 'merge-many', 'uni"):
        align_many(several(2), matcher="mergemany")

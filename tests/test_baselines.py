"""Matchers to compare with: none, greedy, every permutation, simulated annealing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import floats, randomize
from strategies import elements, random_state, specs
from test_weight_matching import (
    COUNTEREXAMPLE_A,
    COUNTEREXAMPLE_B,
    SWAP,
    TWO_LAYERS,
    by_hand,
    grid_error,
    inner_product,
    relu_net,
)
from torch import Tensor, nn

from autoperm import (
    Match,
    Permutation,
    PermutationSpec,
    SimulatedAnnealing,
    align,
    discover,
    exhaustive_matching,
    greedy_matching,
    identity_matching,
    interpolate,
    lerp,
    weight_matching,
)
from autoperm.errors import EvaluationError, MatcherError, SpecError, WeightsError

State = Mapping[str, Tensor]
HEADS = by_hand({"w": ("(h=2 d=3) _", (6, 3)), "b": ("(h d)", (6,)), "s": ("h", (2,))}, {"d": ["h"]})


def tiny() -> tuple[nn.Module, nn.Module]:
    a, b = (
        randomize(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double().eval(), seed)
        for seed in (1, 2)
    )
    return a, b


def inputs() -> Tensor:
    return floats(64, 6)()[0]


# --- none ---------------------------------------------------------------------------------------------------------


def test_identity_moves_nothing() -> None:
    a, b = tiny()
    aligned = align(a, b, matcher="identity")
    assert aligned.permutation.is_identity
    torch.testing.assert_close(dict(aligned.model.state_dict()), dict(b.state_dict()), rtol=0, atol=0)


# --- greedy -------------------------------------------------------------------------------------------------------


def test_greedy_misses_what_weight_matching_finds() -> None:
    """Git Re-Basin, appendix A.7.2: half of the function is lost in the middle, or nothing."""
    e = 0.01
    spec = by_hand({"0": ("p _", (2, 1)), "1": ("q p", (2, 2)), "2": ("_ q", (1, 2))}, {})
    a, b = (
        {name: torch.tensor(rows, dtype=torch.float64) for name, rows in state.items()}
        for state in (
            {"0": [[1], [1 + e]], "1": [[1, 0], [0, e]], "2": [[1, 0]]},
            {"0": [[1], [1 + e]], "1": [[0, 0], [0, 1]], "2": [[0, 1]]},
        )
    )

    def middle(permutation: Permutation) -> float:
        state = lerp(a, permutation.apply(b), 0.5)
        return float(state["2"] @ state["1"] @ state["0"])

    greedy = greedy_matching(spec, a, b)
    assert greedy.is_identity
    assert middle(greedy) == pytest.approx(0.5, abs=e)
    both = weight_matching(spec, a, b, kernel="linear").permutation
    assert both == Permutation(spec, {"p": SWAP, "q": SWAP})
    assert middle(both) == pytest.approx(1 + e / 2, abs=e**2)


@pytest.mark.parametrize("kernel", ["linear", "cosine"])
@pytest.mark.parametrize(
    "name", ["mlp", "vgg", "residual_cnn", "lstm", "gpt", "grouped_conv", "attention_heads_first", "tied_embedding"]
)
def test_greedy_finds_a_planted_permutation(name: str, kernel: str, traced: Callable[[str], Traced]) -> None:
    net = traced(name)
    a = net.model.state_dict()
    planted = net.spec.random(0)
    found = greedy_matching(net.spec, a, planted.apply(a), kernel=kernel)
    assert found.compose(planted) == net.spec.identity()


def test_greedy_does_not_look_ahead() -> None:
    spec = by_hand({"v": ("p _", (5, 3)), "b": ("p", (5,)), "w": ("q p", (4, 5)), "u": ("_ q", (2, 4))}, {})
    a, b = random_state(spec, 0), random_state(spec, 1)
    found = greedy_matching(spec, a, b)
    first = by_hand({"v": ("p _", (5, 3)), "b": ("p", (5,))}, {})
    assert torch.equal(found["p"], weight_matching(first, a, b, kernel="linear").permutation["p"])
    assert found == greedy_matching(spec, a, {**b, "u": -b["u"]}), "the last layer has no new factor"
    assert found != greedy_matching(spec, a, {**b, "w": -b["w"]})


@given(specs(), st.integers(0, 3))
def test_greedy_gives_an_element_on_any_specification(spec: PermutationSpec, seed: int) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    assert greedy_matching(spec, a, b).spec is spec


# --- every permutation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [HEADS, by_hand({"w": ("p q", (3, 4)), "v": ("q q", (4, 4))}, {})])
@pytest.mark.parametrize("kernel", ["linear", "cosine"])
def test_exhaustive_search_finds_the_largest_inner_product(spec: PermutationSpec, kernel: str) -> None:
    a, b = random_state(spec, 0), random_state(spec, 1)
    values = [inner_product(spec, a, p.apply(b), kernel) for p in elements(spec)]
    found = exhaustive_matching(spec, a, b, kernel=kernel)
    assert found.objective[-1] == pytest.approx(max(values))
    assert inner_product(spec, a, found.permutation.apply(b), kernel) == pytest.approx(max(values))
    assert found.objective[0] == pytest.approx(inner_product(spec, a, b, kernel))
    assert found.converged
    assert found.objective[-1] >= weight_matching(spec, a, b, kernel=kernel).objective[-1] - 1e-9


def test_elements_are_all_and_distinct() -> None:
    every = list(elements(HEADS))
    assert len(every) == round(10**HEADS.log10_order) == 2 * 6 * 6
    assert every[0].is_identity
    assert all(p != q for p, q in itertools.combinations(every, 2))


def test_exhaustive_search_of_the_counterexample() -> None:
    """Git Re-Basin, appendix A.6: the largest inner product is that of both swaps, and no permutation connects."""
    a, b = COUNTEREXAMPLE_A, COUNTEREXAMPLE_B
    spec = PermutationSpec.from_patterns(TWO_LAYERS, a)
    found = exhaustive_matching(spec, a.state_dict(), b.state_dict())
    assert found.permutation == Permutation(spec, {"p": SWAP, "q": SWAP})
    assert found.objective == (-2, 1, 3, 6) or found.objective == (-2, 3, 6)
    assert weight_matching(spec, a.state_dict(), b.state_dict(), kernel="linear").permutation == found.permutation

    def barrier(permutation: Permutation) -> float:
        return interpolate(a, permutation.apply(b), grid_error).barrier("error")

    assert [barrier(p) for p in elements(spec)] == pytest.approx([0.25] * 4, abs=0.006)
    lowest = exhaustive_matching(spec, a.state_dict(), b.state_dict(), objective=lambda p: -barrier(p))
    assert -lowest.objective[-1] == min(barrier(p) for p in elements(spec))


def test_groups_that_are_too_large_are_refused_with_their_size() -> None:
    state = random_state(HEADS)
    with pytest.raises(MatcherError, match="there are 72 permutations, more than the limit of 71"):
        exhaustive_matching(HEADS, state, state, limit=71)
    assert exhaustive_matching(HEADS, state, state, limit=72).permutation.is_identity
    large = by_hand({"w": ("p _", (512, 1))}, {})
    with pytest.raises(MatcherError, match=r"there are 10\^1166\.5 permutations"):
        exhaustive_matching(large, random_state(large), random_state(large))


# --- annealing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_annealing_finds_the_best_of_a_small_group(seed: int) -> None:
    a, b = random_state(HEADS, 2 * seed), random_state(HEADS, 2 * seed + 1)
    found = SimulatedAnnealing(steps=600, seed=seed)(HEADS, a, b)
    assert found.objective[-1] == pytest.approx(exhaustive_matching(HEADS, a, b).objective[-1])
    assert found.objective[-1] == pytest.approx(inner_product(HEADS, a, found.permutation.apply(b)))
    assert all(later > earlier for earlier, later in itertools.pairwise(found.objective))


@given(specs(), st.integers(0, 3))
def test_annealing_returns_what_it_says(spec: PermutationSpec, seed: int) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    found, again = (SimulatedAnnealing(steps=10, seed=seed)(spec, a, b) for _ in range(2))
    assert found.permutation == again.permutation
    assert found.objective[0] == pytest.approx(inner_product(spec, a, b), abs=1e-9)
    assert found.objective[-1] == pytest.approx(inner_product(spec, a, found.permutation.apply(b)), abs=1e-9)


@pytest.mark.parametrize("points", [1, 3])
def test_annealing_lowers_the_barrier(points: int) -> None:
    a, b = tiny()
    x = inputs()
    with torch.no_grad():
        data = [(x, a(x))]
    matcher = SimulatedAnnealing(data, F.mse_loss, steps=150, points=points)
    aligned = align(a, b, matcher=matcher)
    assert aligned.match is not None
    spec = aligned.spec

    def barrier(permutation: Permutation) -> float:
        """Of a loss on the statistics of the batch, above the chord."""

        def loss(lam: float) -> float:
            model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double().train()
            model.load_state_dict(lerp(a.state_dict(), permutation.apply(b).state_dict(), lam))
            return F.mse_loss(model(x), data[0][1]).item()

        lams = [i / (points + 1) for i in range(1, points + 1)]
        return max(loss(lam) - (1 - lam) * loss(0.0) - lam * loss(1.0) for lam in lams)

    best = min(map(barrier, elements(spec)))
    assert -aligned.match.objective[0] == pytest.approx(barrier(spec.identity()))
    assert barrier(aligned.permutation) == pytest.approx(best)
    assert -aligned.match.objective[-1] == pytest.approx(best)
    assert best < barrier(spec.identity())


@pytest.mark.parametrize("seed", range(3))
def test_annealing_without_temperature_climbs_to_where_no_swap_helps(seed: int) -> None:
    a, b = random_state(HEADS, 0), random_state(HEADS, 1)
    found = SimulatedAnnealing(steps=400, temperature=1e-12, seed=seed)(HEADS, a, b)
    swaps = [p for p in elements(HEADS) if sum(int((p[n] != found.permutation[n]).sum()) for n in ("h", "d")) == 2]
    assert len(swaps) == 1 + 2 * 3
    assert all(inner_product(HEADS, a, p.apply(b)) <= found.objective[-1] + 1e-9 for p in swaps)


def test_annealing_of_a_specification_without_free_factors() -> None:
    spec = by_hand({"w": ("_ _", (2, 3))}, {})
    assert SimulatedAnnealing(steps=5)(spec, random_state(spec), random_state(spec, 1)).permutation.is_identity


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": [1]}, "loss is missing"),
        ({"loss": F.mse_loss}, "data is missing"),
        ({"steps": 0}, "steps is 0"),
        ({"points": 0}, "points is 0"),
        ({"batches": 0}, "batches is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"cooling": 0.0}, "cooling is 0.0"),
    ],
)
def test_options_of_annealing(options: dict[str, object], says: str) -> None:
    with pytest.raises(MatcherError, match=says):
        SimulatedAnnealing(**options)


def test_annealing_with_data_needs_models() -> None:
    state = random_state(HEADS)
    with pytest.raises(MatcherError, match=r"call bind\(model_a, model_b\) first"):
        SimulatedAnnealing([1], F.mse_loss)(HEADS, state, state)
    with pytest.raises(EvaluationError, match="read only once"):
        SimulatedAnnealing(iter([1]), F.mse_loss)


# --- what all have in common --------------------------------------------------------------------------------------

TENSOR_MATCHERS = [greedy_matching, exhaustive_matching, SimulatedAnnealing(steps=5)]


@pytest.mark.parametrize("matcher", TENSOR_MATCHERS)
def test_weights_that_do_not_fit_are_named(matcher: Callable[..., Permutation | Match]) -> None:
    a = random_state(HEADS)
    with pytest.raises(WeightsError, match="w of model B"):
        matcher(HEADS, a, {**a, "w": torch.full((6, 3), torch.nan)})
    with pytest.raises(SpecError, match=r"w is \[6, 3\] in the specification and \[5, 3\] in model B"):
        matcher(HEADS, a, {**a, "w": torch.zeros(5, 3)})


@pytest.mark.parametrize("matcher", [identity_matching, *TENSOR_MATCHERS])
def test_neither_state_is_changed(matcher: Callable[..., Permutation | Match]) -> None:
    a, b = random_state(HEADS), random_state(HEADS, 1)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (a, b)]
    matcher(HEADS, a, b)
    torch.testing.assert_close([a, b], before, rtol=0, atol=0)


@pytest.mark.parametrize("calls", [0, 1, 3, 20])
def test_an_interruption_returns_the_best_so_far(calls: int) -> None:
    a, b = tiny()
    spec = discover(a, inputs())
    seen: list[float] = []

    def value(permutation: Permutation) -> float:
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(inner_product(spec, a.state_dict(), permutation.apply(b).state_dict()))
        return seen[-1]

    found = exhaustive_matching(spec, a.state_dict(), b.state_dict(), objective=value)
    assert found.interrupted
    assert not found.converged
    assert max(found.objective, default=None) == max(seen, default=None)
    losses: list[float] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if len(losses) == calls:
            raise KeyboardInterrupt
        losses.append(F.mse_loss(output, target).item())
        return F.mse_loss(output, target)

    data = [(inputs(), torch.zeros(64, 3, dtype=torch.float64))]
    annealed = align(a, b, matcher="annealing", data=data, loss=loss).match
    assert annealed is not None
    assert annealed.interrupted
    ends, between = losses[:2], losses[2:]
    assert annealed.sweeps == max(calls - 3, 0), "two calls are for the ends, and one for the identity"
    if between:
        assert annealed.objective[-1] == pytest.approx(sum(ends) / 2 - min(between))
    else:
        assert annealed.permutation.is_identity


def test_two_hidden_units_need_no_more_than_two_tries() -> None:
    """The smallest group there is."""
    a = relu_net(([[1, 0], [0, 1]], [0, 1]), ([[1, 2]], [0]))
    spec = PermutationSpec.from_patterns({"0.weight": "p _", "0.bias": "p", "2.weight": "_ p"}, a)
    b = Permutation(spec, {"p": SWAP}).apply(a)
    for matcher in (greedy_matching, exhaustive_matching, partial(SimulatedAnnealing(steps=10))):
        assert distance(a, align(a, b, spec=spec, matcher=matcher, example_inputs=torch.ones(1, 2).double()).model) == 0


def distance(a: nn.Module, b: nn.Module) -> float:
    return sum(float((x - y).detach().square().sum()) for x, y in zip(a.parameters(), b.parameters(), strict=True))

"""Frank-Wolfe: exact line search, an ascent that never falls, and permutations at least as good as their start."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from conftest import Traced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_state, specs
from test_weight_matching import inner_product
from torch import Tensor

from autoperm import Permutation, PermutationSpec, weight_matching
from autoperm.errors import AutopermError, SpecError, WeightsError
from autoperm.matching import frank_wolfe
from autoperm.matching.frank_wolfe import Relaxation, _maximise
from autoperm.matching.soft import harden, random_soft, soft_apply, soften

Trace = Callable[[str], Traced]
State = Mapping[str, Tensor]
LIKE = torch.zeros((), dtype=torch.float64)

# --- the relaxation -----------------------------------------------------------------------------------------------


@given(specs(), st.integers(0, 3), st.sampled_from(["linear", "cosine"]))
def test_the_objective_is_the_inner_product(spec: PermutationSpec, seed: int, kernel: str) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    relaxation = Relaxation(spec, [a, b], kernel)
    soft = random_soft(spec, LIKE, torch.Generator().manual_seed(seed))
    permutation = spec.random(seed)
    assert relaxation.value([soften(permutation, LIKE)]) == pytest.approx(
        inner_product(spec, a, permutation.apply(b), kernel), abs=1e-9
    )
    if kernel == "linear":
        moved = soft_apply(spec, soft, b)
        assert relaxation.value([soft]) == pytest.approx(inner_product(spec, a, moved), abs=1e-9)


@settings(max_examples=20)
@given(specs(), st.integers(0, 3), st.integers(2, 4))
def test_a_step_never_lowers_the_objective_and_its_slope_is_the_gap(
    spec: PermutationSpec, seed: int, count: int
) -> None:
    relaxation = Relaxation(spec, [random_state(spec, seed + i) for i in range(count)], "linear")
    generator = torch.Generator().manual_seed(seed)
    softs = [random_soft(spec, LIKE, generator) for _ in range(count - 1)]
    scale = sum(float(t.square().sum()) for state in relaxation.states for t in state.values())
    for _ in range(4):
        value, gap, after = relaxation.step(softs)
        assert value == pytest.approx(relaxation.value(softs), abs=1e-12 * scale)
        assert gap >= -1e-12 * scale
        assert relaxation.value(after) >= value - 1e-9 * scale
        softs = after


@settings(max_examples=20)
@given(specs(), st.integers(0, 3))
def test_no_place_on_the_segment_is_better_than_that_of_the_line_search(spec: PermutationSpec, seed: int) -> None:
    relaxation = Relaxation(spec, [random_state(spec, seed + i) for i in range(3)], "linear")
    generator = torch.Generator().manual_seed(seed)
    softs = [random_soft(spec, LIKE, generator) for _ in range(2)]
    _, gradients = relaxation.gradient(softs)
    _, _, after = relaxation.step(softs)
    best = relaxation.value(after)
    scale = sum(float(t.square().sum()) for state in relaxation.states for t in state.values())
    corners = [soften(harden(spec, gradient), LIKE) for gradient in gradients]
    for length in np.linspace(0, 1, 21):
        place = [{n: torch.lerp(s[n], c[n], float(length)) for n in s} for s, c in zip(softs, corners, strict=True)]
        assert relaxation.value(place) <= best + 1e-9 * scale


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_a_polynomial_is_maximised(coefficients: list[float]) -> None:
    polynomial = np.polynomial.Polynomial(coefficients)
    nodes = [i / (len(coefficients) - 2) for i in range(1, len(coefficients) - 1)]
    values = [float(polynomial(node)) for node in nodes]
    found = _maximise(coefficients[0], coefficients[1], nodes, values)
    assert 0 <= found <= 1
    assert polynomial(found) >= polynomial(np.linspace(0, 1, 101)).max() - 1e-9


# --- the matcher --------------------------------------------------------------------------------------------------

PLANTED = ["mlp", "residual_cnn", "lstm", "grouped_conv", "attention_grouped_sdpa", "mixture_dense"]


@pytest.mark.parametrize("start", ["uniform", "boundary"])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_is_found_exactly(name: str, start: str, traced: Trace) -> None:
    net = traced(name)
    a, planted = net.model.state_dict(), net.spec.random(0)
    match = frank_wolfe(net.spec, a, planted.apply(a), start=start)
    assert match.permutation.compose(planted) == net.spec.identity()
    assert match.converged


@settings(max_examples=20)
@given(specs(), st.integers(0, 3), st.sampled_from(["linear", "cosine"]))
def test_the_result_is_at_least_as_good_as_its_start(spec: PermutationSpec, seed: int, kernel: str) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    for start in ("uniform", "boundary", spec.random(seed)):
        match = frank_wolfe(spec, a, b, kernel=kernel, start=start, seed=seed)
        assert all(later >= earlier for earlier, later in itertools.pairwise(match.objective))
        found = inner_product(spec, a, match.permutation.apply(b), kernel)
        assert match.objective[-1] == pytest.approx(found, abs=1e-8)
        if start == "uniform":
            before = inner_product(spec, a, b, kernel)
        else:
            before = weight_matching(spec, a, b, kernel=kernel, start=start, seed=seed).objective[-1]
        assert found >= before - 1e-8


def test_it_climbs_out_of_where_descent_from_the_identity_stays(traced: Trace) -> None:
    net = traced("residual_cnn")
    a, noise, planted = net.model.state_dict(), random_state(net.spec, 7), net.spec.random(0)
    b = planted.apply({**a, **{n: a[n] + 0.3 * a[n].std() * noise[n] for n in net.spec.patterns if a[n].numel() > 1}})
    descent = weight_matching(net.spec, a, b, start=net.spec.identity())
    match = frank_wolfe(net.spec, a, b)
    assert match.permutation.compose(planted) == net.spec.identity()
    assert match.objective[-1] >= descent.objective[-1]


def test_restarts_are_never_worse_and_a_seed_gives_the_same_result_again(traced: Trace) -> None:
    spec = traced("vgg").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    once = frank_wolfe(spec, a, b, seed=3)
    more, again = (frank_wolfe(spec, a, b, seed=3, restarts=2) for _ in range(2))
    assert more.objective[-1] >= once.objective[-1]
    assert more == again


def test_steps_are_limited(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    match = frank_wolfe(spec, a, b, max_steps=1, max_sweeps=0)
    assert match.sweeps == 1
    assert not match.converged
    assert frank_wolfe(spec, a, b).sweeps > 2


def test_an_interruption_gives_the_best_so_far(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    step, calls = Relaxation.step, itertools.count()

    def interrupted(self: Relaxation, softs: object) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(self, softs)

    monkeypatch.setattr(Relaxation, "step", interrupted)
    match = frank_wolfe(spec, a, b, restarts=5)
    assert match.interrupted
    assert not match.converged
    assert match.sweeps == 2
    assert match.objective[-1] > inner_product(spec, a, b, "cosine")


def test_a_specification_without_free_factors() -> None:
    spec = PermutationSpec.from_patterns({"w": "_ _"}, {"w": torch.empty(2, 3)})
    for start in ("uniform", "boundary"):
        match = frank_wolfe(spec, random_state(spec), random_state(spec, 1), start=start)
        assert match.permutation.is_identity
        assert match.converged


def test_faults_are_named(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    with pytest.raises(AutopermError, match="no kernel 'cosin'; choose 'linear' or 'cosine'"):
        frank_wolfe(spec, a, b, kernel="cosin")
    with pytest.raises(AutopermError, match="no start 'middle'; choose 'uniform', 'boundary' or a permutation"):
        frank_wolfe(spec, a, b, start="middle")
    with pytest.raises(SpecError, match=r"2\.bias is \[10\] in the specification and \[11\] in model B"):
        frank_wolfe(spec, a, {**b, "2.bias": torch.zeros(11)})
    b["2.weight"][1, 2] = float("nan")
    with pytest.raises(WeightsError, match=r"2\.weight of model B"):
        frank_wolfe(spec, a, b)


def test_neither_state_is_changed_and_lower_precision_will_do(traced: Trace) -> None:
    net = traced("transformer_pre")
    planted = net.spec.random(0)
    for dtype in (torch.float32, torch.bfloat16):
        a = {name: tensor.to(dtype) for name, tensor in net.model.state_dict().items()}
        b = planted.apply(a)
        before = [{name: tensor.clone() for name, tensor in state.items()} for state in (a, b)]
        found: Permutation = frank_wolfe(net.spec, a, b).permutation
        assert found.compose(planted) == net.spec.identity()
        torch.testing.assert_close([a, b], before, rtol=0, atol=0)

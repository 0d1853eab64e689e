"""Graduated assignment: from the middle of the polytope to a permutation, slowly."""

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
from torch import nn

from autoperm import PermutationSpec, weight_matching
from autoperm.errors import AutopermError, SpecError
from autoperm.matching import graduated_assignment
from autoperm.matching.frank_wolfe import Relaxation

Trace = Callable[[str], Traced]


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "lstm", "grouped_conv", "attention_grouped_sdpa"])
def test_a_planted_permutation_is_found_exactly(name: str, traced: Trace) -> None:
    net = traced(name)
    a, planted = net.model.state_dict(), net.spec.random(0)
    match = graduated_assignment(net.spec, a, planted.apply(a))
    assert match.permutation.compose(planted) == net.spec.identity()
    assert match.converged


def test_a_deep_residual_stream_is_recovered_from_noise_that_defeats_descent() -> None:
    """Every block must agree on one order of the stream, and each alone says little of it."""
    torch.manual_seed(0)
    width, hidden, depth = 24, 32, 12
    patterns = {"in": "c _", "out": "_ c"}
    state = {"in": torch.randn(width, 6), "out": torch.randn(4, width)}
    for i in range(depth):
        patterns |= {f"up{i}": f"h{i} c", f"down{i}": f"c h{i}"}
        state |= {f"up{i}": torch.randn(hidden, width), f"down{i}": torch.randn(width, hidden)}
    spec = PermutationSpec.from_patterns(patterns, state)
    planted = spec.random(0)
    noisy = planted.apply({name: tensor + 1.5 * torch.randn_like(tensor) for name, tensor in state.items()})
    truth = inner_product(spec, state, planted.inverse().apply(noisy), "cosine")
    found = graduated_assignment(spec, state, noisy)
    descent = [weight_matching(spec, state, noisy, start=spec.random(seed)).objective[-1] for seed in range(1, 4)]
    assert found.objective[-1] > 0.99 * truth
    assert max(descent) < 0.8 * truth


@settings(max_examples=20)
@given(specs(), st.integers(0, 3), st.sampled_from(["linear", "cosine"]))
def test_the_result_is_at_least_as_good_as_the_identity(spec: PermutationSpec, seed: int, kernel: str) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    match = graduated_assignment(spec, a, b, kernel=kernel, seed=seed)
    assert match.objective[0] == pytest.approx(inner_product(spec, a, b, kernel), abs=1e-8)
    assert match.objective[-1] == pytest.approx(inner_product(spec, a, match.permutation.apply(b), kernel), abs=1e-8)
    assert all(later >= earlier for earlier, later in itertools.pairwise(match.objective))


def test_it_does_not_depend_on_the_scale_of_the_weights(traced: Trace) -> None:
    spec = traced("vgg").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    first = graduated_assignment(spec, a, b, kernel="linear", max_sweeps=0)
    large = {name: 1e6 * tensor for name, tensor in a.items()}
    assert graduated_assignment(spec, large, b, kernel="linear", max_sweeps=0).permutation == first.permutation
    assert graduated_assignment(spec, a, b, kernel="linear", max_sweeps=0) == first


def test_an_interruption_gives_the_best_so_far(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    gradient, calls = Relaxation.gradient, itertools.count()

    def interrupted(self: Relaxation, softs: object) -> object:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return gradient(self, softs)

    monkeypatch.setattr(Relaxation, "gradient", interrupted)
    match = graduated_assignment(spec, a, b)
    assert match.interrupted
    assert not match.converged
    assert match.sweeps == 5


def test_tensors_without_information_and_faults(traced: Trace) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    assert graduated_assignment(spec, zeros, zeros).objective == (0.0,)
    with pytest.raises(AutopermError, match="no kernel 'cosin'; choose 'linear' or 'cosine'"):
        graduated_assignment(spec, zeros, zeros, kernel="cosin")
    with pytest.raises(SpecError, match=r"0\.bias is \[4\] in the specification and \[5\] in model B"):
        graduated_assignment(spec, zeros, {**zeros, "0.bias": torch.zeros(5)})

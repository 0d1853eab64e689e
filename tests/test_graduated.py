"""Graduated assignment: blocks answer each other softly, ever less so."""

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

from autoperm import Factor, Permutation, PermutationSpec, graduated_assignment, weight_matching
from autoperm.errors import AutopermError, SpecError
from autoperm.matching.graduated import Annealing
from autoperm.matching.problem import Problem
from autoperm.matching.soft import harden
from autoperm.signature import Name, Pinned

Trace = Callable[[str], Traced]

NESTED = ["grouped_conv", "groupnorm", "attention_grouped_sdpa", "attention_chunk_sdpa", "mixture_dense", "perceiver"]


def residual(width: int, hidden: int, depth: int) -> tuple[PermutationSpec, dict[str, torch.Tensor]]:
    """A residual stream c, and blocks with hidden units of their own."""
    patterns = {"in": "c _", "out": "_ c"}
    state = {"in": torch.randn(width, 6), "out": torch.randn(4, width)}
    for i in range(depth):
        patterns |= {f"up{i}": f"h{i} c", f"down{i}": f"c h{i}"}
        state |= {f"up{i}": torch.randn(hidden, width), f"down{i}": torch.randn(width, hidden)}
    return PermutationSpec.from_patterns(patterns, state), state


def annealed(spec: PermutationSpec, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> Permutation:
    """What annealing alone finds: no growth, no descent."""
    annealing = Annealing(Problem(spec, a, b), 0)
    for temperature in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02):
        annealing.sweep(temperature)
    return harden(spec, annealing.soft)


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "lstm", "transformer_pre", *NESTED])
def test_annealing_alone_finds_a_planted_permutation(name: str, traced: Trace) -> None:
    """Random weights: those of a fresh module can be the same for all units."""
    spec = traced(name).spec
    a, planted = random_state(spec, 0), spec.random(0)
    assert annealed(spec, a, planted.apply(a)).compose(planted) == spec.identity()


def test_units_inside_two_groups_that_move_separately_are_found() -> None:
    """Both blocks answer for them, each with Gram matrices of its own shape."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (3, 4, 5, 7), "u": (3, 6), "v": (4, 6)}
    patterns = {
        "w": (Name("h"), Name("e"), Name("d"), Pinned()),
        "u": (Name("h"), Pinned()),
        "v": (Name("e"), Pinned()),
    }
    factors = {"h": Factor("h", 3), "e": Factor("e", 4), "d": Factor("d", 5, ("h", "e"))}
    spec = PermutationSpec(patterns, shapes, factors)
    a = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    planted = spec.random(0)
    assert annealed(spec, a, planted.apply(a)).compose(planted) == spec.identity()


def test_a_deep_residual_stream_is_recovered_from_noise_that_defeats_descent() -> None:
    """Every block must agree on one order of the stream, and each alone says little of it."""
    torch.manual_seed(0)
    spec, state = residual(24, 32, 12)
    planted = spec.random(0)
    noisy = planted.apply({name: tensor + 1.5 * torch.randn_like(tensor) for name, tensor in state.items()})
    truth = inner_product(spec, state, planted.inverse().apply(noisy), "cosine")
    assert inner_product(spec, state, annealed(spec, state, noisy).apply(noisy), "cosine") > 0.99 * truth
    descent = [weight_matching(spec, state, noisy, start=spec.random(seed)).objective[-1] for seed in range(1, 4)]
    assert max(descent) < 0.8 * truth


def test_independent_models_are_matched_better_than_by_ten_descents() -> None:
    torch.manual_seed(0)
    spec, a = residual(16, 24, 6)
    b = {name: torch.randn_like(tensor) for name, tensor in a.items()}
    starts = [spec.identity(), *(spec.random(seed) for seed in range(9))]
    plain = [weight_matching(spec, a, b, start=start, seed=seed) for seed, start in enumerate(starts)]
    assert graduated_assignment(spec, a, b).objective[-1] >= max(match.objective[-1] for match in plain)


@settings(max_examples=20)
@given(specs(), st.integers(0, 3), st.sampled_from(["linear", "cosine"]))
def test_the_result_is_at_least_as_good_as_weight_matching(spec: PermutationSpec, seed: int, kernel: str) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    match = graduated_assignment(spec, a, b, kernel=kernel, seed=seed, reheats=1)
    assert match.objective[-1] == pytest.approx(inner_product(spec, a, match.permutation.apply(b), kernel), abs=1e-8)
    assert all(later >= earlier for earlier, later in itertools.pairwise(match.objective))
    assert match.objective[-1] >= weight_matching(spec, a, b, kernel=kernel, seed=seed).objective[-1]


@given(specs(), st.integers(0, 3))
def test_soft_permutations_are_doubly_stochastic(spec: PermutationSpec, seed: int) -> None:
    annealing = Annealing(Problem(spec, random_state(spec, seed), random_state(spec, seed + 1)), seed)
    for temperature in (1.0, 0.3):
        annealing.sweep(temperature)
    for factor in spec.free:
        matrix = annealing.soft[factor.name]
        assert matrix.shape[-2:] == (factor.size, factor.size)
        assert bool((matrix >= 0).all())
        ones = torch.ones(matrix.shape[:-1], dtype=matrix.dtype)
        torch.testing.assert_close(matrix.sum(-1), ones, rtol=0, atol=1e-6)
        torch.testing.assert_close(matrix.sum(-2), ones, rtol=0, atol=0.1)


def test_it_does_not_depend_on_the_scale_of_the_weights_and_repeats(traced: Trace) -> None:
    spec = traced("vgg").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    first = graduated_assignment(spec, a, b, kernel="linear")
    large = {name: 2.0**20 * tensor for name, tensor in a.items()}
    assert graduated_assignment(spec, large, b, kernel="linear").permutation == first.permutation
    assert graduated_assignment(spec, a, b, kernel="linear") == first


def test_an_interruption_gives_the_best_so_far(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    sweep, calls = Annealing.sweep, itertools.count()

    def interrupted(self: Annealing, temperature: float) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt
        sweep(self, temperature)

    monkeypatch.setattr(Annealing, "sweep", interrupted)
    match = graduated_assignment(spec, a, b)
    assert match.interrupted
    assert not match.converged
    assert match.sweeps == 5
    assert match.objective[-1] == weight_matching(spec, a, b).objective[-1]


def test_tensors_without_information_and_faults() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    spec = PermutationSpec.from_patterns({"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}, net)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    assert graduated_assignment(spec, zeros, zeros).objective == (0.0,)
    with pytest.raises(AutopermError, match="no kernel 'cosin'; choose 'linear' or 'cosine'"):
        graduated_assignment(spec, zeros, zeros, kernel="cosin")
    with pytest.raises(SpecError, match=r"0\.bias is \[4\] in the specification and \[5\] in model B"):
        graduated_assignment(spec, zeros, {**zeros, "0.bias": torch.zeros(5)})

"""Gram matrices that follow B are those that would be computed anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS
from strategies import random_state, specs

from autoperm import PermutationSpec, weight_matching
from autoperm.matching import known
from autoperm.matching.blocks import find_blocks
from autoperm.matching.problem import Problem

Trace = Callable[[str], Traced]


@pytest.fixture(autouse=True, scope="module")
def small_ones_too() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "_WORTH", 0)
        patch.setattr(known, "_FEW", 0.9)
        yield


def check(problem: Problem) -> int:
    """Compare what is known with what a task computes from cells; return how many matrices that were."""
    count = 0
    for active in list(problem.known):
        fresh = problem.task(active, problem.carrying(active)).grams()
        assert fresh.keys() == problem.known[active].keys()
        for name, gram in fresh.items():
            torch.testing.assert_close(problem.known[active][name], gram, rtol=0, atol=1e-10)
            count += 1
    return count


def visit(spec: PermutationSpec, seed: int) -> int:
    """Take every step twice, and swap two units of every factor in between."""
    problem = Problem(spec, random_state(spec, seed), random_state(spec, seed + 1))
    blocks = find_blocks(spec, problem.cells)
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(2):
        for number in rng.permutation(len(blocks)):
            for active in blocks[number].rounds:
                problem.step(blocks[number], active)
                count += check(problem)
        for factor in spec.free:
            index = spec.identity()[factor.name].clone()
            index[..., :2] = index[..., [1, 0]]
            problem.move({factor.name: index})
            count += check(problem)
    return count


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_known_is_right_after_every_move(name: str, traced: Trace) -> None:
    compared = visit(traced(name).spec, 0)
    if name in ("mlp", "residual_cnn", "grouped_conv", "transformer_pre"):
        assert compared > 0


@given(specs(), st.integers(0, 3))
def test_what_is_known_is_right_on_random_specifications(spec: PermutationSpec, seed: int) -> None:
    visit(spec, seed)


@given(specs(), st.integers(0, 3))
def test_descent_is_the_same_with_and_without(spec: PermutationSpec, seed: int) -> None:
    a, b = random_state(spec, seed), random_state(spec, seed + 1)
    found = weight_matching(spec, a, b, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "_WORTH", float("inf"))
        assert found.permutation == weight_matching(spec, a, b, seed=seed).permutation


def test_the_memory_is_bounded_by_the_model() -> None:
    spec = PermutationSpec.from_patterns({"w": "a _"}, {"w": torch.zeros(50, 3)})
    problem = Problem(spec, random_state(spec, 0), random_state(spec, 1))
    (block,) = find_blocks(spec, problem.cells)
    problem.step(block, block.rounds[0])
    assert not list(problem.known), "50 x 50 numbers are more than the model has"

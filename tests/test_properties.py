"""What discovery must do for any network: what it finds is right, and what is known by construction it finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from networks import log10_order
from strategies import Program, Sample, example_input, known_networks, programs
from torch import Tensor, nn

from autoperm import Permutation, PermutationSpec, discover


def shifted(spec: PermutationSpec, *names: str) -> Permutation:
    """The group element that moves every unit of some factors (of all, if none is named) to the next place."""
    chosen = names or tuple(factor.name for factor in spec.free)
    return Permutation(spec, {name: spec.identity()[name].roll(1, -1) for name in chosen})


def elements(spec: PermutationSpec) -> Iterator[Permutation]:
    yield shifted(spec)
    for factor in spec.free:
        yield shifted(spec, factor.name)
    for seed in range(3):
        yield spec.random(seed)


def check_function_is_preserved(model: nn.Module, x: Tensor, spec: PermutationSpec) -> None:
    with torch.no_grad():
        expected = model(x)
        assert expected.abs().max() > 1e-6, "outputs that are all zero would show nothing"
        for permutation in elements(spec):
            moved = permutation.apply(model)
            torch.testing.assert_close(moved(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@given(known_networks())
def test_random_networks_have_the_groups_that_they_were_built_with(sample: Sample) -> None:
    spec = discover(sample.model, example_input())
    assert sorted((factor.size, spec.copies(factor)) for factor in spec.free) == sample.groups
    assert spec.log10_order == pytest.approx(log10_order(sample.groups))
    check_function_is_preserved(sample.model, example_input(), spec)


# Steps after which different parts of a tensor come from different units: each of these was wrong in some version,
# or is what a rule or law that does too little breaks first.
@example([("joined", 0, 5), ("linear", 6, 0)], 0)
@example([("joined", 0, 6), ("same_width", 0, 0)], 0)
@example([("joined", 1, 6), ("normalise", 2, 1)], 0)
@example([("joined", 0, 3), ("regroup", 2, 0)], 0)
@example([("joined", 0, 2), ("normalise", 3, 3)], 0)
@example([("shared", 0, 0), ("autoencoder", 3, 1)], 0)
@example([("sliced_weight", 0, 11), ("sliced_weight", 4, 0)], 0)
@example([("written", 1, 6), ("sliced_weight", 6, 0)], 0)
@example([("written", 3, 0), ("attend", 2, 1)], 0)
@example([("channel_attention", 0, 0), ("recurrent", 3, 0)], 0)
@given(programs(), st.integers(0, 2))
def test_what_is_found_in_random_programs_is_right(plan: list[tuple[str, int, int]], seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Program(plan).double().eval()
    spec = discover(model, example_input())
    event(f"{min(len(spec.free), 5)} factors")
    check_function_is_preserved(model, example_input(), spec)

"""Soft permutations: at a permutation's matrices they do what the permutation does, and between they are linear."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import elements, random_state, specs
from torch import Tensor

from autoperm import Permutation, PermutationSpec, layout
from autoperm.matching.soft import harden, random_soft, soft_apply, soften, uniform

LIKE = torch.zeros((), dtype=torch.float64)
RECURRENT = {"w": "h h", "x": "h _", "b": "h", "o": "_ h"}


def by_hand(patterns: dict[str, str], sizes: dict[str, tuple[int, ...]], **over: list[str]) -> PermutationSpec:
    return PermutationSpec.from_patterns(patterns, {n: torch.empty(shape) for n, shape in sizes.items()}, over=over)


@given(specs(), st.integers(0, 3))
def test_the_matrices_of_a_permutation_act_as_it_does(spec: PermutationSpec, seed: int) -> None:
    state, permutation = random_state(spec, seed), spec.random(seed)
    torch.testing.assert_close(soft_apply(spec, soften(permutation, LIKE), state), permutation.apply(state))
    assert harden(spec, soften(permutation, LIKE)) == permutation


@given(specs(deepest=2, largest=3), st.integers(0, 3))
def test_the_barycentre_of_one_factor_is_the_mean_over_its_permutations(spec: PermutationSpec, seed: int) -> None:
    state = random_state(spec, seed)
    found = [cell.names for name in spec.patterns for cell in layout.cells(spec, name)]
    for factor in spec.free:
        # On two axes of one tensor a factor does not act linearly.
        if spec.log10_order > 3 or any(names.count(factor.name) > 1 for names in found):
            continue
        every = [p.apply(state) for p in elements(spec) if set(p.indices) <= {factor.name}]
        mean = {name: torch.stack([moved[name] for moved in every]).mean(0) for name in state}
        soft = {factor.name: uniform(spec, LIKE)[factor.name]}
        torch.testing.assert_close(soft_apply(spec, soft, state), mean)


@given(specs(), st.integers(0, 3))
def test_soft_permutations_are_doubly_stochastic(spec: PermutationSpec, seed: int) -> None:
    for soft in (uniform(spec, LIKE), random_soft(spec, LIKE, torch.Generator().manual_seed(seed))):
        assert set(soft) == {factor.name for factor in spec.free}
        for name, matrix in soft.items():
            factor = spec.factors[name]
            assert matrix.shape == (*(spec.factors[outer].size for outer in factor.over), factor.size, factor.size)
            assert bool((matrix >= 0).all())
            for dim in (-1, -2):
                torch.testing.assert_close(matrix.sum(dim), torch.ones_like(matrix.sum(dim)))


def test_both_axes_of_a_recurrent_weight_are_mixed() -> None:
    spec = by_hand(RECURRENT, {"w": (3, 3), "x": (3, 2), "b": (3,), "o": (2, 3)})
    state, soft = random_state(spec), random_soft(spec, LIKE, torch.Generator().manual_seed(0))
    p = soft["h"]
    expected = {"w": p @ state["w"] @ p.T, "x": p @ state["x"], "b": p @ state["b"], "o": state["o"] @ p.T}
    torch.testing.assert_close(soft_apply(spec, soft, state), expected)


def test_what_varies_is_indexed_by_the_place_where_it_ends_up() -> None:
    spec = by_hand({"w": "(h=2 d) _"}, {"w": (6, 2)}, d=["h"])
    state, soft = random_state(spec), random_soft(spec, LIKE, torch.Generator().manual_seed(0))
    expected = torch.einsum("ik,ijl,klx->ijx", soft["h"], soft["d"], state["w"].view(2, 3, 2)).reshape(6, 2)
    torch.testing.assert_close(soft_apply(spec, soft, state)["w"], expected)


def test_gradients_reach_matrices_and_tensors() -> None:
    spec = by_hand({"w": "((h=2 d) + 1) _", "v": "h h"}, {"w": (7, 2), "v": (2, 2)}, d=["h"])
    state, soft = random_state(spec), random_soft(spec, LIKE, torch.Generator().manual_seed(0))

    def moved(h: Tensor, d: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return tuple(soft_apply(spec, {"h": h, "d": d}, {"w": w, "v": v}).values())

    leaves = [tensor.requires_grad_() for tensor in (soft["h"], soft["d"], state["w"], state["v"])]
    torch.autograd.gradcheck(moved, leaves)


def test_tied_names_share_one_tensor_and_what_does_not_move_is_passed_on() -> None:
    tied = torch.randn(4, 3, dtype=torch.float64)
    tensors = {"head": tied, "table": tied, "bias": torch.zeros(3, dtype=torch.float64)}
    spec = PermutationSpec.from_patterns({"head": "h _", "table": "h _"}, tensors)
    assert spec.tied
    state = {**tensors, "other": torch.arange(3)}
    moved = soft_apply(spec, soften(Permutation(spec, {"h": torch.tensor([1, 0, 3, 2])}), LIKE), state)
    assert moved["head"] is moved["table"]
    assert moved["bias"] is state["bias"]
    assert moved["other"] is state["other"]
    assert list(moved) == list(state)
    torch.testing.assert_close(moved["head"], tied[[1, 0, 3, 2]])


def test_the_tensors_keep_their_precision() -> None:
    spec = by_hand(RECURRENT, {"w": (3, 3), "x": (3, 2), "b": (3,), "o": (2, 3)})
    state = {name: tensor.bfloat16() for name, tensor in random_state(spec).items()}
    permutation = spec.random(1)
    moved = soft_apply(spec, soften(permutation, torch.zeros(())), state)
    torch.testing.assert_close(moved, permutation.apply(state), rtol=0, atol=0)

"""How alike groups are, before and after matching; and what weights may be made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoperm import PermutationSpec, align, frank_wolfe, graduated_assignment, weight_matching
from autoperm.matching.similarity import similarities


def test_a_planted_permutation_brings_every_group_from_chance_to_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 3))
    spec = align(model, model).spec
    found = align(model, spec.random(0).apply(model), spec=spec)
    assert [group.factor for group in found.groups] == list(spec.free)
    for group in found.groups:
        assert group.after == pytest.approx(1.0, abs=1e-6)
        assert abs(group.before) < 0.3
        assert group.moved > 0.9
    assert "-> 1.00" in str(found)


def test_the_similarity_is_the_mean_cosine_of_the_matrices_that_carry_the_group() -> None:
    a = {"w": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "v": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([1.0, 2.0])}
    b = {"w": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "v": torch.tensor([[4.0, 3.0]]), "b": torch.tensor([9.0, 2.0])}
    spec = PermutationSpec.from_patterns({"w": "h _", "v": "_ h", "b": "h"}, a)
    (group,) = similarities(spec, a, b, spec.identity())
    assert group.before == group.after == pytest.approx(1.0), "v has one number for each unit, like a bias"
    assert group.moved == 0


def test_a_group_that_only_vectors_carry_is_compared_by_them() -> None:
    spec = PermutationSpec.from_patterns({"b": "h"}, {"b": torch.zeros(2)})
    a, b = {"b": torch.tensor([1.0, 0.0])}, {"b": torch.tensor([0.0, 1.0])}
    (group,) = similarities(spec, a, b, weight_matching(spec, a, b).permutation)
    assert (group.before, group.after, group.moved) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("matcher", [weight_matching, graduated_assignment, frank_wolfe])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_kind_of_number_are_matched(matcher: object, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"in": (16, 5), "out": (2, 16)}
    a = {name: torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for name, shape in shapes.items()}
    if dtype.is_complex:
        a = {name: tensor + 1j * torch.randn(tensor.shape, generator=generator) for name, tensor in a.items()}
    spec = PermutationSpec.from_patterns({"in": "h _", "out": "_ h"}, a)
    planted = spec.random(0)
    found = matcher(spec, a, planted.apply(a))
    assert found.permutation.compose(planted) == spec.identity()

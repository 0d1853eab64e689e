"""How alike groups are, before and after matching; and what weights may be made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autoperm import Permutation, PermutationSpec, align, frank_wolfe, graduated_assignment, weight_matching
from autoperm.errors import SpecError
from autoperm.matching import unit_similarity
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


def test_units_are_as_alike_as_the_weights_that_they_carry() -> None:
    a = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "v": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
    b = {"w": torch.tensor([[4.0, 3.0], [0.0, 5.0]]), "v": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}
    spec = PermutationSpec.from_patterns({"w": "h _", "v": "_ h"}, a)
    norm_b = 50.0**0.5, 8.0**0.5
    rows_a = torch.tensor([[0.6, 0.8, 0.5**0.5, 0.5**0.5], [0.0] * 4])
    rows_b = torch.tensor([[4 / norm_b[0], 3 / norm_b[0], 0, 0], [0, 5 / norm_b[0], 2 / norm_b[1], 2 / norm_b[1]]])
    cosines = torch.cosine_similarity(rows_a[:, None], rows_b[None], dim=-1)
    torch.testing.assert_close(unit_similarity(spec, a, b, "h"), cosines)
    assert not cosines[1].any(), "a unit without weights is like no other"
    swap = Permutation(spec, {"h": torch.tensor([1, 0])})
    torch.testing.assert_close(unit_similarity(spec, a, b, "h", permutation=swap), cosines[:, [1, 0]])


def test_units_of_every_group_are_themselves_after_a_planted_permutation_is_undone() -> None:
    """Also where channels vary over heads, and where a tensor carries the units twice."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"qkv": (24, 10), "out": (10, 12), "recurrent": (10, 10), "pinned": (6, 3)}
    a = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    patterns = {"qkv": "((h=3 d=4) + (h d)) c", "out": "c (h d)", "recurrent": "c c", "pinned": "p! f"}
    spec = PermutationSpec.from_patterns(patterns, a, over={"d": ["h"], "f": ["p"]})
    planted = spec.random(1)
    b = planted.apply(a)
    for factor, units in {"h": 3, "d": 12, "c": 10, "f": 18}.items():
        found = unit_similarity(spec, a, b, factor, permutation=planted.inverse())
        assert found.shape == (units, units)
        torch.testing.assert_close(found.diagonal(), torch.ones(units, dtype=torch.float64))
        torch.testing.assert_close(found, unit_similarity(spec, a, a, factor))
        assert float(unit_similarity(spec, a, b, factor).diagonal().mean()) < 0.9


def test_units_that_cannot_be_compared() -> None:
    a = {"w": torch.ones(2, 3), "v": torch.ones(2)}
    spec = PermutationSpec.from_patterns({"w": "_ k", "v": "h"}, a)
    with pytest.raises(SpecError, match="no units 'x' that may be permuted; choose from k, h"):
        unit_similarity(spec, a, a, "x")
    with pytest.raises(SpecError, match="none of the given tensors carries 'h'; they are w"):
        unit_similarity(spec, {"w": a["w"]}, {"w": a["w"]}, "h")
    torch.testing.assert_close(unit_similarity(spec, a, a, "h"), torch.ones(2, 2))


def test_an_alignment_draws_the_units_before_and_after(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in "ab")
    aligned = align(a, b)
    figure = aligned.draw(a, "b", tmp_path / "units.png")
    assert (tmp_path / "units.png").stat().st_size > 1000
    for axes, state in zip(figure.axes, (b.state_dict(), aligned.model.state_dict()), strict=False):
        wanted = unit_similarity(aligned.spec, a.state_dict(), state, "b")
        torch.testing.assert_close(torch.tensor(axes.images[0].get_array()), wanted.double())
    assert figure.axes[1].get_title().startswith("units b, after: diagonal 0.")


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

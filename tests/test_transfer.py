"""What a model learnt, carried to another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import randomize
from torch import Tensor, nn

from autoperm import PermutationSpec, add_task_vectors, align, task_vector, transfer
from autoperm.errors import ArchitectureError, SpecError, WeightsError
from autoperm.state import tensors


def mlp(seed: int = 0) -> nn.Module:
    return randomize(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval(), seed)


KNOWN: dict[str, Any] = {
    "spec": PermutationSpec.from_patterns({"0.weight": "p _", "0.bias": "p", "2.weight": "_ p"}, mlp()),
    "example_inputs": torch.ones(2, 6, dtype=torch.float64),
}


def normed(seed: int = 0) -> nn.Module:
    return randomize(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double(), seed)


def tuned(model: nn.Module, seed: int = 0, rate: float = 0.1) -> nn.Module:
    """A copy that has moved a little."""
    moved, other = copy.deepcopy(model), randomize(copy.deepcopy(model), 100 + seed)
    with torch.no_grad():
        for parameter, direction in zip(moved.parameters(), other.parameters(), strict=True):
            parameter.add_(rate * direction)
    return moved


def inputs(samples: int = 16) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "tied_embedding", "swiglu", "lstm"])
def test_between_equivalent_bases_it_gives_the_tuned_model(name: str, traced: Callable[[str], Traced]) -> None:
    network = traced(name)
    base_b = network.spec.random(1).apply(network.model)
    learnt = tuned(base_b)
    options: dict[str, Any] = {"spec": network.spec, "example_inputs": network.inputs}
    found = transfer(network.model, base_b, learnt, **options)
    torch.testing.assert_close(found.model(*network.inputs), learnt(*network.inputs))
    moved = network.spec.random(1).inverse().apply(learnt)
    torch.testing.assert_close(tensors(found.model), dict(tensors(moved)), rtol=1e-12, atol=1e-12)


def test_a_scale_of_zero_gives_base_a() -> None:
    base_a, base_b = normed(0), normed(1)
    found = transfer(base_a, base_b, tuned(base_b), 0.0)
    torch.testing.assert_close(tensors(found.model), tensors(base_a), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.5, -1.0, 2.0])
def test_it_adds_what_was_learnt_in_the_order_of_a(scale: float) -> None:
    base_a, base_b = mlp(0), mlp(1)
    learnt = tuned(base_b)
    found = transfer(base_a, base_b, learnt, scale, **KNOWN)
    permutation = align(base_a, base_b, **KNOWN).permutation
    assert found.alignment.permutation == permutation
    delta = permutation.apply(task_vector(tensors(learnt), tensors(base_b)))
    for name, tensor in tensors(found.model).items():
        torch.testing.assert_close(tensor, tensors(base_a)[name] + scale * delta[name])
        torch.testing.assert_close(found.vectors[0][name], delta[name])


def test_several_tasks_add_up() -> None:
    base_a, base_b = mlp(0), mlp(1)
    one, other = tuned(base_b, 0), tuned(base_b, 1)
    both = tensors(transfer(base_a, base_b, [one, other], [0.5, 2.0], **KNOWN).model)
    alone = [
        tensors(transfer(base_a, base_b, model, scale, **KNOWN).model) for model, scale in ((one, 0.5), (other, 2.0))
    ]
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, alone[0][name] + alone[1][name] - tensors(base_a)[name])
    same = transfer(base_a, base_b, [one, other], 0.5, **KNOWN)
    assert same.scales == (0.5, 0.5)


def test_which_copy_of_base_b_was_tuned_does_not_matter() -> None:
    base_a, base_b = mlp(0), mlp(1)
    first = transfer(base_a, base_b, tuned(base_b), **KNOWN)
    shuffle = first.alignment.spec.random(5)
    again = transfer(base_a, shuffle.apply(base_b), shuffle.apply(tuned(base_b)), **KNOWN)
    torch.testing.assert_close(tensors(again.model), tensors(first.model))


def test_nothing_that_comes_in_is_changed() -> None:
    models = [normed(0), normed(1), tuned(normed(1))]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    found = transfer(models[0], models[1], models[2])
    for tensor in tensors(found.model).values():
        tensor.zero_()
    for model, state in zip(models, before, strict=True):
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_variances_that_become_negative() -> None:
    base_a, base_b = normed(0), normed(1)
    learnt = tuned(base_b)
    learnt[1].running_var.zero_()  # type: ignore[index, operator, union-attr]
    with pytest.raises(WeightsError, match=r"running variances of '1' become negative.*batch_norm"):
        transfer(base_a, base_b, learnt, 3.0)
    transfer(base_b, base_b, learnt, 1.0)  # they are 0, as those of the tuned model
    found = transfer(base_a, base_b, learnt, 3.0, renormalize="batch_norm", data=[inputs()])
    assert bool((found.model[1].running_var > 0).all())  # type: ignore[index, operator, union-attr]


def test_integers_are_those_of_base_a() -> None:
    base_a, base_b = normed(0), normed(1)
    learnt = tuned(base_b)
    for count, model in enumerate((base_a, base_b, learnt)):
        model[1].num_batches_tracked.fill_(count)  # type: ignore[index, operator, union-attr]
    assert int(transfer(base_a, base_b, learnt).model[1].num_batches_tracked) == 0  # type: ignore[index, arg-type, union-attr]


def test_the_model_that_does_not_fit_is_named() -> None:
    a, b = mlp(0), mlp(1)
    head = copy.deepcopy(b)
    head[2] = nn.Linear(12, 7).double()  # type: ignore[index, operator]
    with pytest.raises(ArchitectureError, match=r"tuned B \(B\) does not fit base A"):
        transfer(a, b, head)
    with pytest.raises(ArchitectureError, match=r"tuned B 1 \(B\) does not fit base A"):
        transfer(a, b, [b, head])
    with pytest.raises(ArchitectureError, match=r"base B \(B\) does not fit base A"):
        transfer(a, mlp(1).float(), b)
    broken = tuned(b)
    broken[0].bias.data.fill_(math.nan)  # type: ignore[index, operator, union-attr]
    with pytest.raises(WeightsError, match="tuned B has NaN"):
        transfer(a, b, broken)


def test_scales_that_do_not_fit() -> None:
    a, b = mlp(0), mlp(1)
    with pytest.raises(SpecError, match="must be 1 finite numbers"):
        transfer(a, b, b, [1.0, 2.0])
    with pytest.raises(SpecError, match="must be 2 finite numbers"):
        transfer(a, b, [b, b], math.nan)
    with pytest.raises(SpecError, match="tuned_b is empty"):
        transfer(a, b, [])
    with pytest.raises(SpecError, match="reads it"):
        transfer(a, b, b, data=[inputs()])


def test_the_report() -> None:
    base_a, base_b = mlp(0), mlp(1)
    text = str(transfer(base_a, base_b, [tuned(base_b), base_b], [0.5, 1]))
    lines = text.splitlines()
    assert lines[0] == "Sequential with 2 task vectors transferred"
    assert lines[1].startswith("  scale 0.5, length ")
    assert lines[2] == "  scale 1, length 0.00% of base B's"
    assert "Alignment of Sequential" in text
    doubled = mlp(1)
    for parameter in doubled.parameters():
        parameter.data *= 2
    assert "scale 1, length 100.00% of base B's" in str(transfer(base_a, base_b, doubled))


# --- state dicts --------------------------------------------------------------------------------------------------

values = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3).map(lambda row: torch.tensor(row, dtype=torch.float64))


@given(values, values, values, st.floats(-2, 2))
def test_adding_a_vector_is_undone_by_subtracting_it(base: Tensor, one: Tensor, other: Tensor, scale: float) -> None:
    start = {"w": base, "count": torch.tensor(3)}
    vectors = [task_vector({"w": each, "count": torch.tensor(4)}, start) for each in (one, other)]
    assert all(list(vector) == ["w"] for vector in vectors)
    torch.testing.assert_close(add_task_vectors(start, vectors[:1])["w"], one)
    there = add_task_vectors(start, vectors, [scale, 1.0])
    assert int(there["count"]) == 3
    back = add_task_vectors(there, vectors, [-scale, -1.0])
    torch.testing.assert_close(back["w"], base, rtol=1e-9, atol=1e-9)


def test_nothing_is_shared_with_the_inputs() -> None:
    base, vector = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    for scale in (0.0, 1.0):
        add_task_vectors(base, [vector], [scale])["w"].fill_(9.0)
    assert base["w"].tolist() == [0.0, 0.0]
    assert vector["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "vector", [{"v": torch.ones(2)}, {"w": torch.ones(3)}, {"w": torch.ones(2, dtype=torch.float64)}]
)
def test_a_vector_of_another_architecture_is_named(vector: dict[str, Tensor]) -> None:
    with pytest.raises(SpecError, match=r"task vector 1 has .* but the base has"):
        add_task_vectors({"w": torch.zeros(2)}, [{}, vector])


def test_half_precision_is_rounded_once() -> None:
    base = {"w": torch.ones(1, dtype=torch.bfloat16)}
    small = {"w": torch.full((1,), 2.0**-9, dtype=torch.bfloat16)}  # lost, if it is added to 1 alone
    assert add_task_vectors(base, [small] * 8)["w"].item() == 1 + 2.0**-6
    start, vector = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    scaled = add_task_vectors({"w": start}, [{"w": vector}], [0.3])["w"]
    torch.testing.assert_close(scaled, (start.double() + 0.3 * vector.double()).bfloat16(), rtol=0, atol=0)


def test_a_renormalizer_gets_base_a_as_its_end() -> None:
    base_a, base_b = mlp(0), mlp(1)
    seen: list[Any] = []

    class Repair:
        def bind(self, models: Any) -> Any:
            seen.append(models)
            return lambda model, weights: seen.append(weights) or model

    transfer(base_a, base_b, tuned(base_b), 2.0, renormalize=Repair(), **KNOWN)
    assert seen == [(base_a,), (1.0,)]

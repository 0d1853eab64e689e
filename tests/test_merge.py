"""One model from several."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import Traced
from networks import randomize
from torch import Tensor, nn

from autoperm import (
    MergeMany,
    PermutationSpec,
    align,
    align_many,
    average,
    discover,
    interpolate_simplex,
    merge,
    weight_matching,
)
from autoperm.errors import ArchitectureError, MatcherError, SpecError, WeightsError
from autoperm.selection import select
from autoperm.state import tensors

UNIQUE = ["mlp", "residual_cnn", "layernorm_mlp", "swiglu", "tied_embedding", "groupnorm"]
"""Networks on which weight matching comes to one result from wherever B's units start."""


def mlp(seed: int = 0, width: int = 12) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 10), nn.ReLU(), nn.Linear(10, 4))
    return randomize(model.double().eval(), seed)  # type: ignore[return-value]


SPEC = PermutationSpec.from_patterns(
    {"0.weight": "p _", "0.bias": "p", "2.weight": "q p", "2.bias": "q", "4.weight": "_ q"}, mlp()
)
KNOWN: dict[str, Any] = {"spec": SPEC, "example_inputs": torch.ones(2, 6, dtype=torch.float64)}
"""What is found anew otherwise, in a fifth of a second."""


def normed(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return randomize(model.double().eval(), seed)  # type: ignore[return-value]


def inputs(samples: int = 32) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def same(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(dict(tensors(a)), dict(tensors(b)), rtol=tolerance, atol=tolerance)


# --- two models ---------------------------------------------------------------------------------------------------


def test_it_is_the_mean_of_aligned_models() -> None:
    a, b = mlp(0), mlp(1)
    merged = merge([a, b], (1, 3))
    expected = average([tensors(a), tensors(align(a, b, **KNOWN).model)], (0.25, 0.75))
    torch.testing.assert_close(tensors(merged.model), expected, rtol=0, atol=0)
    assert merged.weights == (0.25, 0.75)
    assert merged.merged == tuple(a.state_dict())
    assert merged.kept == merged.taken == ()


@pytest.mark.parametrize("name", [*UNIQUE, "lstm", "grouped_conv"])
def test_a_model_merged_with_its_own_copy_is_itself(name: str, traced: Callable[[str], Traced]) -> None:
    network = traced(name)
    options: dict[str, Any] = {"spec": network.spec, "example_inputs": network.inputs}
    two = merge([network.model, network.spec.random(1).apply(network.model)], (0.3, 0.7), **options)
    many = merge([network.spec.random(seed).apply(network.model) for seed in range(3)], **options)
    same(two.model, network.model, 1e-15)
    same(many.model, network.spec.random(0).apply(network.model), 1e-15)
    torch.testing.assert_close(two.model(*network.inputs), network.model(*network.inputs))


@pytest.mark.parametrize("name", UNIQUE)
def test_which_equivalent_copy_comes_in_does_not_matter(name: str, traced: Callable[[str], Traced]) -> None:
    network = traced(name)
    options: dict[str, Any] = {"spec": network.spec, "example_inputs": network.inputs}
    b, c = (randomize(copy.deepcopy(network.model), seed) for seed in (5, 6))
    two, three = merge([network.model, b], (0.3, 0.7), **options), merge([network.model, b, c], **options)
    for seed in range(2):
        twin, other = network.spec.random(seed).apply(b), network.spec.random(seed + 10).apply(c)
        same(merge([network.model, twin], (0.3, 0.7), **options).model, two.model, 1e-12)
        same(merge([network.model, twin, other], **options).model, three.model, 1e-12)


@pytest.mark.parametrize(("count", "dtype"), [(2, torch.float64), (3, torch.float64), (2, torch.float32)])
def test_nor_where_all_layers_have_the_same_say(count: int, dtype: torch.dtype) -> None:
    def deep(seed: int) -> nn.Module:
        sizes = [8, 12, 12, 12, 3]
        layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
        return randomize(nn.Sequential(*layers[:-1]).double(), seed).to(dtype)

    spec = discover(deep(0))
    for seed in range(0, 30, count):
        first, *others = (deep(seed + i) for i in range(count))
        twins = [spec.random(seed + i).apply(other) for i, other in enumerate(others)]
        one, other = (
            merge([first, *models], matcher="merge-many", spec=spec, check=False) for models in (others, twins)
        )
        same(other.model, one.model, 1e-12 if dtype == torch.float64 else 1e-5)


def test_a_copy_of_a_comes_out_in_its_own_order() -> None:
    a, b = mlp(0), mlp(1)
    p = SPEC.random(4)
    moved = merge([p.apply(a), b], **KNOWN)
    same(moved.model, p.apply(merge([a, b], **KNOWN).model), 1e-12)


def test_weights_of_0_and_1_give_an_end() -> None:
    a, b = mlp(0), mlp(1)
    same(merge([a, b], (1, 0), **KNOWN).model, a)
    end = merge([a, b], (0, 1), **KNOWN)
    torch.testing.assert_close(end.model(inputs()), b(inputs()))


def test_nothing_that_comes_in_is_changed() -> None:
    a, b, c = (normed(seed).train() for seed in range(3))
    before = copy.deepcopy([model.state_dict() for model in (a, b, c)])
    found = merge([a, b, c], renormalize="batch_norm", data=[inputs()])
    for parameter in found.model.parameters():
        parameter.data.zero_()
    for buffer in found.model.buffers():
        buffer.zero_()
    for model, state in zip((a, b, c), before, strict=True):
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        assert model.training
    assert found.model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    a, b = mlp(0).to(dtype), mlp(1).to(dtype)
    merged = merge([a, b, mlp(2).to(dtype)], **KNOWN)
    assert {tensor.dtype for tensor in tensors(merged.model).values()} == {dtype}
    same(merge([a, SPEC.random(0).apply(a)], **KNOWN).model, a)


# --- many, and matchers -------------------------------------------------------------------------------------------


def test_many_models_stay_in_the_order_of_the_first() -> None:
    """MergeMany may move all models; what it finds is undone by what it did to the first."""
    models = [mlp(seed) for seed in range(4)]
    found = align_many(models, matcher=MergeMany(seed=3), **KNOWN)
    assert not found.permutations[0].is_identity
    merged = merge(models, (4, 3, 2, 1), matcher=MergeMany(seed=3), **KNOWN)
    expected = average([tensors(model) for model in found.models], (4, 3, 2, 1))
    torch.testing.assert_close(
        tensors(merged.model), found.permutations[0].inverse().apply(expected), rtol=1e-13, atol=1e-13
    )
    assert merged.alignment is not None
    assert merged.alignment.permutations[0].is_identity  # type: ignore[union-attr]
    for model, permutation, given in zip(
        merged.alignment.models,  # type: ignore[union-attr]
        merged.alignment.permutations,  # type: ignore[union-attr]
        models,
        strict=True,
    ):
        same(model, permutation.apply(given))


@pytest.mark.parametrize("matcher", ["graduated", "universe", "reference", MergeMany(), weight_matching])
@pytest.mark.parametrize("count", [2, 3])
def test_any_matcher(matcher: Any, count: int) -> None:
    a = mlp(0)
    merged = merge([SPEC.random(seed).apply(a) for seed in range(count)], matcher=matcher, **KNOWN)
    same(merged.model, SPEC.random(0).apply(a), 1e-14)


def test_models_that_need_no_aligning() -> None:
    a, b = mlp(0), mlp(1)
    merged = merge([a, b], align=False)
    torch.testing.assert_close(tensors(merged.model), average([tensors(a), tensors(b)]), rtol=0, atol=0)
    assert merged.alignment is None
    assert "no, as they were" in str(merged)


def test_data_go_to_whoever_is_named() -> None:
    a, b, batches = normed(0), normed(1), [(inputs(), torch.zeros(32))]
    merged = merge([a, b], matcher="activation", renormalize="batch_norm", data=batches)
    with torch.no_grad():
        mean = merged.model[0](inputs()).mean(0)  # type: ignore[index]
    torch.testing.assert_close(merged.model[1].running_mean, mean)  # type: ignore[index]
    assert merged.renormalized == "batch_norm"
    with pytest.raises(MatcherError, match="'activation' needs data"):
        merge([a, b], matcher="activation")
    with pytest.raises(SpecError, match="needs data"):
        merge([a, b], renormalize="batch_norm")
    with pytest.raises(SpecError, match="no matcher or renormalizer that is named reads it"):
        merge([a, b], data=batches)
    with pytest.raises(SpecError, match="loss is given"):
        merge([a, b], align=False, loss=nn.functional.cross_entropy)
    with pytest.raises(SpecError, match="matcher is given"):
        merge([a, b], align=False, matcher="weight")
    with pytest.raises(MatcherError, match="no matcher is called 'wieght'"):
        merge([a, b], matcher="wieght", data=batches)


def test_what_repair_did_is_in_the_report() -> None:
    a, b = mlp(0), mlp(1)
    merged = merge([a, b], renormalize="repair", data=[inputs()])
    assert merged.repaired is not None
    assert merged.repaired.model is merged.model
    assert f"repair, {merged.repaired.extent}, to" in str(merged)
    assert merge([a, b]).repaired is None


def test_a_renormalizer_sees_the_aligned_models_and_the_weights() -> None:
    a, b = mlp(0), mlp(1)
    seen: list[Any] = []

    class Repair:
        def bind(self, models: Any) -> Any:
            seen.extend(models)

            def finish(model: nn.Module, weights: Any) -> nn.Module:
                seen.append(weights)
                model[4].bias.data.fill_(7.0)  # type: ignore[index, union-attr, operator]
                return model

            return finish

    merged = merge([a, b], (1, 4), renormalize=Repair(), **KNOWN)
    assert seen[2] == (0.2, 0.8)
    assert seen[0] is a
    same(seen[1], align(a, b, **KNOWN).model)
    assert merged.model[4].bias.tolist() == [7.0] * 4  # type: ignore[index, union-attr, operator]
    assert merged.renormalized == "Repair"
    assert not (a[4].bias == 7.0).any()


# --- parts --------------------------------------------------------------------------------------------------------


def test_what_is_not_chosen_stays_the_first_models() -> None:
    a, b = mlp(0), mlp(1)
    whole, part = merge([a, b], **KNOWN), merge([a, b], only="2", **KNOWN)
    for name, tensor in tensors(part.model).items():
        expected = tensors(whole.model if name.startswith("2.") else a)[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert part.merged == ("2.weight", "2.bias")
    assert part.kept == ("0.weight", "0.bias", "4.weight", "4.bias")


@pytest.mark.parametrize("name", ["mlp", "residual_cnn"])
def test_a_part_does_not_depend_on_the_copy_either(name: str, traced: Callable[[str], Traced]) -> None:
    network = traced(name)
    options: dict[str, Any] = {"spec": network.spec, "example_inputs": network.inputs, "only": "*weight"}
    b = randomize(copy.deepcopy(network.model), 5)
    same(
        merge([network.model, network.spec.random(2).apply(b)], **options).model,
        merge([network.model, b], **options).model,
        1e-12,
    )


def test_patterns_of_tensors_modules_and_factors() -> None:
    state = nn.ModuleDict(
        {"layer1": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), "layer10": nn.Linear(3, 3)}
    ).state_dict()
    spec = PermutationSpec.from_patterns(
        {"layer1.0.weight": "h _", "layer1.0.bias": "h", "layer1.1.weight": "_ h"}, state
    )
    assert select(None, state) == tuple(state)
    assert select("layer1", state) == ("layer1.0.weight", "layer1.0.bias", "layer1.1.weight", "layer1.1.bias")
    assert select("layer1.*", state) == select("layer1", state)
    assert select("layer1*", state) == tuple(state)
    assert select("*.bias", state) == ("layer1.0.bias", "layer1.1.bias", "layer10.bias")
    assert select(["layer10", "layer1.0.bias"], state) == ("layer1.0.bias", "layer10.weight", "layer10.bias")
    assert select("h", state, spec) == ("layer1.0.weight", "layer1.0.bias", "layer1.1.weight")


def test_tensors_without_entries_share_no_memory() -> None:
    state = {"a": torch.zeros(0), "b": torch.zeros(0), "c": torch.zeros(1)}
    assert select(["a"], state) == ("a",)


def test_a_pattern_that_chooses_nothing_lists_names_near_it() -> None:
    a, b = mlp(0), mlp(1)
    with pytest.raises(SpecError, match=r"called '0\.wieght'; near it are '0\.weight'"):
        merge([a, b], only="0.wieght", **KNOWN)
    with pytest.raises(SpecError, match=r"called 'zzzzzz'; there are '0', '2', '4'"):
        merge([a, b], only=["0", "zzzzzz"], align=False)
    with pytest.raises(SpecError, match="only= is empty"):
        merge([a, b], only=[], **KNOWN)


def test_a_factor_of_what_was_discovered() -> None:
    a, b = mlp(0), mlp(1)
    spec = discover(a)
    factor = next(factor.name for factor in spec.free if factor.size == 12)
    assert merge([a, b], only=factor).merged == ("0.weight", "0.bias", "2.weight")


def test_tied_names_are_chosen_together(traced: Callable[[str], Traced]) -> None:
    network = traced("tied_embedding")
    assert network.spec.tied
    name, other = next(iter(network.spec.tied.items()))
    options: dict[str, Any] = {"spec": network.spec, "example_inputs": network.inputs}
    b = randomize(copy.deepcopy(network.model), 5)
    one, same_again = merge([network.model, b], only=name, **options), merge([network.model, b], only=other, **options)
    assert {name, other} <= set(one.merged)
    same(one.model, same_again.model)
    assert tensors(one.model)[name].data_ptr() == tensors(one.model)[other].data_ptr()


# --- buffers ------------------------------------------------------------------------------------------------------


def test_integers_are_taken_from_the_first_and_named() -> None:
    a, b = normed(0), normed(1)
    a[1].num_batches_tracked.fill_(3)
    b[1].num_batches_tracked.fill_(7)
    merged = merge([a, b])
    assert merged.taken == ("1.num_batches_tracked",)
    assert "1.running_mean" in merged.merged
    assert int(merged.model[1].num_batches_tracked) == 3  # type: ignore[index]
    assert merge([a, b], only="0").taken == ("1.num_batches_tracked",)


def test_tables_that_differ_have_no_mean() -> None:
    class Table(nn.Linear):
        def __init__(self, first: int) -> None:
            super().__init__(2, 2)
            self.register_buffer("table", torch.tensor([first, 1]))

    with pytest.raises(ArchitectureError, match=r"model 2.*integer or boolean tensors"):
        merge([Table(0), Table(0), Table(1)], align=False)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "2 models or more is needed, and got 0"),
        ([mlp(0)], "2 models or more is needed, and got 1"),
        (mlp(0), "2 models or more is needed, and got a Sequential"),
        ({"a": mlp(0), "b": mlp(1)}, "2 models or more is needed, and got a dict"),
        ("a.pt", "2 models or more is needed, and got a str"),
        (["a.pt", "b.pt"], "a model is needed, and got a str"),
        ([mlp(0).state_dict()] * 2, "a model is needed, and got a OrderedDict"),
    ],
)
def test_what_is_no_list_of_models(models: Any, message: str) -> None:
    for function in (merge, lambda models: interpolate_simplex(models, lambda model: {"loss": 0.0})):
        with pytest.raises(ArchitectureError, match=message):
            function(models)


def test_models_may_come_one_after_the_other() -> None:
    models = [mlp(0), mlp(1)]
    merged = merge(model for model in models)  # type: ignore[arg-type]
    torch.testing.assert_close(merged.model.state_dict(), merge(models).model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("align", [True, False])
def test_the_model_that_does_not_fit_is_named(align: bool) -> None:
    def three(last: nn.Module) -> list[nn.Module]:
        return [mlp(0), mlp(1), last]

    with pytest.raises(ArchitectureError, match=r"model 2 \(B\) does not fit model 0[^$]*float64 in A, torch.float32"):
        merge(three(mlp(2).float()), align=align)
    with pytest.raises(ArchitectureError, match=r"model 2 \(B\) does not fit model 0[^$]*on cpu in A, on meta in B"):
        merge(three(mlp(2).to("meta")), align=align)
    with pytest.raises(ArchitectureError, match=r"model 2 \(B\) does not fit model 0[^$]*shape"):
        merge(three(mlp(2, width=13)), align=align)
    broken = mlp(2)
    nn.init.constant_(broken[0].bias, math.nan)
    with pytest.raises(WeightsError, match="model 2 has NaN"):
        merge(three(broken), align=align)


def test_models_that_tie_other_weights_are_found_out() -> None:
    class Pair(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            if tied:
                self.decode.weight = self.encode.weight

    with pytest.raises(ArchitectureError, match=r"'encode\.weight'.*tied weights"):
        merge([Pair(True), Pair(False)], align=False)


@pytest.mark.parametrize(("weights", "says"), [((1,), "1 weights for 2"), ((0, 0), "all 0"), ((2, -1), "negative")])
def test_weights_that_do_not_fit(weights: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        merge([mlp(0), mlp(1)], weights)


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report() -> None:
    merged = merge([normed(0), normed(1)], only=["0", "1"])
    lines = str(merged).splitlines()
    assert lines[0] == "Merged Sequential of 2 models, weights 0.5, 0.5"
    assert lines[1].startswith("  aligned:      objective ")
    assert lines[2] == "  merged:       6 tensors (0.weight, 0.bias, 1.weight, ...)"
    assert lines[3] == "  of model 0:   2 tensors (3.weight, 3.bias)"
    assert lines[4] == "  not averaged: 1 tensor (1.num_batches_tracked): integers of model 0"
    assert lines[5] == "  renormalized: no"

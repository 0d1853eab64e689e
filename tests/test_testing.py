"""What users test their own models with: the strategies reach what they should, and the assertions can fail."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from conftest import Traced
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from networks import NETWORKS, floats, randomize
from strategies import specs
from torch import Tensor, nn

from autoperm import Permutation, PermutationSpec
from autoperm.testing import (
    assert_function_preserved,
    assert_spec_complete,
    elements,
    inputs,
    permutations,
    weights,
)

Trace = Callable[[str], Traced]
SHRINKING = settings(max_examples=200, deadline=None, database=None, derandomize=True)

MLP = randomize(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double())
RIGHT = {"0.weight": "h _", "0.bias": "h", "2.weight": "_ h"}
X = floats(5, 3)()


def spec_of(**change: str) -> PermutationSpec:
    patterns = {**RIGHT, **{name.replace("_", "."): pattern for name, pattern in change.items()}}
    return PermutationSpec.from_patterns(patterns, MLP)


def wide(size: int = 100) -> PermutationSpec:
    return PermutationSpec.from_patterns({"weight": f"(g=4 h={size // 4})"}, {"weight": torch.zeros(size)},
                                         over={"h": ["g"]})  # fmt: skip


# --- strategies


@given(st.data(), specs())
def test_what_is_drawn_is_in_the_group(data: st.DataObject, spec: PermutationSpec) -> None:
    permutation = data.draw(permutations(spec))
    assert isinstance(permutation, Permutation)
    assert permutation.spec is spec
    assert permutation.compose(permutation.inverse()).is_identity


def test_every_element_of_a_small_group_is_drawn() -> None:
    spec = PermutationSpec.from_patterns({"weight": "a b"}, {"weight": torch.zeros(3, 2)})
    wanted = list(elements(spec))
    assert len(wanted) == 12
    for element in wanted:
        assert find(permutations(spec), lambda drawn, element=element: drawn == element, settings=SHRINKING) == element


def test_permutations_shrink_to_the_identity() -> None:
    for spec in (spec_of(), wide()):
        assert find(permutations(spec), lambda drawn: True, settings=SHRINKING).is_identity


def moved(permutation: Permutation) -> int:
    identity = permutation.spec.identity()
    return sum(int((permutation[name] != identity[name]).sum()) for name in permutation.indices)


def test_permutations_that_break_something_shrink_to_one_exchange() -> None:
    for spec in (spec_of(), wide()):
        least = find(permutations(spec), lambda drawn: not drawn.is_identity, settings=SHRINKING)
        assert moved(least) == 2


def test_large_factors_are_moved_sparsely_and_densely() -> None:
    spec = wide()
    find(permutations(spec), lambda drawn: 0 < moved(drawn) <= 8, settings=SHRINKING)
    find(permutations(spec), lambda drawn: moved(drawn) > 80, settings=SHRINKING)
    rows = find(permutations(spec), lambda drawn: moved(drawn) > 80, settings=SHRINKING)["h"]
    assert not torch.equal(rows[0], rows[1])


MIXED = (
    torch.tensor([[0.25, 1.0], [0.5, 0.75]]),
    torch.tensor([3, 7, 5]),
    {"mask": torch.tensor([True, False]), "bias": torch.tensor([0.0, -math.inf, 0.0])},
    [torch.zeros(2, dtype=torch.float64), "mean", 3],
    torch.empty(0, 3),
)


@given(inputs(MIXED))
def test_inputs_are_like_the_example(drawn: tuple[object, ...]) -> None:
    image, ids, named, (zeros, word, number), empty = drawn
    assert isinstance(image, Tensor)
    assert image.shape == (2, 2)
    assert image.dtype == torch.float32
    assert 0.25 <= image.min() <= image.max() <= 1
    assert ids.dtype == torch.int64
    assert 3 <= ids.min() <= ids.max() <= 7
    assert named["mask"].dtype == torch.bool
    assert named["bias"].isfinite().tolist() == [True, False, True]
    assert zeros.dtype == torch.float64
    assert zeros.abs().max() <= 1
    assert (word, number, empty.shape) == ("mean", 3, (0, 3))


def test_inputs_shrink_to_the_example_and_vary() -> None:
    least = find(inputs(MIXED), lambda drawn: True, settings=SHRINKING)
    torch.testing.assert_close(least[0], MIXED[0], rtol=0, atol=0)
    assert least[0] is not MIXED[0]
    find(inputs(MIXED), lambda drawn: not torch.equal(drawn[0], MIXED[0]), settings=SHRINKING)
    find(inputs(MIXED), lambda drawn: drawn[3][0].abs().min() > 0, settings=SHRINKING)


def test_a_vocabulary_can_be_given() -> None:
    ids = (torch.zeros(40, dtype=torch.int64),)
    assert find(inputs(ids, high=10), lambda drawn: int(drawn[0].max()) == 9, settings=SHRINKING)
    assert find(inputs(ids, high=10), lambda drawn: int(drawn[0].max()) < 10, settings=SHRINKING)
    with pytest.raises(NoSuchExample):
        find(inputs(ids), lambda drawn: int(drawn[0].max()) > 0, settings=SHRINKING)


NORMED = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False))


@given(weights(NORMED))
def test_weights_fit_the_model_and_keep_variances_positive(state: dict[str, Tensor]) -> None:
    assert state.keys() == NORMED.state_dict().keys()
    assert state["1.running_var"].min() > 0
    assert state["1.weight"].min() > 0
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert NORMED[1].running_var.eq(1).all(), "the model is left alone"


def test_weights_shrink_to_the_model_and_vary() -> None:
    least = find(weights(NORMED), lambda state: True, settings=SHRINKING)
    torch.testing.assert_close(least, dict(NORMED.state_dict()), rtol=0, atol=0)
    other = find(weights(NORMED), lambda state: bool(state["1.running_mean"].abs().min() > 0), settings=SHRINKING)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight"):
        assert len(other[name].unique()) == other[name].numel(), name


# --- assertions


@pytest.mark.parametrize("name", ["mlp", "attention_rotary", "grouped_conv"])
def test_right_specifications_pass(name: str, traced: Trace) -> None:
    net = traced(name)
    assert_function_preserved(net.model, net.spec, net.inputs)
    assert_spec_complete(net.model, net.spec, net.inputs)

    @settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
    @given(permutations(net.spec), inputs(net.inputs), weights(net.model))
    def property_of_the_network(permutation: Permutation, x: tuple[Tensor, ...], state: dict[str, Tensor]) -> None:
        model = NETWORKS[name].build()
        model.load_state_dict(state)
        assert_function_preserved(model, net.spec, x, permutation=permutation)

    property_of_the_network()


def test_a_wrong_specification_fails() -> None:
    wrong = PermutationSpec.from_patterns({"0.weight": "h _", "2.weight": "_ h"}, MLP)
    with pytest.raises(AssertionError, match=r"h on 0\.weight axis 0"):
        assert_function_preserved(MLP, wrong, X)

    @settings(SHRINKING)
    @given(permutations(wrong))
    def property_of_the_network(permutation: Permutation) -> None:
        assert_function_preserved(MLP, wrong, X, permutation=permutation)

    with pytest.raises(AssertionError, match="changes the outputs") as caught:
        property_of_the_network()
    assert "2 of 8 units of h" in str(caught.value), "the least that breaks it"


def test_the_identity_preserves_anything() -> None:
    wrong = PermutationSpec.from_patterns({"0.weight": "h _", "2.weight": "_ h"}, MLP)
    assert_function_preserved(MLP, wrong, X, permutation=wrong.identity())


def test_an_incomplete_specification_fails_unless_that_is_known() -> None:
    little = PermutationSpec.from_patterns({name: pattern.replace("h", "h!") for name, pattern in RIGHT.items()}, MLP)
    with pytest.raises(AssertionError, match=re.escape("0.weight[0], 0.bias[0], 2.weight[1]")):
        assert_spec_complete(MLP, little, X)
    assert_spec_complete(MLP, little, X, allow={"0.weight[0]", "0.bias[0]", "2.weight[1]"})
    with pytest.raises(AssertionError):
        assert_spec_complete(MLP, little, X, allow={"0.weight[0]", "0.bias[0]"})

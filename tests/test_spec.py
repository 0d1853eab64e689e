"""Specifications: reading, writing, checking, and drawing from the group."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from conftest import Traced
from hypothesis import given
from networks import NETWORKS, floats, randomize
from strategies import specs
from torch import nn

import autoperm
from autoperm import Factor, PermutationSpec
from autoperm.errors import AutopermError, EquivalenceError, SignatureError, SpecError, TraceError

Trace = Callable[[str], Traced]


def spec_of(pattern: str, *shape: int, **over: list[str]) -> PermutationSpec:
    return PermutationSpec.from_patterns({"w": pattern}, {"w": torch.empty(shape)}, over=over)


def log10_factorial(n: int) -> float:
    return math.log10(math.factorial(n))


# --- writing and reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_json_gives_the_specification_back(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec
    assert list(again.factors) == list(spec.factors)
    assert again.to_json() == spec.to_json()
    assert again.random(3).compose(spec.random(3).inverse()) == spec.identity()


@given(specs())
def test_json_gives_random_specifications_back(spec: PermutationSpec) -> None:
    assert PermutationSpec.from_json(spec.to_json(indent=None)) == spec


def without(text: str, *path: str) -> str:
    data = json.loads(text)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(data)


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text[:-5],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: text.replace('"autoperm": 1', '"autoperm": 99'),
        lambda text: without(text, "factors"),
        lambda text: without(text, "tensors"),
        lambda text: without(text, "tensors", "w", "shape"),
        lambda text: text.replace('"h c"', '"h c c"'),
        lambda text: text.replace('"h c"', '"h z"'),
        lambda text: text.replace('"h c"', '"h ("'),
        lambda text: text.replace('"h c"', "3"),
    ],
)
def test_what_is_no_specification_is_refused(broken: Callable[[str], str]) -> None:
    text = spec_of("h c", 3, 2).to_json()
    assert broken(text) != text
    with pytest.raises(AutopermError):
        PermutationSpec.from_json(broken(text))


def test_a_later_version_of_the_format_is_named() -> None:
    text = spec_of("h c", 3, 2).to_json().replace('"autoperm": 1', '"autoperm": 99')
    with pytest.raises(SpecError, match="version 99"):
        PermutationSpec.from_json(text)


# --- by hand ------------------------------------------------------------------------------------------------------


def test_sizes_are_found_from_the_tensors() -> None:
    like = {"w": torch.empty(24, 5), "v": torch.empty(3, 2), "b": torch.empty(14)}
    spec = PermutationSpec.from_patterns({"w": "(a b c) _", "v": "b a", "b": "(c + d)"}, like)
    assert {name: factor.size for name, factor in spec.factors.items()} == {"a": 2, "b": 3, "c": 4, "d": 10}


def test_tensors_that_are_left_out_are_pinned() -> None:
    spec = PermutationSpec.from_patterns({"0.weight": "h _"}, nn.Sequential(nn.Linear(2, 3)))
    moved = spec.random(0).apply({"0.weight": torch.eye(3, 2), "0.bias": torch.arange(3.0)})
    assert moved["0.bias"].tolist() == [0, 1, 2]


LIKE = {"w": torch.empty(12, 3), "b": torch.empty(12)}


@pytest.mark.parametrize(
    ("patterns", "over", "error", "says"),
    [
        ({"w": "(h d c"}, {}, SignatureError, "never closed"),
        ({"w": "h ? c"}, {}, SignatureError, "'?' is not part of the notation"),
        ({"w": "h c, d"}, {}, SignatureError, "one tensor"),
        ({"v": "h c"}, {}, SpecError, "no tensor is called 'v'; there are w, b"),
        ({"w": "h"}, {}, SpecError, r'"h" has 1 axes, the tensor has shape \[12, 3\]'),
        ({"w": "... c"}, {}, SpecError, r"write every axis"),
        ({"w": "(h d) c"}, {}, SpecError, "the size of 'h' cannot be told; write it once: h=4"),
        ({"w": "h c", "b": "c"}, {}, SpecError, "axis 0 is c of length 3, the tensor's is 12"),
        ({"w": "(h=5 d) c"}, {}, SpecError, "axis 0 is .* of length 10, the tensor's is 12"),
        ({"w": "(h=3 _) c"}, {}, SpecError, "needs its length"),
        ({"w": "(h + 5) c", "b": "(h + 6)"}, {}, SpecError, "of length 13"),
        ({"w": "13 c"}, {}, SpecError, "axis 0 is 13 of length 13"),
        ({"w": "(h=4 d) c"}, {"d": ["z"]}, SpecError, "'d' varies over .*'z'"),
        ({"w": "(h=4 d) c"}, {"d": ["h"], "h": ["d"]}, SpecError, "varies over"),
        ({"w": "(g=2 h=2 d) c"}, {"d": ["h"], "h": ["g"]}, SpecError, "must vary over what 'h' varies over"),
        ({"w": "(h=4 d) c"}, {"q": ["h"]}, SpecError, "'q'"),
    ],
)
def test_faults_in_specifications_written_by_hand(
    patterns: dict[str, str], over: dict[str, list[str]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says.replace("'?'", r"'\?'")):
        PermutationSpec.from_patterns(patterns, LIKE, over=over)


def test_a_factor_must_have_its_own_name() -> None:
    with pytest.raises(SpecError):
        PermutationSpec({}, {}, {"a": Factor("b", 3)})


# --- the order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        (spec_of("h _", 7, 2), log10_factorial(7)),
        (spec_of("h c", 7, 4), log10_factorial(7) + log10_factorial(4)),
        (spec_of("(h=3 d)", 12), log10_factorial(3) + log10_factorial(4)),
        (spec_of("(h=3 d)", 12, d=["h"]), log10_factorial(3) + 3 * log10_factorial(4)),
        (
            spec_of("(g=2 h=3 d=4)", 24, h=["g"], d=["g", "h"]),
            log10_factorial(2) + 2 * log10_factorial(3) + 6 * log10_factorial(4),
        ),
        (spec_of("p! f", 5, 3, f=["p"]), 5 * log10_factorial(3)),
        (spec_of("(h=4 + h)", 8), log10_factorial(4)),
        (spec_of("_ 3", 8, 3), 0.0),
        (spec_of("h", 1), 0.0),
    ],
)
def test_the_order_of_the_group(spec: PermutationSpec, order: float) -> None:
    assert spec.log10_order == pytest.approx(order, rel=1e-12)


def test_groups_are_the_factors_that_vary_over_no_other_free_one() -> None:
    spec = spec_of("p! (f=2 d)", 5, 6, f=["p"], d=["p", "f"])
    assert [factor.name for factor in spec.free] == ["f", "d"]
    assert [factor.name for factor in spec.groups] == ["f"]
    assert [spec.copies(name) for name in "pfd"] == [1, 5, 10]


def test_carriers_are_pairs_of_tensor_and_axis(traced: Trace) -> None:
    spec = traced("mlp").spec
    first = spec.free[0]
    assert spec.carriers[first.name] == (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "vgg", "gpt", "attention_grouped_sdpa"])
def test_the_text_says_what_moves_and_what_does_not(name: str, traced: Trace) -> None:
    net = traced(name)
    text = str(net.spec)
    lines = [line.split() for line in text.splitlines()]
    assert f"{len(net.spec.groups)} group" in text
    assert f"10^{net.spec.log10_order:.1f} permutations" in text
    for factor in net.spec.factors.values():
        line = next(line for line in lines if line[:1] == [factor.name + "!" * factor.pinned])
        assert line[1] == str(factor.size)
        assert all(outer in " ".join(line).partition("for each ")[2] for outer in factor.over)
    for reason in {reason for reasons in net.spec.reasons.values() for reason in reasons} - {""}:
        assert re.split(" in |, ", reason)[0] in text, "without the place, so that windows of one kind are one line"
    if len(net.spec.patterns) < 40:
        for tensor, pattern in net.spec.patterns.items():
            line = next(line for line in lines if line[:1] == [tensor])
            assert "".join(map(str, pattern)).replace(" ", "") in "".join(line[2:])


def test_the_text_of_a_large_specification_is_short(traced: Trace) -> None:
    text = str(traced("resnet50").spec)
    assert len(text.splitlines()) < 150
    assert " more" in text


def test_the_text_names_ties(traced: Trace) -> None:
    assert "(tied to emb.weight)" in str(traced("tied_embedding").spec)


# --- drawing ------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_element_again() -> None:
    spec = spec_of("(g=2 h=3 d=4)", 24, h=["g"], d=["g", "h"])
    assert spec.random(5) == spec.random(5)
    assert spec.random(5) == spec.random(torch.Generator().manual_seed(5))
    assert spec.random(5) != spec.random(6)


def test_a_generator_goes_on() -> None:
    generator, spec = torch.Generator().manual_seed(0), spec_of("h", 20)
    assert spec.random(generator) != spec.random(generator)


def test_global_random_numbers_are_not_touched_by_a_seeded_draw() -> None:
    before = torch.get_rng_state()
    spec_of("h", 20).random(0)
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_elements_are_drawn_uniformly() -> None:
    """Each order of three units, inside each of two groups, as often; and the two groups independently."""
    spec, generator, draws = spec_of("(g=2 d=3)", 6, d=["g"]), torch.Generator().manual_seed(0), 3600
    elements = [spec.random(generator) for _ in range(draws)]
    orders = list(itertools.permutations(range(3)))
    count = Counter(tuple(map(tuple, element["d"].tolist())) for element in elements)
    expected = draws / 36
    assert set(count) == set(itertools.product(orders, orders))
    chi2 = sum((n - expected) ** 2 / expected for n in count.values())
    assert chi2 < 67, "a uniform draw exceeds this (35 degrees of freedom) once in a thousand times"
    assert Counter(tuple(element["g"].tolist()) for element in elements)[1, 0] == pytest.approx(draws / 2, abs=120)


# --- checking -----------------------------------------------------------------------------------------------------

RIGHT = {
    "0.weight": "a _", "0.bias": "a",
    "2.weight": "b a", "2.bias": "b",
    "4.weight": "c b", "4.bias": "c",
    "6.weight": "_ c",
}  # fmt: skip


def test_a_right_specification_written_by_hand_is_verified(traced: Trace) -> None:
    net = traced("mlp")
    assert PermutationSpec.from_patterns(RIGHT, net.model).verify(net.model, net.inputs) < 1e-12


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"2.bias": "_"}, "b"),
        ({"4.weight": "c _"}, "b"),
        ({"0.weight": "a x", "6.weight": "_ c"}, "x"),
        ({"6.bias": "y"}, "y"),
    ],
)
def test_a_wrong_specification_is_refused_and_the_factor_is_named(
    change: dict[str, str], culprit: str, traced: Trace
) -> None:
    net = traced("mlp")
    spec = PermutationSpec.from_patterns({**RIGHT, **change}, net.model)
    with pytest.raises(EquivalenceError) as caught:
        spec.verify(net.model, net.inputs)
    message = str(caught.value)
    assert f"{culprit} on " in message
    assert not any(f"{right} on " in message for right in "abc" if right != culprit)
    assert spec.carriers[culprit][0][0] in message


@pytest.mark.parametrize("seed", range(8))
def test_a_wrong_factor_of_two_units_is_named_too(seed: int) -> None:
    """Every second draw of it is the identity, which shows nothing."""
    model = randomize(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double())
    spec = PermutationSpec.from_patterns({"0.weight": "a _", "2.weight": "_ a"}, model)
    with pytest.raises(EquivalenceError, match=r"a on 0\.weight"):
        spec.verify(model, floats(4, 3)(), generator=seed)


def test_verification_leaves_the_model_alone(traced: Trace) -> None:
    model = NETWORKS["vgg"].build().float().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced("vgg").spec.verify(model, traced("vgg").inputs)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_a_model_that_changes_its_buffers_is_verified() -> None:
    """The outputs of a later call are others, whatever is permuted."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.head(torch.tanh(self.inner(x))) * self.calls

    model = Counting().double()
    patterns = {"inner.weight": "h _", "inner.bias": "h", "head.weight": "_ h"}
    spec = PermutationSpec.from_patterns(patterns, model)
    assert spec.verify(model, floats(4, 3)()) < 1e-9
    assert model.calls == 0


def test_a_model_without_floating_point_outputs_cannot_be_verified() -> None:
    class Classes(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(-1)

    model = Classes(3, 2).double()
    with pytest.raises(TraceError, match="nothing to compare"):
        PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, model).verify(model, floats(4, 3)())


def test_a_discovered_specification_can_be_pickled() -> None:
    spec = autoperm.discover(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.reasons == spec.reasons
    assert spec.inference is not None
    assert again.inference is None


def test_pinned_factors_can_be_named_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5))
    spec = autoperm.discover(net, torch.zeros(1, 3, 5, 5))
    assert spec.inference is not None
    named = spec.inference.spec(name_pinned=True)
    assert [factor.size for factor in named.factors.values()] == [8, 3, 3, 3, 5, 3, 3]
    assert [factor.name for factor in named.free] == [factor.name for factor in spec.free]
    assert named.log10_order == spec.log10_order


class Float32Inside(nn.Module):
    """A norm that computes in float32, as those of many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4096), nn.Linear(4096, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x).relu()
        norm = x.float().pow(2).cumsum(-1)[..., -1:].rsqrt() if x.ndim == 1 else x.float().pow(2).mean(-1, keepdim=True)
        return self.down(x * norm.rsqrt()).to(x.dtype)


def test_a_model_that_computes_in_float32_inside_is_judged_by_that() -> None:
    net = Float32Inside()
    x = torch.randn(5, 3)
    spec = autoperm.discover(net, x)
    assert spec.log10_order > 1000
    assert 1e-12 < spec.verify(net, (x,), tolerance=1e-15) < 1e-5
    wrong = PermutationSpec.from_patterns({"up.weight": "h _", "down.weight": "_ h"}, net)
    with pytest.raises(EquivalenceError):
        wrong.verify(net, (x,), tolerance=1e-15)


def test_a_model_that_overflows_in_float64_is_judged_in_its_own_precision() -> None:
    class Overflows(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * (float("inf") if x.dtype == torch.float64 else 1))

    net = Overflows(nn.Linear(3, 8), nn.Sigmoid(), nn.LayerNorm(8, eps=0), nn.Linear(8, 2))
    nn.init.ones_(net[0].weight)
    spec = autoperm.discover(net, torch.ones(5, 3))
    assert spec.verify(net, (torch.rand(5, 3),)) < 1e-4
    assert autoperm.probe(net, spec, (torch.rand(5, 3),)).checked

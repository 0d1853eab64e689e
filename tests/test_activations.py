"""Activations of recorded runs: what is said of their axes is right, on any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from conftest import Traced
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from strategies import Program, Sample, example_input, known_networks, programs, specs
from torch import Tensor, nn

from autoperm import Permutation, PermutationSpec
from autoperm.activations import Activation, Capture, replica
from autoperm.activations.correspondence import correspond
from autoperm.errors import ActivationsError, EvaluationError, TraceError
from autoperm.signature import Name, Product, Sum, Term, names

Trace = Callable[[str], Traced]


def batch_like(x: Tensor, size: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if x.is_floating_point():
        return torch.randn((size, *x.shape[1:]), generator=generator, dtype=x.dtype)
    return torch.randint(int(x.max()) + 1, (size, *x.shape[1:]), generator=generator)


def captured(capture: Capture, model: nn.Module, batch: object) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    capture.run(model, batch, capture.activations, lambda activation, x: found.update({activation.name: x.clone()}))
    assert list(found) == [activation.name for activation in capture.activations], "in the order of the run"
    return found


def check_patterns(model: nn.Module, first: Tensor, batch: Tensor) -> int:
    """Where parameters are permuted, activations are, as their patterns say. Return how many have factors."""
    capture = Capture.of(model, first)
    permutation = capture.spec.random(1)
    plain, moved = captured(capture, model, batch), captured(capture, permutation.apply(model), batch)
    carrying = 0
    for activation in capture.activations:
        x, factors = plain[activation.name], capture.spec.factors
        pattern = tuple(map(capture._fit, activation.pattern, x.shape))
        spec = PermutationSpec({"x": pattern}, {"x": tuple(x.shape)}, factors)
        expected = Permutation(spec, permutation.indices).apply({"x": x})["x"]
        carrying += not torch.equal(expected, x)
        scale = float(x.nan_to_num(posinf=0, neginf=0).abs().max()) if x.numel() else 0.0
        torch.testing.assert_close(moved[activation.name], expected, rtol=0, atol=1e-9 * max(scale, 1e-3))
    return carrying


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_move_as_their_patterns_say(name: str) -> None:
    network = NETWORKS[name]
    x = network.inputs()[0]
    assert check_patterns(network.build(), x, batch_like(x, len(x) + 3)) >= 1


@settings(max_examples=15)
@given(known_networks())
def test_activations_of_random_networks_move_as_their_patterns_say(sample: Sample) -> None:
    x = example_input()
    check_patterns(sample.model, x, batch_like(x, len(x)))


@example([("joined", 0, 5), ("linear", 6, 0)], 0)
@example([("written", 3, 0), ("attend", 2, 1)], 0)
@settings(max_examples=15)
@given(programs(), st.integers(0, 2))
def test_activations_of_random_programs_move_as_their_patterns_say(plan: list[tuple[str, int, int]], seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Program(plan).double().eval()
    x = example_input()
    check_patterns(model, x, batch_like(x, len(x)))


class Sorted(nn.Module):
    """Tokens sorted by their experts, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.router, self.out = nn.Linear(4, 6), nn.Linear(4, 5), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        chosen, order = self.router(x).argmax(-1).sort(stable=True)
        hidden = torch.tanh(self.inner(x)[order] + self.shift[chosen])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return self.out(hidden[back])


def test_what_is_sorted_by_units_that_move_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = Sorted().double(), torch.randn(20, 4, dtype=torch.float64)
    assert sorted(factor.size for factor in Capture.of(model, x).spec.free) == [5, 6]
    assert check_patterns(model, x, torch.randn(30, 4, dtype=torch.float64)) >= 2
    assert not [a for a in Capture.of(model, x).activations if a.op == "aten.tanh"]


def test_they_are_what_modules_return(traced: Trace) -> None:
    net = traced("residual_cnn")
    capture, x = Capture.of(net.model, net.inputs[0]), batch_like(net.inputs[0], 5)
    found = captured(capture, net.model, x)
    model, outputs = replica(net.model), {}
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, args, y, name=name: outputs.update({name: y.clone()}))
    model(x)
    assert len(outputs) > 15
    for name, output in outputs.items():
        if not isinstance(model.get_submodule(name), nn.Identity):
            inside = [a.name for a in capture.activations if a.module == name]
            torch.testing.assert_close(found[inside[-1]], output)


class InPlace(nn.Module):
    """Writes to its input, to activations and to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.add_(1)
        hidden = self.inner(x)
        hidden.relu_()
        hidden[:, :3] *= 2
        return self.out(hidden)


def test_what_is_written_in_place_is_seen_as_it_was() -> None:
    model = InPlace().double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    before = x.clone()
    capture = Capture.of(model, x)
    found = captured(capture, replica(model), x)
    hidden = model.inner(x + 1)
    torch.testing.assert_close(found["linear_2"], hidden)
    torch.testing.assert_close(next(v for n, v in found.items() if n.startswith("relu")), hidden.relu())
    assert torch.equal(x, before)
    assert model.calls == 0


def test_heads_joined_with_the_batch_come_apart_for_any_number_of_samples(traced: Trace) -> None:
    net = traced("transformer_post")
    capture = Capture.of(net.model, batch_like(net.inputs[0], 2))
    activation = next(a for a in capture.activations if a.name == "view_11")
    assert activation.shape == (5, 6, 8)
    for size in (2, 7):
        (cell,) = capture.cells(activation, (5, 3 * size, 8))
        assert cell.view(torch.zeros(5, 3 * size, 8)).shape == (5, size, 3, 8)
    with pytest.raises(ActivationsError, match="does not fit"):
        capture.cells(activation, (5, 7, 8))
    one = Capture.of(net.model, batch_like(net.inputs[0], 1))
    with pytest.raises(ActivationsError, match="the first one of more than one sample"):
        one.cells(next(a for a in one.activations if a.name == "view_11"), (5, 6, 8))


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.relu() if y.sum() > 0 else y.tanh()


class Stopping(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.relu() if y.sum() > 0 else y


@pytest.mark.parametrize(
    ("kind", "match"), [(Branching, "aten.tanh.default instead of aten.relu.default"), (Stopping, "the run ends after")]
)
def test_another_path_is_an_error(kind: type[nn.Linear], match: str) -> None:
    model = kind(2, 3)
    with torch.no_grad():
        model.weight.fill_(1)
        model.bias.zero_()
    capture = Capture.of(model, torch.ones(4, 2))
    with pytest.raises(TraceError, match=match) as error:
        capture.run(model, -torch.ones(4, 2), capture.activations, lambda *_: None)
    assert "another path" in str(error.value)


def test_inputs_that_the_model_does_not_take_are_an_error() -> None:
    model = nn.Linear(2, 3)
    with pytest.raises(
        EvaluationError, match=r"Linear does not run on a batch \(float32\[4, 5\]\)\n  RuntimeError: mat1"
    ):
        Capture.of(model, torch.ones(4, 5))
    with pytest.raises(EvaluationError, match="empty tuple"):
        Capture.of(model, ())


def test_values_that_carry_nothing_are_not_activations() -> None:
    """Integers, and what no parameter flows into."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.inner(x * 2)
            return hidden * (hidden > 0)

    names = [activation.name for activation in Capture.of(Model(), torch.ones(3, 2)).activations]
    assert names == ["linear_1", "mul_3"]


def test_what_stands_for_an_activation(traced: Trace) -> None:
    net = traced("gpt")
    activations = {activation.name: activation for activation in Capture.of(net.model, net.inputs[0]).activations}

    def those(choose: Callable[[Activation], bool]) -> Sequence[str]:
        return [name.rpartition("_")[0] for name, activation in activations.items() if choose(activation)]

    assert those(lambda a: a.nonlinear) == ["gelu", "gelu"]
    assert those(lambda a: a.feeds) == ["linear", "linear"]
    assert "softmax" not in those(lambda a: a.inside)
    assert {"matmul", "div", "masked_fill"} <= set(those(lambda a: a.inside))
    assert those(lambda a: a.inside).count("matmul") == 2, "scores, not what is read by them"
    gelu = next(activation for activation in activations.values() if activation.nonlinear)
    assert gelu.module == "blocks.1.2"
    assert str(gelu).startswith(f'{gelu.name} [2, 7, 32] "_ _ ')


# --- factors of two specifications


def renamed(term: Term) -> Term:
    if isinstance(term, Name):
        return Name(f"z-{term.name}")
    return type(term)(tuple(map(renamed, term.terms))) if isinstance(term, (Product, Sum)) else term


@given(specs())
def test_factors_are_recognised_under_other_names(spec: PermutationSpec) -> None:
    patterns = {tensor: tuple(map(renamed, pattern)) for tensor, pattern in spec.patterns.items()}
    factors = [replace(f, name=f"z-{f.name}", over=tuple(f"z-{o}" for o in f.over)) for f in spec.factors.values()]
    found = correspond(spec, PermutationSpec(patterns, spec.shapes, {f.name: f for f in factors}))
    assert all(other == f"z-{name}" for name, other in found.items() if spec.factors[name].size > 1)
    axes = [list(names(term)) for pattern in spec.patterns.values() for term in pattern]
    clear = {name for axis in axes for name in axis if axis.count(name) == 1 and spec.factors[name].size > 1}
    assert clear <= found.keys()


def test_factors_are_recognised_where_some_are_pinned(traced: Trace) -> None:
    net = traced("grouped_conv")
    coarse = {"0.weight": "(g=4 i=3) _ _ _", "0.bias": "(g i)", "2.weight": "(g 5) i _ _", "2.bias": "(g 5)"}
    given = PermutationSpec.from_patterns({**coarse, "4.weight": "_ (g 5) _ _"}, net.model, over={"i": ["g"]})
    assert correspond(net.spec, given) == {"a": "g", "b": "i"}


def test_a_factor_that_is_two_of_another_specification_is_neither() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    one = PermutationSpec.from_patterns({"0.weight": "h _", "1.weight": "_ h"}, net)
    two = PermutationSpec.from_patterns({"0.weight": "a _", "1.weight": "_ b"}, net)
    assert correspond(one, two) == {}
    assert correspond(two, one) == {"a": "h", "b": "h"}

"""The front door: two models in, one of them moved."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, floats, randomize
from torch import Tensor, nn

from autoperm import Permutation, PermutationSpec, align, discover, interpolate, weight_matching
from autoperm.errors import ArchitectureError, AutopermError, EquivalenceError, SpecError, TraceError, WeightsError


class LastStep(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0][:, -1]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 9, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def text() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 12), nn.LayerNorm(12), nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 4))


def recurrent() -> nn.Module:
    return nn.Sequential(nn.LSTM(6, 10, num_layers=2, batch_first=True), LastStep(), nn.Linear(10, 4))


# How to build the model, and inputs of a batch size that is not the one that is tried when none are given.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: floats(7, 6)()[0]),
    "cnn": (cnn, lambda: floats(7, 3, 8, 8)()[0]),
    "text": (text, lambda: torch.arange(35).view(7, 5) % 11),
    "lstm": (recurrent, lambda: floats(7, 3, 6)()[0]),
}


def two(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    a, b = (randomize(build().double().eval(), seed) for seed in (1, 2))
    return a, b


def check_same_function(a: nn.Module, b: nn.Module, x: Tensor | dict[str, Tensor], tolerance: float = 1e-9) -> None:
    with torch.no_grad():
        expected = a(x)
        torch.testing.assert_close(b(x), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(float((x - y).detach().square().sum()) for x, y in pairs)


# --- one call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["found", "tensor", "tuple", "dict"])
@pytest.mark.parametrize("name", MODELS)
def test_one_call_aligns(name: str, how: str) -> None:
    build, inputs = MODELS[name]
    (a, b), x = two(build), inputs()
    given = {"found": None, "tensor": x, "tuple": (x,), "dict": {"input": x}}[how]
    result = align(a, b, example_inputs=given)
    check_same_function(b, result.model, x)
    assert distance(a, result.model) < distance(a, b)
    assert result.error is not None
    assert result.error < 1e-9
    assert result.match is not None
    assert result.match.permutation == result.permutation
    assert not result.permutation.is_identity
    torch.testing.assert_close(
        dict(result.model.state_dict()), dict(result.permutation.apply(b).state_dict()), rtol=0, atol=0
    )
    assert result.spec == discover(a, x)


@pytest.mark.parametrize(
    "name", ["vgg", "lstm", "transformer_pre", "gpt", "grouped_conv", "tied_embedding", "residual_cnn"]
)
def test_networks_are_aligned(name: str) -> None:
    network = NETWORKS[name]
    a, b, inputs = network.build(), randomize(network.build(), 99), network.inputs()
    result = align(a, b, example_inputs=inputs)
    check_same_function(b, result.model, inputs[0])
    assert distance(a, result.model) < distance(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_neither_model_is_changed(name: str) -> None:
    a, b = two(MODELS[name][0])
    for model in (a, b):
        model.train()
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(i % 2 == 0)
    before = [(copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]) for model in (a, b)]
    result = align(a, b)
    for model, (state, ids) in zip((a, b), before, strict=True):
        torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        assert [id(p) for p in model.parameters()] == ids
        assert all(module.training for module in model.modules())
        assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in result.model.modules()), "it is B's copy, in B's mode"
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in b.parameters()]
    shared = {p.data_ptr() for m in (a, b) for p in m.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert not shared


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_led_back(name: str) -> None:
    build, inputs = MODELS[name]
    a, x = two(build)[0], inputs()
    b = discover(a, x).random(3).apply(a)
    result = align(a, b)
    torch.testing.assert_close(dict(result.model.state_dict()), dict(a.state_dict()), rtol=0, atol=0)
    labels = a(x).argmax(-1)

    def evaluate(model: nn.Module) -> dict[str, float]:
        y = model(x)
        loss = F.cross_entropy(y.flatten(0, -2), labels.flatten()).item()
        return {"loss": loss, "accuracy": (y.argmax(-1) == labels).double().mean().item()}

    with torch.no_grad():
        before = interpolate(a, b, evaluate, points=11)
        after = interpolate(a, result.model, evaluate, points=11)
    assert before.barrier() > 0.01
    assert after.barrier() == pytest.approx(0, abs=1e-12)
    assert after.barrier("accuracy") == pytest.approx(0, abs=1e-12)


def test_buffers_move_with_the_parameters() -> None:
    """But only parameters are matched: the statistics depend on data."""
    a, b = two(cnn)
    result = align(a, b)
    by_parameters = weight_matching(result.spec, dict(a.named_parameters()), dict(b.named_parameters()))
    assert by_parameters.permutation == result.permutation
    factor = next(f.name for f in result.spec.free if ("1.running_mean", 0) in result.spec.carriers[f.name])
    index = result.permutation[factor]
    torch.testing.assert_close(result.model[1].running_mean, b[1].running_mean[index], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    a, b = (model.to(dtype) for model in two(mlp))
    result = align(a, b)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.error is not None
    assert result.error < 1e-9, "the check is in double precision whatever the models are in"
    check_same_function(b, result.model, floats(7, 6)()[0].to(dtype), tolerance=0.05 if dtype.itemsize < 4 else 1e-5)


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_text_says_what_was_found_matched_checked_and_left_alone() -> None:
    a, b = two(mlp)
    result = align(a, b)
    report = str(result)
    assert result.match is not None
    assert "Alignment of Sequential" in report
    assert re.search(rf"found: +2 groups, 10\^{result.spec.log10_order:.1f} permutations", report)
    assert re.search(r"matched: +objective \S+ -> \S+, converged after \d+ sweeps", report)
    assert f"{result.match.objective[0]:.4g} -> {result.match.objective[-1]:.4g}" in report
    assert re.search(r"checked: +the model computes what B computes, to \de-\d\d", report)
    assert "left alone" in report
    assert "model output" in report
    assert "0.weight[0]" in report
    assert str(align(a, b)) == report


def test_the_text_says_what_was_not_checked() -> None:
    result = align(*two(mlp), check=False)
    assert result.error is None
    assert re.search(r"checked: +not checked", str(result))


def test_the_text_has_operations_without_a_rule() -> None:
    class Ranked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.qr(x).R

    a, b = two(lambda: nn.Sequential(nn.Linear(6, 12), Ranked(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)))
    report = str(align(a, b))
    assert "no rule" in report
    assert "aten.linalg_qr" in report
    assert "autoperm.register(" in report


def test_the_text_of_heads_counts_them() -> None:
    network = NETWORKS["transformer_pre"]
    report = str(align(network.build(), randomize(network.build(), 9), example_inputs=network.inputs()))
    assert "with 4 more factors inside" in report
    assert re.search(r"4 x 4 ", report)


# --- models that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), "4.weight: only in A"),
        (lambda: nn.Sequential(*mlp(), nn.Linear(4, 4)), "5.weight: only in B"),
        (
            lambda: nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 10), nn.ReLU(), nn.Linear(10, 4)),
            "0.weight: shape",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 12, bias=False), *list(mlp())[1:]), "0.bias: only in A"),
    ],
)
def test_other_architectures_are_refused(other: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ArchitectureError, match=re.escape(says)):
        align(mlp(), other())


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"0\.weight: torch\.float32 in A, torch\.float64 in B"):
        align(mlp(), mlp().double())


@pytest.mark.parametrize("which", ["model A", "model B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(which: str, value: float) -> None:
    a, b = two(mlp)
    with torch.no_grad():
        (a if which == "model A" else b)[2].weight[3, 4] = value
    with pytest.raises(WeightsError, match=rf"{which} has NaN or infinite values[\s\S]*2\.weight: 1 of 120"):
        align(a, b)


def test_statistics_that_are_not_finite_are_refused() -> None:
    a, b = two(cnn)
    b[1].running_var[2] = float("nan")
    with pytest.raises(WeightsError, match=r"1\.running_var"):
        align(a, b)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TraceError, match=r"float32\[2, 7\]"):
        align(mlp(), mlp(), example_inputs=torch.zeros(2, 7))


class Heads(nn.Module):
    def __init__(self, heads: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.inner, self.qkv, self.out, self.head = (
            nn.Linear(6, 12),
            nn.Linear(12, 36),
            nn.Linear(12, 12),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.activation(x + self.out(y)))


def test_another_number_of_heads_of_the_same_shapes_is_never_wrong_in_silence() -> None:
    a, b = randomize(Heads(6).double().eval(), 1), randomize(Heads(2).double().eval(), 2)
    x = floats(2, 5, 6)()[0]
    with pytest.raises(EquivalenceError, match="different options") as caught:
        align(a, b, example_inputs=x, matcher=lambda spec, *_: spec.random(0))  # it does move heads
    assert "spec" in str(caught.value), "what to do"
    result = align(a, b, example_inputs=x, spec=discover(b, x), matcher=lambda spec, *_: spec.random(0))
    assert not result.permutation.is_identity
    check_same_function(b, result.model, x)


def test_another_activation_is_no_harm() -> None:
    a, b = randomize(Heads(3).double().eval(), 1), randomize(Heads(3, torch.sin).double().eval(), 2)
    x = floats(2, 5, 6)()[0]
    check_same_function(b, align(a, b, example_inputs=x).model, x)


# --- specifications and matchers of one's own ---------------------------------------------------------------------

PATTERNS = {"0.weight": "p _", "0.bias": "p", "2.weight": "q p", "2.bias": "q", "4.weight": "_ q"}


def test_a_specification_may_be_given() -> None:
    a, b = two(mlp)
    spec = PermutationSpec.from_patterns(PATTERNS, a)
    result = align(a, b, spec=spec)
    assert result.spec is spec
    check_same_function(b, result.model, floats(7, 6)()[0])
    torch.testing.assert_close(dict(result.model.state_dict()), dict(align(a, b).model.state_dict()), rtol=0, atol=0)


def test_a_wrong_specification_never_comes_through() -> None:
    a, b = two(mlp)
    spec = PermutationSpec.from_patterns({**PATTERNS, "2.bias": "_"}, a)
    with pytest.raises(EquivalenceError, match=r"spec\.verify"):
        align(a, b, spec=spec)


def test_a_specification_of_another_model_is_refused() -> None:
    a, b = two(mlp)
    with pytest.raises(SpecError):
        align(a, b, spec=discover(nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 4))))


def test_given_specification_and_no_check_need_no_inputs() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.w = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(4, 2))

        def forward(self, batch: dict[str, Tensor]) -> Tensor:  # which nobody guesses
            return torch.relu(batch["x"] @ self.v) @ self.w

    a, b = two(Own)
    spec = PermutationSpec.from_patterns({"v": "_ h", "w": "h _"}, a)
    result = align(a, b, spec=spec, check=False)
    check_same_function(b, result.model, {"x": floats(5, 3)()[0]})
    with pytest.raises(TraceError, match="no example inputs"):
        align(a, b, spec=spec)


def test_a_matcher_is_any_callable() -> None:
    a, b = two(cnn)
    seen: list[tuple[PermutationSpec, Mapping[str, Tensor], Mapping[str, Tensor]]] = []

    def matcher(
        spec: PermutationSpec, params_a: Mapping[str, Tensor], params_b: Mapping[str, Tensor], /
    ) -> Permutation:
        seen.append((spec, params_a, params_b))
        return spec.random(0)

    result = align(a, b, matcher=matcher)
    ((spec, params_a, params_b),) = seen
    assert spec is result.spec
    assert result.match is None
    assert result.permutation == spec.random(0)
    assert params_a.keys() == params_b.keys() == dict(a.named_parameters()).keys()
    assert not any(p.requires_grad for p in [*params_a.values(), *params_b.values()])
    torch.testing.assert_close(dict(params_b), {n: p.detach() for n, p in b.named_parameters()}, rtol=0, atol=0)
    check_same_function(b, result.model, floats(7, 3, 8, 8)()[0])
    assert "matched" not in str(result)


def test_an_unknown_matcher_lists_those_there_are() -> None:
    with pytest.raises(AutopermError, match=r"no matcher is called 'wieght'; there are 'weight'"):
        align(*two(mlp), matcher="wieght")


def test_the_result_of_a_training_step_can_be_aligned() -> None:
    """Gradients that hang on the parameters are no obstacle."""
    a, b = two(mlp)
    for model in (a, b):
        model(floats(7, 6)()[0]).square().sum().backward()
    result = align(a, b)
    check_same_function(b, result.model, floats(7, 6)()[0])

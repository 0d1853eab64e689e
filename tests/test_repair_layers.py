"""Which layers REPAIR finds, and why it leaves others alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import NETWORKS, randomize
from torch import Tensor, nn
from torch.nn import functional as F

from autoperm import repair
from autoperm.activations import Capture
from autoperm.errors import ArchitectureError, SpecError
from autoperm.graph import Call, Value, Where
from autoperm.repair.affine import affine, numbers
from autoperm.repair.layers import Layer, LeftAlone, find_layers, in_levels
from autoperm.repair.operands import Operands


def found(model: nn.Module, x: Tensor, wanted: list[str] | None = None) -> tuple[list[Layer], list[LeftAlone]]:
    return find_layers(Capture.of(model, x), model, wanted)


def of(name: str, wanted: list[str] | None = None) -> tuple[list[str], dict[str, str]]:
    network = NETWORKS[name]
    layers, alone = found(network.build(), network.inputs()[0], wanted)
    return [layer.name for layer in layers], {layer.name: layer.reason for layer in alone}


class With(nn.Module):
    """Some parameters and buffers, and any forward."""

    def __init__(self, forward: Callable[[With, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.call = forward

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.call(self, x)).sum(-1)


# ------------------------------------------------------------------------------------------------ what can be repaired


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlp", ["0", "2", "4"]),
        ("residual_mlp", ["0", "1.0", "1.2", "2.0", "2.2"]),
        ("unet", ["enc1", "enc2", "up", "dec"]),
        ("layernorm_mlp", ["1", "4"]),
        ("mlp_batchnorm1d", ["1", "4"]),
        ("depthwise_groupnorm", ["0", "2"]),
        ("shared_layer", ["emb"]),
        ("tied_embedding", ["fc1", "fc2"]),
        ("swiglu", ["0", "1.1.gate_up", "1.1.down"]),
        ("attention_rotary", ["emb", "q", "k", "v", "out"]),
    ],
)
def test_hidden_layers_are_found(name: str, layers: list[str]) -> None:
    assert of(name)[0] == layers


def test_pinned_hidden_channels_are_found_too() -> None:
    """Averaging takes variance from channels that may not be permuted as from others."""
    network = NETWORKS["attention_rotary"]
    capture = Capture.of(network.build(), network.inputs()[0])
    assert capture.spec.reasons["q.weight"][0]
    assert "q" in of("attention_rotary")[0]


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("mlp", "6", "its output is the model's"),
        ("shared_layer", "lin", "lin.weight is used more than once"),
        ("tied_embedding", "emb", "its output is the model's"),
        ("lstm", "rnn", "its weights are used at every step"),
        ("gpt", "tokens", "a table of values has no channel-wise bias"),
        ("weight_norm_mlp", "0", "its weight is computed"),
        ("layernorm_mlp", "0", "1, which normalises its output, is repaired"),
        ("norm_of_sum", "out", "the model puts its channels out"),
    ],
)
def test_why_layers_are_left_alone(name: str, layer: str, reason: str) -> None:
    layers, alone = of(name)
    assert layer not in layers
    assert alone[layer] == reason


def test_a_reason_comes_with_the_line_of_source() -> None:
    network = NETWORKS["shared_layer"]
    _, alone = found(network.build(), network.inputs()[0])
    assert "self.lin(self.emb(x))" in str(next(layer for layer in alone if layer.name == "lin"))


CASES: dict[str, tuple[With, list[tuple[str, str]]]] = {
    "a product and an addition": (With(lambda m, x: x @ m.w + m.b, w=(4, 6), b=(6,)), [("w", "b")]),
    "the addition first": (With(lambda m, x: m.b + x @ m.w, w=(4, 6), b=(1, 6)), [("w", "b")]),
    "transposed": (With(lambda m, x: torch.matmul(x, m.w.t()) + m.b, w=(6, 4), b=(6,)), [("w", "b")]),
    "the weight on the left": (With(lambda m, x: (m.w @ x.t() + m.b).t(), w=(6, 4), b=(6, 1)), [("w", "b")]),
    "in place": (With(lambda m, x: (x @ m.w).add_(m.b), w=(4, 6), b=(6,)), [("w", "b")]),
    "addmm": (With(lambda m, x: torch.addmm(m.b, x, m.w), w=(4, 6), b=(6,)), [("w", "b")]),
    "einsum": (With(lambda m, x: torch.einsum("ni,hic->nhc", x, m.w) + m.b, w=(3, 4, 2), b=(3, 2)), [("w", "b")]),
    "scale and shift": (With(lambda m, x: x / (1 + x.abs()) * m.w + m.b, w=(4,), b=(4,)), [("w", "b")]),
    "a scale alone": (With(lambda m, x: x * m.w, w=(4,)), []),
    "no bias": (With(lambda m, x: x @ m.w, w=(4, 6)), [("w", "")]),
    "a bias with one more axis": (With(lambda m, x: (x[:, None] @ m.w) + m.b, w=(4, 6), b=(1, 6)), [("w", "b")]),
    "a bias for each sample": (With(lambda m, x: x @ m.w + m.b, w=(4, 6), b=(5, 6)), [("w", "")]),
    "half a sum": (With(lambda m, x: torch.add(x @ m.w, m.b, alpha=2), w=(4, 6), b=(6,)), [("w", "")]),
    "a fused weight": (
        With(lambda m, x: F.linear(x, m.w[:3], m.b[:3]) * F.linear(x, m.w[3:], m.b[3:]), w=(6, 4), b=(6,)),
        [("w", "b"), ("w", "b")],
    ),
    "overlapping parts": (
        With(lambda m, x: F.linear(x, m.w[:4], m.b[:4]) * F.linear(x, m.w[2:], m.b[2:]), w=(6, 4), b=(6,)),
        [],
    ),
    "a shared bias": (
        With(lambda m, x: F.linear(x, m.w, m.b) * F.linear(x, m.v, m.b), w=(6, 4), v=(6, 4), b=(6,)),
        [],
    ),
    "an expanded weight": (With(lambda m, x: F.linear(x, m.w.expand(6, 4), m.b), w=(1, 4), b=(6,)), []),
    "a converted weight": (
        With(lambda m, x: F.linear(x.double(), m.w.double(), m.b.double()), w=(6, 4), b=(6,)),
        [],
    ),
    "a computed bias": (With(lambda m, x: F.linear(x, m.w, m.b.exp()), w=(6, 4), b=(6,)), []),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_and_biases_of_no_module(name: str) -> None:
    model, expected = CASES[name]
    layers, _ = found(model, torch.randn(5, 4))
    assert [(x.weight.parameter, x.bias.parameter if x.bias else "") for x in layers] == expected


@pytest.mark.parametrize("name", [name for name, (_, layers) in CASES.items() if layers])
def test_folding_scales_and_shifts_each_channel(name: str) -> None:
    """Three random ends at odds with each other: the channels of every layer take their statistics."""
    model = copy.deepcopy(CASES[name][0]).double()
    ends = [randomize(copy.deepcopy(model), seed) for seed in range(3)]
    data = [torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    repaired = repair(ends[0], ends, data, (0.2, 0.4, 0.4), bias="scale", tolerance=1e-9)
    assert repaired.error < 1e-9
    assert any(layer.scale != 1 for layer in repaired.layers)


def test_a_transposed_convolution_with_groups() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 1, 1)).double()
    ends = [randomize(copy.deepcopy(model), seed) for seed in range(2)]
    x = torch.randn(8, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    repaired = repair(ends[0], ends, [x], (0.0, 1.0)).model

    def deviation(model: nn.Module) -> Tensor:
        return next(model.children())(x).transpose(0, 1).flatten(1).std(1, correction=0)

    torch.testing.assert_close(deviation(repaired), deviation(ends[1]), rtol=1e-9, atol=1e-9)


def test_inputs_without_a_batch_axis() -> None:
    layers, _ = found(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(3, 8, 8))
    assert [layer.axes for layer in layers] == [(0,)]


# ------------------------------------------------------------------------------------------------- which are chosen


def test_layers_are_chosen_by_name() -> None:
    assert of("layernorm_mlp", ["0", "*.weight"])[0] == ["0", "1", "3", "4"]
    assert of("layernorm_mlp", ["[03]"])[0] == ["0", "3"], "before the norms"
    assert of("layernorm_mlp", ["*"])[0] == ["0", "1", "3", "4"]


def test_all_and_one_name() -> None:
    network = NETWORKS["layernorm_mlp"]
    model, x = network.build(), network.inputs()[0]
    assert len(repair(model, [model], [x], layers="all").layers) == 4
    assert [layer.name for layer in repair(model, [model], [x], layers="3").layers] == ["3"]


def test_a_name_that_fits_nothing() -> None:
    with pytest.raises(SpecError, match="no layer that can be repaired is named 'conv'") as error:
        of("mlp", ["0", "conv"])
    assert str(error.value).endswith("there are: 0, 2, 4")
    with pytest.raises(SpecError, match=r"lin: lin\.weight is used more than once"):
        of("shared_layer", ["lin"])


def test_levels_are_what_gets_nothing_from_each_other() -> None:
    network = NETWORKS["attention_einsum"]
    model = network.build()
    capture = Capture.of(model, network.inputs()[0])
    layers, _ = find_layers(capture, model, None)
    levels = in_levels(layers, capture.recording.graph)
    assert [[layer.name for layer in level] for level in levels] == [["emb"], ["q", "k", "v"], ["out"]]


# ---------------------------------------------------------------------------------------------------- missing biases


def without_biases() -> tuple[list[nn.Module], list[Tensor]]:
    build = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.Linear(5, 2)
    )
    models: list[nn.Module] = [randomize(copy.deepcopy(build).double(), seed) for seed in range(2)]
    return models, [torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]


def test_a_missing_bias_is_an_error() -> None:
    models, data = without_biases()
    with pytest.raises(ArchitectureError) as error:
        repair(models[0], models, data)
    lines = str(error.value).splitlines()
    assert lines[0] == "2 layers have no bias in which to fold the repair of the means:"
    assert [line.split(",")[0] for line in lines[1:3]] == ["  0 (linear)", "  4 (linear)"]
    assert all(f"bias='{choice}'" in lines[-1] for choice in ("scale", "add", "skip"))


def test_scaling_alone() -> None:
    models, data = without_biases()
    repaired = repair(models[0], models, data, bias="scale")
    assert [layer.name for layer in repaired.layers] == ["0", "2", "4"]

    def deviation(model: nn.Module) -> Tensor:
        return next(model.children())(data[0]).std(0, correction=0)

    torch.testing.assert_close(deviation(repaired.model), (deviation(models[0]) + deviation(models[1])) / 2)


def test_adding_biases() -> None:
    models, data = without_biases()
    repaired = repair(models[0], models, data, bias="add")
    names = {name for name, _ in repaired.model.named_parameters()}
    assert names - {name for name, _ in models[0].named_parameters()} == {"0.bias", "4.bias"}
    assert repaired.error < 1e-9
    layer = next(repaired.model.children())
    first, *ends = (next(model.children())(data[0]).mean(0) for model in (repaired.model, *models))
    assert isinstance(layer, nn.Linear)
    torch.testing.assert_close(first, (ends[0] + ends[1]) / 2)


def test_skipping() -> None:
    models, data = without_biases()
    repaired = repair(models[0], models, data, bias="skip")
    assert [layer.name for layer in repaired.layers] == ["2"]
    assert {layer.name for layer in repaired.left_alone if layer.reason == "it has no bias"} == {"0", "4"}


def test_no_module_for_a_bias() -> None:
    model = CASES["no bias"][0]
    with pytest.raises(ArchitectureError, match=r"1 layer has no bias, and no module to which one can be added:\n  w"):
        repair(model, [model], [torch.randn(5, 4)], bias="add")


def test_nothing_to_repair() -> None:
    network = NETWORKS["lstm"]
    model = network.build()
    with pytest.raises(ArchitectureError, match="no layer that can be repaired:\n  rnn: its weights are used"):
        repair(model, [model], list(network.inputs()))


# --------------------------------------------------------------------------------------------------------- operations


def test_channels_of_a_weight() -> None:
    assert numbers((5, 6), (1,), (None, 1)).shape == (1, 6)
    x, w, y = Value("x", (2, 4, 8)), Value("w", (4, 3, 5), "parameter"), Value("y", (2, 6, 8))
    call = Call(torch.ops.aten.conv_transpose1d.default, (x, w, None, [1], [0], [0], 2), {}, (y,), Where())
    step = affine(call, lambda operand: operand is w)
    assert step is not None
    assert step.axes == (1,)
    assert step.channels[..., 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]


@pytest.mark.parametrize("equation", ["ni,io", "...i,io->...o", "ni,ii->ni", "ni,io->n"])
def test_products_that_are_no_layers(equation: str) -> None:
    size = 4 if "ii" in equation else 6
    model = With(lambda m, x: torch.einsum(equation, x, m.w).reshape(5, -1), w=(4, size))
    assert found(model, torch.randn(5, 4))[0] == []


def test_views_of_parameters() -> None:
    model = With(lambda m, x: F.linear(x, m.w.view(2, 3, 4)[1]), w=(6, 4))
    graph = Capture.of(model, torch.randn(5, 4)).recording.graph
    operands = Operands(graph)
    call = next(call for call in graph.calls if "linear" in str(call.op))
    view = operands.view(call.args[1])
    assert view is not None
    torch.testing.assert_close(view.within(model), model.get_parameter("w").detach()[3:], rtol=0, atol=0)
    assert operands.view(call.args[0]) is None
    assert operands.view("w") is None

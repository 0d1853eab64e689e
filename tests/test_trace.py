"""Tracing: functional graphs, where calls come from, constants, and messages for models that cannot be traced."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Groups, floats, randomize
from torch import Tensor, nn

from autoperm import discover
from autoperm.errors import AutopermError, TraceError
from autoperm.graph import Call, Graph, Value
from autoperm.rules import op_name
from autoperm.trace import trace

# --- writes in place ----------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Two layers, and between them something that is written in place."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.write = write
        self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        self.write(x)
        return self.head(torch.tanh(x))


def to_slice(x: Tensor) -> None:
    x[:, :5] = torch.sin(x[:, :5])


def to_part(x: Tensor) -> None:
    x[:, 3] = x[:, 3] * 2


def to_rows_of_view(x: Tensor) -> None:
    x.view(-1, 3, 4)[:, 1].add_(1.0)


def through_transpose(x: Tensor) -> None:
    x.t()[2] *= 3


def to_places(x: Tensor) -> None:
    x.index_put_((torch.tensor([0, 1, 2]), torch.tensor([4, 4, 7])), torch.tensor(2.0, dtype=x.dtype))


def to_steps(x: Tensor) -> None:
    x[:, ::2] += 1


def into_all(x: Tensor) -> None:
    x.add_(1.0).mul_(2.0)


# What is written only on a part of the channels divides them: units may move within the parts.
WRITES: dict[str, tuple[Callable[[Tensor], object], Groups]] = {
    "slice": (to_slice, [(5, 1), (7, 1)]),
    "part": (to_part, [(3, 1), (8, 1)]),
    "view": (to_rows_of_view, [(4, 1), (4, 1), (4, 1)]),
    "transpose": (through_transpose, [(2, 1), (9, 1)]),
    "all": (into_all, [(12, 1)]),
}
# No rule says how these divide the channels; nothing is lost by pinning but symmetries.
COARSE: dict[str, Callable[[Tensor], object]] = {"index_put": to_places, "steps": to_steps}


@pytest.mark.parametrize("name", WRITES)
def test_writes_in_place_divide_the_channels(name: str) -> None:
    write, groups = WRITES[name]
    model, inputs = randomize(Writes(write).double().eval()), floats(3, 6)()
    spec = discover(model, inputs)
    assert sorted((factor.size, spec.copies(factor)) for factor in spec.free) == groups
    assert spec.verify(model, inputs, draws=5, tolerance=1e-9) < 1e-9


@pytest.mark.parametrize("name", COARSE)
def test_writes_that_no_rule_knows_are_sound(name: str) -> None:
    model, inputs = randomize(Writes(COARSE[name]).double().eval()), floats(3, 6)()
    spec = discover(model, inputs)
    assert all(factor.size < 12 for factor in spec.free), "moving all channels at once would be wrong"
    assert spec.verify(model, inputs, draws=5, tolerance=1e-9) < 1e-9


def operations(graph: Graph) -> list[str]:
    return [op_name(call.op) for call in graph.calls]


def check_functional(graph: Graph) -> None:
    """No call writes to what it is given, and every value is made once, before it is used."""
    tensors = {id(value) for value in graph.tensors.values()}
    made = tensors | {id(value) for value in graph.inputs}
    for call in graph.calls:
        schema = getattr(call.op, "_schema", None)
        assert schema is None or not schema.is_mutable, call.op
        for operand in call.operands():
            assert id(operand) in made or operand.kind == "constant", operand
        for result in call.results:
            if result is not None:
                assert id(result) not in made
                made.add(id(result))
    assert all(id(value) in made or value.kind == "constant" for value in graph.outputs)


@pytest.mark.parametrize("name", [*WRITES, *COARSE])
def test_graphs_of_models_that_write_in_place_are_functional(name: str) -> None:
    write = WRITES[name][0] if name in WRITES else COARSE[name]
    graph = trace(Writes(write).double().eval(), floats(3, 6)())
    check_functional(graph)
    assert operations(graph) != operations(trace(Writes(lambda x: x).double().eval(), floats(3, 6)()))


@pytest.mark.parametrize("name", ["vgg", "lstm", "gpt", "transformer_post", "attention_rotary", "vit"])
def test_graphs_are_functional(name: str) -> None:
    network = NETWORKS[name]
    check_functional(trace(network.build(), network.inputs()))


def test_structured_operations_stay_whole() -> None:
    """The rules are about these; their decompositions would be many calls that say less."""
    network = NETWORKS["transformer_pre"]
    found = operations(trace(network.build(), network.inputs()))
    assert {"aten.linear", "aten.layer_norm", "aten.scaled_dot_product_attention"} <= set(found)
    network = NETWORKS["vgg"]
    assert {"aten.conv2d", "aten._native_batch_norm_legit_no_training"} <= set(
        operations(trace(network.build(), network.inputs()))
    )


def test_what_a_model_writes_to_a_buffer_is_kept() -> None:
    """The next run reads it there, so it moves as the buffer does."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
            self.register_buffer("mean", torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.inner(x))
            self.mean.mul_(0.9).add_(x.mean(0))
            return self.head(x)

    model = Counting().double().eval()
    graph = trace(model, floats(3, 6)())
    check_functional(graph)
    assert len(graph.outputs) == 1
    ((_, own),) = graph.written
    assert own is graph.tensors["mean"]
    assert [factor.size for factor in discover(model, floats(3, 6)()).free] == [12]


# --- where ---------------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)  # this line


def the_call(graph: Graph, name: str) -> Call:
    (call,) = [call for call in graph.calls if op_name(call.op) == name]
    return call


def test_a_call_knows_the_module_and_the_line_that_made_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), Inner()), nn.Linear(4, 2))
    where = the_call(trace(model, (torch.zeros(2, 3),)), "aten.sigmoid").where
    assert where.module == "1.1"
    file, line, code = where.source.split(":", 2)
    assert file == __file__
    assert "this line" in linecache.getline(file, int(line))
    assert code.strip().startswith("return torch.sigmoid(x)")
    assert str(where) == f"in 1.1, {where.source}"


def test_a_call_of_the_outermost_module_has_only_its_line() -> None:
    where = the_call(trace(Inner(), (torch.zeros(2, 3),)), "aten.sigmoid").where
    assert where.module == ""
    assert str(where).startswith(__file__)


# --- constants -----------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """A mask that is computed from nothing but sizes and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.register_buffer("offset", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(5, device=x.device) * 2 > self.offset + 1
        return self.inner(x).masked_fill(mask, 0.0)


def test_what_no_parameter_feeds_is_folded() -> None:
    graph = trace(Masked(), (torch.zeros(2, 6),))
    assert operations(graph) == ["aten.linear", "aten.masked_fill"]
    mask = graph.calls[1].args[1]
    assert isinstance(mask, Value)
    assert mask.kind == "constant"
    assert mask.data is not None
    assert mask.data.tolist() == [False, False, True, True, True]


def test_values_know_whether_parameters_flow_into_them() -> None:
    graph = trace(Masked(), (torch.zeros(2, 6),))
    assert [value.fed for value in graph.inputs] == [False]
    assert all(result is not None and result.fed for call in graph.calls for result in call.results)


def test_draws_of_random_numbers_are_not_constants() -> None:
    """They are others in the next call."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(6)

    graph = trace(Noisy(), (torch.zeros(2, 6),))
    assert "aten.rand" in operations(graph)
    assert all(value.data is None for call in graph.calls for value in call.operands())


# --- what cannot be traced -----------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if x.sum() > 0:  # the branch
            return torch.relu(x)
        return x


def line_of(function: Callable[..., Any], text: str) -> int:
    code = function.__code__
    return next(
        n for n in range(code.co_firstlineno, code.co_firstlineno + 50) if text in linecache.getline(__file__, n)
    )


@pytest.mark.parametrize("call", [discover, lambda model, inputs: trace(model, (inputs,))])
def test_control_flow_that_depends_on_data_needs_data(call: Callable[..., object]) -> None:
    with torch.device("meta"), pytest.raises(TraceError) as caught:
        call(Branching().double(), torch.empty(3, 6, dtype=torch.float64))
    message = str(caught.value)
    assert "torch.export cannot take Branching" in message, "what"
    assert f"{__file__}:{line_of(Branching.forward, '# the branch')}" in message, "where"
    assert "float64[3, 6]" in message, "with which shapes"
    assert "meta device" in message, "why it cannot be recorded either"
    assert "model.to_empty" in message, "what to do"


def test_inputs_of_a_wrong_size() -> None:
    with pytest.raises(TraceError) as caught:
        discover(nn.Sequential(nn.Linear(6, 4)), torch.zeros(3, 7))
    message = str(caught.value)
    assert "Sequential does not run on the example inputs (float32[3, 7])" in message
    assert "7" in message.splitlines()[1], "torch's own words"
    assert "example_inputs=" in message


def test_too_few_inputs() -> None:
    with pytest.raises(TraceError, match=r"does not run on the example inputs \(float32\[2, 6\]\)"):
        discover(nn.Bilinear(6, 6, 2), torch.zeros(2, 6))


def test_inputs_of_a_wrong_name() -> None:
    with pytest.raises(TraceError, match=r"pixels=float32\[2, 6\]"):
        discover(nn.Linear(6, 2), {"pixels": torch.zeros(2, 6)})


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("a photo", "example_inputs is a str"),
        (3, "example_inputs is a int"),
        (np.zeros((2, 6), np.float32), "example_inputs is a ndarray"),
        ((nn.Linear(6, 6),), "is a module; pass tensors"),
        (({1, 2},), "Linear does not run on the example inputs"),
    ],
)
def test_inputs_that_are_no_tensors(inputs: object, says: str) -> None:
    with pytest.raises(TraceError, match=says) as caught:
        discover(nn.Linear(6, 2), inputs)
    assert "tensor" in str(caught.value), "what to do"


def test_a_model_that_raises_says_what_it_raised() -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("only for squares\nand more")

    with pytest.raises(TraceError, match="Strict does not run") as caught:
        discover(Strict(), torch.zeros(2, 3))
    assert "RuntimeError: only for squares" in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Linear(2, 3)
    model.handle = (i for i in range(3))  # generators cannot be copied
    with pytest.raises(AutopermError, match="Linear cannot be copied"):
        discover(model, torch.zeros(1, 2))


def test_a_failed_trace_leaves_the_model_as_it_was() -> None:
    model = Branching().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TraceError):
        discover(model, torch.zeros(3, 7))
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_meta_models_are_traced_without_memory() -> None:
    """Names decide then which tensors are one: addresses say nothing."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1 << 14, 1 << 16), nn.ReLU(), nn.Linear(1 << 16, 1 << 14))
        spec = discover(model, torch.empty(2, 1 << 14))
    assert [(factor.size, factor.over) for factor in spec.free] == [(1 << 16, ())]


def test_functional_calls_are_traced() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.ParameterList([torch.empty(12, 6), torch.empty(4, 12)])

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.elu(F.linear(x, self.w[0])), self.w[1])

    model, inputs = randomize(Functional().double().eval()), floats(3, 6)()
    spec = discover(model, inputs)
    assert [factor.size for factor in spec.free] == [12]
    assert spec.verify(model, inputs) < 1e-9

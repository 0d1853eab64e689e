"""Explanations: the chain of operations that pins an axis, or ties it to others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Traced
from networks import NETWORKS
from torch import Tensor, nn

import autoperm
from autoperm.errors import SpecError
from autoperm.explain import Chain

Trace = Callable[[str], Traced]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        x = x + self.down(self.up(x).relu())
        return self.head(x)


@pytest.fixture(scope="module")
def residual() -> autoperm.PermutationSpec:
    return autoperm.discover(Residual(), torch.zeros(5, 3))


def ops(chain: Chain) -> list[str]:
    return [step.op.removeprefix("aten.") for step in chain.steps]


def test_a_residual_ties_what_it_adds(residual: autoperm.PermutationSpec) -> None:
    (chain,) = residual.explain("stem.weight", 0, to=("down.weight", 0)).chains
    assert ops(chain) == ["linear", "tanh", "add", "linear"]
    assert chain.end == "down.weight[0]"
    assert "x = x + self.down(self.up(x).relu())" in str(chain.steps[2])
    assert [step.where.module for step in chain.steps] == ["stem", "", "", "down"]


def test_without_a_target_the_nearest_other_module_is_explained(residual: autoperm.PermutationSpec) -> None:
    (chain,) = residual.explain("up.weight", 0).chains
    assert ops(chain) == ["linear", "relu", "linear"]
    assert chain.end == "down.weight[1]"
    assert chain.others == ("up.bias[0]", "down.weight[1]")
    assert not chain.reason


def test_inputs_and_outputs_pin_by_law(residual: autoperm.PermutationSpec) -> None:
    (chain,) = residual.explain("stem.weight", 1).chains
    assert (chain.reason, chain.gap, ops(chain)) == ("model input 'x'", False, ["linear"])
    (chain,) = residual.explain("head.bias", -1).chains
    assert (chain.reason, chain.gap, ops(chain)) == ("model output", False, ["linear"])


def test_an_axis_that_only_one_operation_pins_needs_no_step() -> None:
    spec = autoperm.discover(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))
    (chain,) = spec.explain("0.weight", 2).chains
    assert chain.steps == ()
    assert chain.reason == "order matters: aten.conv2d, in 0"


@torch.library.custom_op("autoperm_tests::riddle", mutates_args=())
def riddle(x: Tensor) -> Tensor:
    return x.clone()


riddle.register_fake(torch.empty_like)


class Puzzled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.down = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(riddle(self.up(x).relu()))


def test_a_missing_rule_is_a_gap_and_says_where() -> None:
    spec = autoperm.discover(Puzzled(), torch.zeros(5, 3))
    (chain,) = spec.explain("up.weight", 0).chains
    assert chain.gap
    assert ops(chain) == ["linear", "relu"]
    assert chain.reason.startswith("no rule: autoperm_tests.riddle")
    assert "return self.down(riddle(self.up(x).relu()))" in str(chain)
    assert "a gap of autoperm" in str(chain)


def test_a_law_is_named_before_a_gap() -> None:
    """What a gap pins may be pinned by law as well: then no rule would help."""

    class Both(Puzzled):
        def forward(self, x: Tensor) -> Tensor:
            return riddle(self.up(x))

    (chain,) = autoperm.discover(Both(), torch.zeros(5, 3)).explain("up.weight", 1).chains
    assert not chain.gap
    assert chain.reason == "model input 'x'"


def test_each_factor_of_an_axis_has_its_own_chain(traced: Trace) -> None:
    spec = traced("attention_heads_first").spec
    name = next(name for name, pattern in spec.patterns.items() if "(" in str(pattern[0]) and name.endswith("weight"))
    chains = spec.explain(name, 0).chains
    assert len(chains) > 1
    assert len({chain.factor for chain in chains}) == len(chains)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_axis_of_every_network_is_explained(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    for tensor, pattern in spec.patterns.items():
        for axis in range(len(pattern)):
            for chain in spec.explain(tensor, axis).chains:
                assert bool(chain.reason) == (not chain.factor or spec.factors[chain.factor].pinned)
                assert chain.steps or chain.reason or not chain.others, f"{tensor}[{axis}]: no chain for {chain.factor}"
                assert all(a.target == b.source for a, b in zip(chain.steps, chain.steps[1:], strict=False))
                if chain.steps:
                    assert chain.steps[0].source == f"{spec.tied.get(tensor, tensor)}[{axis}]"
                    assert chain.steps[-1].target == chain.end


def test_an_axis_of_length_1_has_nothing_to_explain() -> None:
    spec = autoperm.discover(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)))
    assert spec.explain("2.weight", 0).chains == ()


def test_errors_say_what_there_is(residual: autoperm.PermutationSpec) -> None:
    with pytest.raises(SpecError, match=r"no tensor is called 'stam.weight'; there are stem.weight, stem.bias"):
        residual.explain("stam.weight", 0)
    with pytest.raises(SpecError, match=r"stem.weight has 2 axes, so there is no axis 2"):
        residual.explain("stem.weight", 2)
    with pytest.raises(SpecError, match=r"stem.weight\[0\] and up.weight\[0\] have no free factor in common"):
        residual.explain("stem.weight", 0, to=("up.weight", 0))
    read = autoperm.PermutationSpec.from_json(residual.to_json())
    with pytest.raises(SpecError, match="read from a file"):
        read.explain("stem.weight", 0)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(3, 5)
        self.up = nn.Parameter(torch.randn(5, 3, 4))
        self.down = nn.Parameter(torch.randn(5, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        best = self.router(x).argmax(-1)
        hidden = torch.einsum("bi,bij->bj", x, self.up[best]).relu()
        return torch.einsum("bi,bij->bj", hidden, self.down[best])


def test_a_chain_goes_through_positions() -> None:
    spec = autoperm.discover(Experts(), torch.randn(7, 3))
    (chain,) = spec.explain("router.weight", 0, to=("up", 0)).chains
    assert ops(chain) == ["linear", "argmax", "index"]
    assert chain.steps[1].target == "the positions in argmax"

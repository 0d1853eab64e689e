"""Polygonal chains between models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from ends import Tied, inputs, net, targets, weightless
from torch import nn

from autoperm import Curve, interpolate, interpolate_chain, merge
from autoperm.errors import ArchitectureError, SpecError, WeightsError
from autoperm.evaluate import Evaluator


@pytest.mark.parametrize("path", ["lerp", "slerp"])
def test_the_legs_of_a_chain_are_lines(path: Literal["lerp", "slerp"]) -> None:
    models = [net(seed) for seed in range(4)]
    evaluate = Evaluator.from_tensors(inputs(), targets())
    chain = interpolate_chain(models, evaluate, points=4, path=path)
    assert chain.nodes == (0.0, 1 / 3, 2 / 3, 1.0)
    assert len(chain.lam) == 10
    for leg, a, b in zip(chain.legs, models, models[1:], strict=False):
        line = interpolate(a, b, evaluate, points=4, path=path)
        assert leg.metrics == line.metrics
        assert leg.lam == pytest.approx(line.lam)
    assert chain.barrier() == max(leg.barrier() for leg in chain.legs)


@pytest.mark.parametrize("nodes", [(), (0.0,), (0.0, 0.5), (0.5, 1.0), (0.0, 0.25, 1.0), (0.0, 1.0, 0.5)])
def test_nodes_rise_from_0_to_1_among_the_positions(nodes: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="nodes must rise from 0 to 1 and be among the positions"):
        Curve((0.0, 0.5, 1.0), {"loss": (0.0, 0.0, 0.0)}, nodes=nodes)


def test_the_table_of_a_chain_shows_its_models() -> None:
    chain = interpolate_chain([net(seed) for seed in range(4)], weightless, points=9)
    shown = [row.split()[0] for row in str(chain).splitlines()]
    assert shown == ["lam", "0.00", "0.25", "0.33", "0.50", "0.67", "0.75", "1.00", "barrier", "mean", "chord"]


def test_a_chain_of_two_is_a_path_and_nodes_are_evaluated_once() -> None:
    evaluate = Evaluator.from_tensors(inputs(), targets())
    assert interpolate_chain([net(0), net(1)], evaluate, points=5) == interpolate(net(0), net(1), evaluate, points=5)
    calls: list[nn.Module] = []
    interpolate_chain([net(0)] * 3, lambda model: calls.append(model) or {"loss": 0.0}, points=4)  # type: ignore[func-returns-value]
    assert len(calls) == 7


class Noting:
    """A renormaliser that notes the weights it is called with."""

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.weights: list[tuple[float, ...]] = []

    def bind(self, models: Sequence[nn.Module], /) -> Callable[[nn.Module, Sequence[float]], nn.Module]:
        self.models = list(models)

        def note(model: nn.Module, weights: Sequence[float]) -> nn.Module:
            self.weights.append(tuple(weights))
            return model

        return note


def test_what_renormalises_is_told_the_weights() -> None:
    models, noting = [net(seed) for seed in range(3)], Noting()
    interpolate_chain(models, weightless, points=3, renormalize=noting)
    assert noting.models == models
    assert noting.weights == [(1, 0, 0), (0.5, 0.5, 0), (0, 1, 0), (0, 0.5, 0.5), (0, 0, 1)]


def test_one_of_many_models_is_named() -> None:
    for odd, error, message in (
        (
            net(2).float(),
            ArchitectureError,
            r"model 0 \(A\) and model 2 \(B\)[\s\S]*torch\.float64 in A, torch\.float32",
        ),
        (net(2).to("meta"), ArchitectureError, r"model 0 \(A\) and model 2 \(B\)[\s\S]*on cpu in A, on meta in B"),
        (nn.Sequential(*list(net(2))[:-1]), ArchitectureError, r"model 2 \(B\)[\s\S]*4\.weight: only in A"),
    ):
        with pytest.raises(error, match=message):
            interpolate_chain([net(0), net(1), odd], weightless)
    broken = net(2)
    nn.init.constant_(broken[0].bias, math.nan)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="model 2 has NaN"):
        interpolate_chain([net(0), net(1), broken], weightless)
    with pytest.raises(ArchitectureError, match=r"a copy of model 0 .* 'encode\.weight' in model 2"):
        interpolate_chain([Tied(tied=True), Tied(tied=True), Tied(tied=False)], weightless)
    for few in ([], [net(0)]):
        with pytest.raises(ArchitectureError, match=f"2 models or more is needed, and got {len(few)}"):
            interpolate_chain(few, weightless)
    for model in (net(0), nn.Linear(1, 1)):
        with pytest.raises(ArchitectureError, match=r"got a (Sequential|Linear)$"):
            interpolate_chain(model, weightless)  # type: ignore[arg-type]


def test_models_that_differ_in_buffers_beside_the_state_dict() -> None:
    def scaled(by: float) -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_buffer("scale", torch.tensor([by, math.nan]), persistent=False)
        return model

    interpolate(scaled(1.0), scaled(1.0), weightless, points=2)
    with pytest.raises(ArchitectureError, match=r"A does not hold the buffers 'scale' of model B.*persistent=False"):
        interpolate(scaled(1.0), scaled(2.0), weightless)
    with pytest.raises(ArchitectureError, match=r"model 0 does not hold the buffers 'scale' of model 2"):
        interpolate_chain([scaled(1.0), scaled(1.0), scaled(2.0)], weightless)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norms_have_no_mean(wrap: Callable[[nn.Module], nn.Module]) -> None:
    a, b = (nn.Sequential(nn.Linear(2, 3), wrap(nn.Linear(3, 2))) for _ in "ab")
    for evaluate in (lambda: interpolate(a, b, weightless), lambda: merge([a, b], align=False)):
        with pytest.raises(ArchitectureError, match=r"'1' has a spectral norm, .*remove_parametrizations"):
            evaluate()


def test_models_that_differ_in_buffers() -> None:
    def masked(*values: int) -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_buffer("table", torch.tensor(values))
        return model

    same = masked(0, 1)
    with pytest.raises(ArchitectureError, match=r"table: torch\.int64, shape \(2,\)"):
        interpolate(same, masked(1, 0), weightless)
    with pytest.raises(ArchitectureError, match=r"model 0 \(A\) and model 2 \(B\)[\s\S]*table: torch\.int64"):
        interpolate_chain([same, same, masked(1, 0)], weightless)
    with pytest.raises(ArchitectureError, match="table: only in A"):
        interpolate(same, nn.Linear(2, 2), weightless)

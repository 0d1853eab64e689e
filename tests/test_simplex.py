"""Simplices between models, and surfaces as objects."""

from __future__ import annotations

import copy
import json
import math
from itertools import combinations
from typing import Literal

import pytest
import torch
from ends import inputs, net, targets, weightless
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoperm import Surface, average, interpolate, interpolate_simplex
from autoperm.errors import ArchitectureError, EvaluationError, SpecError
from autoperm.evaluate import Evaluator

Reference = Literal["mean", "chord"]
REFERENCES: tuple[Reference, ...] = ("mean", "chord")
EVALUATE = Evaluator.from_tensors(inputs(), targets())
GRID = tuple((i / 4, j / 4, (4 - i - j) / 4) for i in range(5) for j in range(5 - i))
values = st.floats(-1e3, 1e3)
heights = st.lists(values, min_size=len(GRID), max_size=len(GRID))


# --- the walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [2, 3, 4])
def test_the_grid_is_barycentric(models: int) -> None:
    surface = interpolate_simplex([net(0)] * models, weightless, steps=3)
    assert len({*surface.weights}) == len(surface.weights) == math.comb(3 + models - 1, models - 1)
    for weights in surface.weights:
        assert sum(round(3 * weight) for weight in weights) == 3
        assert all(weight == round(3 * weight) / 3 for weight in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_points_are_averages(dtype: torch.dtype) -> None:
    models = [net(seed).to(dtype) for seed in range(3)]
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(copy.deepcopy(dict(model.state_dict())))
        return {"loss": 0.0}

    surface = interpolate_simplex(models, evaluate, steps=4)
    states = [dict(model.state_dict()) for model in models]
    for weights, found in zip(surface.weights, seen, strict=True):
        torch.testing.assert_close(found, average(states, weights), rtol=0, atol=0)
        if max(weights) == 1.0:
            torch.testing.assert_close(found, {**states[weights.index(1.0)], **counters(states[0])}, rtol=0, atol=0)


def counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}


def test_corners_are_the_models_and_edges_the_lines() -> None:
    models = [net(seed) for seed in range(3)]
    surface = interpolate_simplex(models, EVALUATE, steps=4)
    for i, j in combinations(range(3), 2):
        line = interpolate(models[i], models[j], EVALUATE, points=5)
        assert surface.edge(i, j) == line
        assert surface.edge(j, i).metrics == {name: scores[::-1] for name, scores in line.metrics.items()}
        for end, model in ((0, models[i]), (-1, models[j])):
            assert {name: scores[end] for name, scores in line.metrics.items()} == EVALUATE(model)


@pytest.mark.parametrize("reference", REFERENCES)
def test_no_barrier_between_copies_of_a_model(reference: Reference) -> None:
    surface = interpolate_simplex([net(0)] * 3, EVALUATE, steps=5)
    assert surface.barrier(reference=reference) == 0.0
    assert surface.barrier("accuracy", reference=reference) == 0.0


def test_renormalized_at_every_point() -> None:
    surface = interpolate_simplex(
        [net(seed) for seed in range(3)], EVALUATE, steps=2, renormalize="batch_norm", data=[inputs()]
    )
    plain = interpolate_simplex([net(seed) for seed in range(3)], EVALUATE, steps=2)
    assert all(x != y for x, y in zip(surface.metrics["loss"], plain.metrics["loss"], strict=True))


def test_errors_name_the_weights_and_the_model() -> None:
    models = [net(seed) for seed in range(3)]
    results = iter([1.0, 1.0, math.nan])
    with pytest.raises(EvaluationError, match=r"at weights \(0\.5, 0, 0\.5\): metric 'loss' is nan"):
        interpolate_simplex(models, lambda model: {"loss": next(results)}, steps=2)
    for odd in (net(2).float(), net(2).to("meta")):
        with pytest.raises(ArchitectureError, match=r"between model 0 \(A\) and model 2 \(B\)"):
            interpolate_simplex([*models[:2], odd], weightless)
    with pytest.raises(SpecError, match="steps is 0"):
        interpolate_simplex(models, weightless, steps=0)
    with pytest.raises(ArchitectureError, match="2 models or more is needed, and got 1"):
        interpolate_simplex(models[:1], weightless)


# --- barriers -----------------------------------------------------------------------------------------------------


@given(heights)
def test_barriers_of_a_surface_bound_those_of_its_edges(loss: list[float]) -> None:
    surface = Surface(GRID, {"loss": tuple(loss)})
    for i, j in combinations(range(3), 2):
        assert surface.barrier(reference="chord") >= surface.edge(i, j).barrier(reference="chord") - 1e-9
    assert surface.barrier(reference="chord") >= 0.0
    corners = [loss[GRID.index(corner)] for corner in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))]
    assert surface.barrier() >= max(corners) - sum(corners) / 3 - 1e-9


@given(st.tuples(values, values, values))
def test_a_plane_has_no_chord_barrier(corners: tuple[float, float, float]) -> None:
    loss = tuple(sum(w * x for w, x in zip(weights, corners, strict=True)) for weights in GRID)
    surface = Surface(GRID, {"loss": loss})
    assert surface.barrier(reference="chord") == pytest.approx(0, abs=1e-9)
    assert surface.barrier() == pytest.approx(max(corners) - sum(corners) / 3, abs=1e-9)


@given(st.lists(values, min_size=2, max_size=9))
def test_a_surface_of_two_models_is_a_curve(loss: list[float]) -> None:
    steps = len(loss) - 1
    surface = Surface(tuple(((steps - i) / steps, i / steps) for i in range(steps + 1)), {"loss": tuple(loss)})
    for reference in REFERENCES:
        expected = surface.edge(0, 1).barrier(reference=reference)
        assert surface.barrier(reference=reference) == pytest.approx(expected, abs=1e-9)


@given(heights)
def test_the_barrier_of_the_accuracy_is_that_of_the_error(accuracy: list[float]) -> None:
    surface = Surface(GRID, {"error": tuple(1 - value for value in accuracy), "accuracy": tuple(accuracy)})
    for reference in REFERENCES:
        expected = surface.barrier("error", reference=reference)
        assert surface.barrier("accuracy", reference=reference) == pytest.approx(expected, abs=1e-9)


def test_what_a_barrier_needs() -> None:
    surface = Surface(GRID, {"loss": (0.0,) * len(GRID)})
    with pytest.raises(SpecError, match="no metric 'los'; it has 'loss'"):
        surface.barrier("los")
    with pytest.raises(SpecError, match="'median' for a barrier; choose from 'mean', 'chord'"):
        surface.barrier(reference="median")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="no value at model 1"):
        Surface(((1.0, 0.0), (0.5, 0.5)), {"loss": (0.0, 0.0)}).barrier()


# --- the surface as an object -------------------------------------------------------------------------------------


@given(heights)
def test_json_gives_the_surface_back(loss: list[float]) -> None:
    surface = Surface(GRID, {"loss": tuple(loss)}, higher_is_better=("gain",))
    assert Surface.from_dict(json.loads(json.dumps(surface.to_dict()))) == surface


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((), "at least one point"),
        (((1.0,),), r"\(1\.0,\) has 1 weights"),
        (((1.0, 0.0), (0.0, 0.0, 1.0)), "has 3 weights, and the first one 2"),
        (((0.5, 0.4),), "must not be negative and sum to 1"),
        (((1.5, -0.5),), "must not be negative and sum to 1"),
        (((math.nan, 1.0),), "must not be negative and sum to 1"),
        (((0.5, 0.5), (0.5, 0.5)), "comes twice"),
    ],
)
def test_weights_are_barycentric(weights: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Surface(weights, {"loss": (0.0,) * len(weights)})


def test_values_fit_the_points_and_edges_the_models() -> None:
    with pytest.raises(SpecError, match="metric 'loss' has 2 values for 15 points"):
        Surface(GRID, {"loss": (0.0, 0.0)})
    surface = Surface(GRID, {"loss": (0.0,) * len(GRID)})
    for i, j in ((0, 3), (1, 1), (-1, 0)):
        with pytest.raises(SpecError, match=f"no edge from model {i} to model {j}; models count from 0 to 2"):
            surface.edge(i, j)


def test_the_table() -> None:
    loss = tuple(1.0 - max(weights) for weights in GRID)
    text = str(Surface(GRID, {"test loss": loss, "accuracy": tuple(1 - x for x in loss)}))
    assert text.splitlines() == [
        "      weights   test loss    accuracy",
        "        1 0 0           0           1",
        "        0 1 0           0           1",
        "        0 0 1           0           1",
        "0.25 0.25 0.5         0.5         0.5",
        "        worst         0.5         0.5",
        "barrier",
        "         mean         0.5         0.5",
        "        chord         0.5         0.5",
    ]


def test_the_table_without_a_corner_has_no_barriers() -> None:
    table = str(Surface(((1.0, 0.0), (0.5, 0.5)), {"loss": (1.0, 2.0)}))
    assert table.splitlines()[1:] == ["    1 0           1", "0.5 0.5           2", "  worst           2"]


def test_records_are_rows() -> None:
    rows = Surface(GRID, {"loss": tuple(float(i) for i in range(len(GRID)))}).records()
    assert rows[3] == {"weight 0": 0.0, "weight 1": 0.75, "weight 2": 0.25, "loss": 3.0}
    assert len(rows) == len(GRID)

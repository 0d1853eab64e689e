"""Something near what is wanted, given in its place: the error says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import autoperm
from autoperm import (
    Curve,
    Ensemble,
    Estimate,
    Evaluator,
    Reliability,
    compare,
    interpolate,
    mean_barrier,
    merge,
    plot,
    repair,
)
from autoperm.errors import ArchitectureError, EvaluationError, SpecError

INPUTS, TARGETS = torch.randn(12, 4), torch.arange(12) % 3
EVALUATE = Evaluator([(INPUTS, TARGETS)])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


A, B = network(), network()


@pytest.mark.parametrize(
    "use",
    [
        lambda given: interpolate(A, given, EVALUATE),
        lambda given: merge([A, given]),
        lambda given: EVALUATE(given),
        lambda given: compare({"A": A, "merged": given}, EVALUATE),
        lambda given: autoperm.predict(given, [(INPUTS, TARGETS)]),
        lambda given: repair(A, [A, given], [INPUTS]),
        lambda given: autoperm.align(A, given),
        lambda given: autoperm.discover(given),
    ],
)
def test_something_else_than_a_model(use: Callable[[Any], object]) -> None:
    with pytest.raises(ArchitectureError, match=r"got a Alignment; give its \.model"):
        use(autoperm.align(A, B))
    with pytest.raises(ArchitectureError, match="got a OrderedDict; build the model and load its weights"):
        use(A.state_dict())
    with pytest.raises(ArchitectureError, match="got a type; build"):
        use(nn.Linear)


def test_one_model_is_no_ensemble_of_its_layers() -> None:
    with pytest.raises(ArchitectureError, match="a list of one model or more, and got a Sequential"):
        Ensemble(A)  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [lambda data: Evaluator(data), lambda data: autoperm.predict(A, data)])
def test_data_that_are_not_in_batches(use: Callable[[Any], object]) -> None:
    with pytest.raises(EvaluationError, match="the data is a Tensor, not batches; give a DataLoader or a list of"):
        use(INPUTS)
    with pytest.raises(EvaluationError, match=r"the data is a TensorDataset, not batches; .*DataLoader"):
        use(TensorDataset(INPUTS, TARGETS))


@pytest.mark.parametrize("how", ["batch_norm", "repair"])
def test_a_renormalizer_does_not_take_samples_for_batches(how: str) -> None:
    with pytest.raises(EvaluationError, match="the data is a Tensor, not batches"):
        interpolate(A, B, EVALUATE, renormalize=how, data=INPUTS)


def test_a_dictionary_without_a_target() -> None:
    with pytest.raises(EvaluationError, match=r"yielded a dict, not a pair; .*a target beside it: \(inputs, target\)"):
        Evaluator([{"input": INPUTS, "labels": TARGETS}])(A)


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss])
def test_a_loss_is_a_function(loss: Any) -> None:
    with pytest.raises(EvaluationError, match=r"the loss is .*; give a function"):
        Evaluator([(INPUTS, TARGETS)], loss)


def test_metrics_have_names() -> None:
    with pytest.raises(EvaluationError, match="metrics is a list, but must be a dictionary"):
        Evaluator([(INPUTS, TARGETS)], metrics=[autoperm.top(2)])  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [lambda given: interpolate(A, B, given), lambda given: compare({"A": A}, given)])
def test_a_loader_is_no_evaluation(use: Callable[[Any], object]) -> None:
    with pytest.raises(EvaluationError, match=r"evaluate is a list, .*Evaluator\(loader\)"):
        use([(INPUTS, TARGETS)])


def test_dtypes_that_differ_can_be_converted() -> None:
    with pytest.raises(ArchitectureError, match=r"float64 in B\n.*\nConvert one of them with model\.to\(dtype\)\."):
        merge([A, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()])


CURVE = Curve((0.0, 1.0), {"loss": (0.0, 1.0)})
ESTIMATE = Estimate(value=0.5, low=0.25, high=0.75, confidence=0.95, values=(0.25, 0.75))
SURE = Reliability((0.0, 1.0), (0.5,), (0.5,), (10,), "top-1")


@pytest.mark.parametrize(
    ("draw", "wanted", "inside"),
    [
        (plot.curve, "Curve", CURVE),
        (plot.surface, "Surface", CURVE),
        (plot.reliability, "Reliability", SURE),
    ],
)
def test_what_is_drawn_has_labels(draw: Callable[[Any], object], wanted: str, inside: object) -> None:
    with pytest.raises(SpecError, match=rf"nothing to draw; give a {wanted}"):
        draw({})
    with pytest.raises(SpecError, match=rf"a tuple cannot be drawn here; give a {wanted}"):
        draw(("naive", inside))
    with pytest.raises(SpecError, match=rf"a dict cannot be drawn here; give a {wanted}"):
        draw({"naive": 0.5})


def test_a_trend_of_one_line_needs_no_label() -> None:
    figure = plot.trend([1, 2], [ESTIMATE, ESTIMATE], xlabel="width")
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == [0.5, 0.5]  # type: ignore[arg-type]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["95 % interval", "a pair"]


def test_what_is_drawn_in_a_trend_is_an_estimate() -> None:
    with pytest.raises(SpecError, match="'aligned' has something of type float; give a list, one Estimate for each x"):
        plot.trend([1, 2], {"aligned": [0.5, 0.25]}, xlabel="width")  # type: ignore[list-item]
    with pytest.raises(SpecError, match="there is something of type Estimate; give a list, one Estimate for each x"):
        plot.trend([1], ESTIMATE, xlabel="width")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, autoperm.Repair])
def test_a_renormalizer_is_a_name_or_an_object(given: Any) -> None:
    with pytest.raises(SpecError, match=r"renormalize is .*, or an object such as Repair\(data\)"):
        interpolate(A, B, EVALUATE, renormalize=given)
    with pytest.raises(SpecError, match="renormalize is "):
        merge([A, B], renormalize=given, data=[INPUTS])


def test_one_model_is_no_list_of_ends() -> None:
    with pytest.raises(ArchitectureError, match="needs a list of the models that the model is between, and got a mo"):
        repair(A, B, [INPUTS])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "use",
    [
        lambda a, b: autoperm.lerp(a, b, 0.5),
        lambda a, b: autoperm.slerp(a, b, 0.5),
        lambda a, b: autoperm.average([a, b]),
        autoperm.task_vector,
    ],
)
def test_arithmetic_is_of_state_dicts(use: Callable[[Any, Any], object]) -> None:
    with pytest.raises(ArchitectureError, match=r"a state dict is needed, .* Sequential; give its \.state_dict\(\)"):
        use(A, B)


def test_outputs_of_another_kind_need_a_loss() -> None:
    with pytest.raises(EvaluationError, match="give a loss and metrics of your own"):
        Evaluator([(INPUTS, TARGETS)])(nn.Sequential(A, Named()))


class Named(nn.Module):
    """Gives its output a name."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x}


def test_a_model_or_a_metric_that_fails_on_a_batch() -> None:
    model, targets = nn.Linear(4, 2), torch.tensor([0, 7])
    with pytest.raises(
        EvaluationError, match=r"Linear does not run on a batch \(float32\[2, 5\]\): RuntimeError: mat1"
    ):
        Evaluator([(torch.zeros(2, 5), targets)])(model)
    fails = r"metric 'loss' fails on outputs float32\[2, 2\] and targets int64\[2\]: IndexError: Target 7"
    with pytest.raises(EvaluationError, match=fails):
        Evaluator([(torch.zeros(2, 4), targets)])(model)


@pytest.mark.parametrize("points", [1, 2.5, [0.0, 0.5, 1.0]])
def test_points_are_a_number(points: Any) -> None:
    models = [nn.Linear(1, 1), nn.Linear(1, 1)]
    with pytest.raises(SpecError, match="must be a whole number of at least 2, for the ends of a path"):
        interpolate(models[0], models[1], lambda model: {"loss": 0.0}, points=points)


def test_barriers_are_no_curves() -> None:
    with pytest.raises(SpecError, match="the curves include a float; give what interpolate returns"):
        mean_barrier([0.5, 0.25])  # type: ignore[list-item]

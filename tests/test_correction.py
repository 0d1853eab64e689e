"""Classifiers with a temperature, or a bias for each class."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from autoperm import Corrected, Evaluator, correct_prior, fit_bias, fit_temperature, predict, reliability
from autoperm.errors import EvaluationError, SpecError

Batches = list[tuple[Tensor, Tensor]]


def drawn(samples: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and classes that are drawn with their probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def batches(logits: Tensor, targets: Tensor) -> Batches:
    return list(zip(logits.split(64), targets.split(64), strict=True))


def loss(model: nn.Module, data: Batches) -> float:
    return Evaluator(data)(model)["loss"]


# --- temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_the_temperature_that_was_lost_is_found(scale: float) -> None:
    logits, targets = drawn(20000)
    model = fit_temperature(nn.Identity(), batches(scale * logits, targets))
    assert float(model.temperature) == pytest.approx(scale, rel=0.05)
    assert not model.bias.any()


@given(st.integers(0, 99), st.floats(0.1, 10))
def test_no_temperature_near_it_is_better(seed: int, scale: float) -> None:
    logits, targets = drawn(200, seed=seed)
    data = batches(scale * logits, targets)
    model = fit_temperature(nn.Identity(), data)
    best = loss(model, data)
    for factor in (0.98, 1.02):
        other = Corrected(nn.Identity(), factor * model.temperature, model.bias)
        assert loss(other, data) > best


def test_which_class_is_the_most_likely_does_not_change() -> None:
    logits, targets = drawn(500)
    data = batches(4 * logits, targets)
    given, fitted = (predict(model, data) for model in (nn.Identity(), fit_temperature(nn.Identity(), data)))
    torch.testing.assert_close(given.outputs.argmax(-1), fitted.outputs.argmax(-1))
    assert reliability(fitted, kind="top-1").ece < reliability(given, kind="top-1").ece


def test_classes_that_are_ruled_out() -> None:
    logits, targets = drawn(500)
    without = torch.cat([logits, torch.full((500, 2), -math.inf, dtype=torch.float64)], 1)
    fitted, other = (fit_temperature(nn.Identity(), batches(3 * each, targets)) for each in (without, logits))
    torch.testing.assert_close(fitted.temperature, other.temperature)
    with pytest.raises(EvaluationError, match="rule out the true class of 1 of 500 samples"):
        fit_temperature(nn.Identity(), batches(without, torch.cat([targets[1:], torch.tensor([6])])))


def test_where_no_temperature_is_best_it_says_so() -> None:
    logits, targets = drawn(100)
    right = logits + 99 * F.one_hot(targets, 5)
    with pytest.raises(EvaluationError, match="right on all 100 samples"):
        fit_temperature(nn.Identity(), batches(right, targets))
    with pytest.raises(EvaluationError, match="the higher the temperature the better"):
        fit_temperature(nn.Identity(), batches(-logits, targets))


# --- bias ---------------------------------------------------------------------------------------------------------


def test_a_bias_that_was_lost_is_found() -> None:
    logits, targets = drawn(50000)
    lost = torch.tensor([1.0, -1.0, 0.5, 0.0, -0.5], dtype=torch.float64)
    model = fit_bias(nn.Identity(), batches(logits - lost, targets))
    torch.testing.assert_close(model.bias.double(), lost, atol=0.05, rtol=0)
    assert float(model.temperature) == 1


@given(st.integers(0, 99))
def test_the_mean_probabilities_are_the_shares_of_the_classes(seed: int) -> None:
    """The gradient of the loss in the bias is their difference."""
    logits, targets = drawn(300, seed=seed)
    targets[:5] = torch.arange(5)
    data = batches(logits.roll(1, -1), targets)
    model = fit_bias(nn.Identity(), data)
    found = predict(model, data).outputs.softmax(-1).mean(0)
    torch.testing.assert_close(
        found, torch.bincount(targets, minlength=5) / 300.0, atol=1e-5, rtol=0, check_dtype=False
    )
    assert loss(model, data) <= loss(nn.Identity(), data)
    assert float(model.bias.sum()) == pytest.approx(0, abs=1e-5)


def test_a_class_without_samples_is_named() -> None:
    logits, targets = drawn(100)
    with pytest.raises(EvaluationError, match="classes 3, 4 have no sample"):
        fit_bias(nn.Identity(), batches(logits, targets.clamp(max=2)))


# --- prior --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6), st.integers(0, 99))
def test_the_prior_is_that_of_bayes(counts: list[int], seed: int) -> None:
    """p(y | x) p_test(y) / p_train(y), normalised."""
    logits, _ = drawn(10, len(counts), seed)
    shares = torch.tensor(counts, dtype=torch.float64)
    expected = logits.softmax(-1) / shares
    found = correct_prior(nn.Identity(), counts)(logits).softmax(-1)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(correct_prior(nn.Identity(), counts, shares / 7)(logits), logits, rtol=1e-4, atol=1e-5)
    back = correct_prior(correct_prior(nn.Identity(), counts), [1] * len(counts), counts)
    torch.testing.assert_close(back(logits), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([1, 0, 2, 0], None, "classes 1, 3 have none; if a class was never seen, add 1"),
        ([1, 2], [1, 2, 3], "train has 2 classes and test 3"),
        ([1, 2], [0, 2], "test needs one positive number for each class, but class 0 has none"),
        ([[1, 2]], None, r"shape \(1, 2\)"),
        ([1.0, float("nan")], None, "class 1 has none"),
    ],
)
def test_counts_that_are_no_prior(train: object, test: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        correct_prior(nn.Identity(), train, test)  # type: ignore[arg-type]


def test_a_prior_of_another_number_of_classes() -> None:
    with pytest.raises(SpecError, match=r"bias has shape \(3,\), but the logits have shape \(2, 4\)"):
        correct_prior(nn.Identity(), [1, 2, 3])(torch.zeros(2, 4))


# --- the module ---------------------------------------------------------------------------------------------------


def test_it_is_a_module_around_the_model() -> None:
    model = nn.Linear(3, 2).double()
    before = copy.deepcopy(model.state_dict())
    corrected = correct_prior(model, [1, 3])
    assert corrected.model is model
    assert sorted(corrected.state_dict()) == ["bias", "model.bias", "model.weight", "temperature"]
    assert corrected(torch.zeros(1, 3, dtype=torch.float64)).dtype == torch.float64
    other = correct_prior(copy.deepcopy(model), [5, 1])
    other.load_state_dict(corrected.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(other(x), corrected(x))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not correct_prior(model.eval(), [1, 3]).training
    assert "temperature=1, bias=[0.549, -0.549]" in repr(corrected)


def test_layers_of_the_model_keep_their_modes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
    assert correct_prior(model, [1, 3]).training
    assert [layer.training for layer in model] == [False, True]


def test_corrections_follow_each_other() -> None:
    logits, targets = drawn(2000)
    data = batches(3 * logits - torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0]), targets)
    both = fit_temperature(fit_bias(nn.Identity(), data), data)
    assert loss(both, data) < loss(fit_temperature(nn.Identity(), data), data)


def test_models_whose_output_has_logits() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(x)

    assert correct_prior(Model(), [1, 1])(torch.ones(2, 2)).tolist() == [[1.0, 1.0], [1.0, 1.0]]

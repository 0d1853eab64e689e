"""The evaluator: weights of batches, accuracy, modes, errors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from autoperm.errors import EvaluationError
from autoperm.evaluate import Evaluator, Predictions, device_of, evaluating, predict
from autoperm.metrics import Metric, perplexity, top


def data(samples: int = 10, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, classes, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(classes, (samples,), generator=generator)


@given(st.integers(1, 12), st.integers(1, 13))
def test_the_batch_size_does_not_matter(samples: int, batch_size: int) -> None:
    inputs, targets = data(samples)
    metrics = Evaluator.from_tensors(inputs, targets, batch_size=batch_size)(nn.Identity())
    expected = {
        "loss": F.cross_entropy(inputs, targets).item(),
        "accuracy": (inputs.argmax(1) == targets).double().mean().item(),
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_a_loader_and_tensors_agree() -> None:
    inputs, targets = data()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=3)
    assert Evaluator(loader)(nn.Identity()) == Evaluator.from_tensors(inputs, targets, batch_size=3)(nn.Identity())


def test_tensors_are_not_copied_and_draw_no_random_numbers() -> None:
    inputs, targets = data()
    places: list[int] = []

    def place(output: Tensor, target: Tensor) -> Tensor:
        places.append(output.data_ptr())
        return torch.tensor(0.0)

    state = torch.get_rng_state()
    Evaluator.from_tensors(inputs, targets, batch_size=3, loss=place)(nn.Identity())
    assert places == [inputs[i:].data_ptr() for i in range(0, len(inputs), 3)]
    torch.testing.assert_close(torch.get_rng_state(), state)
    with pytest.raises(EvaluationError, match="no samples"):
        Evaluator.from_tensors(inputs[:0], targets[:0])(nn.Identity())


def test_a_loss_of_the_users_own() -> None:
    inputs, targets = data()
    evaluate = Evaluator.from_tensors(inputs, targets, loss=lambda output, target: (output.sum(1) - target).mean())
    assert evaluate(nn.Identity())["loss"] == pytest.approx((inputs.sum(1) - targets).mean().item())


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 3)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 3, 2), torch.zeros(4, 3, dtype=torch.int64)),
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.bool)),
    ],
)
def test_no_accuracy_without_classes(output: Tensor, target: Tensor) -> None:
    evaluate = Evaluator.from_tensors(output, target, loss=lambda output, target: output.mean())
    assert list(evaluate(nn.Identity())) == ["loss"]


class Moving(nn.Module):
    """Dropout, BatchNorm and one frozen layer: whatever training mode could change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.linear = nn.Linear(4, 4)
        self.double()
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        out: Tensor = self.linear(self.drop(self.frozen(self.norm(x))))
        return out


def test_the_model_is_not_changed() -> None:
    model = Moving()
    model.linear.weight.grad = torch.ones(4, 4, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    Evaluator.from_tensors(*data())(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes == [True, True, False, True, True]
    torch.testing.assert_close(model.linear.weight.grad, torch.ones(4, 4, dtype=torch.float64))


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with evaluating(model):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_inputs_in_a_dictionary_are_passed_by_name() -> None:
    class Pick(nn.Module):
        def forward(self, pixels: list[Tensor]) -> Tensor:
            return pixels[0]

    inputs, targets = data()
    assert Evaluator([({"pixels": [inputs]}, targets)])(Pick()) == Evaluator([(inputs, targets)])(nn.Identity())


def test_batches_go_to_the_model_and_predictions_come_back() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Linear(4, 4).double().to(device)
    evaluate = Evaluator([data()], metrics={"top-2": top(2), "perplexity": perplexity})
    predictions = evaluate.predict(model)
    assert predictions[""].outputs.device == predictions[""].targets.device == torch.device("cpu")
    assert evaluate.score(predictions) == pytest.approx(evaluate(model), rel=1e-12)


def test_the_device_of_a_model_is_that_of_its_tensors() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.Identity()) == torch.device("cpu")


def test_an_empty_loader() -> None:
    with pytest.raises(EvaluationError, match="no samples"):
        Evaluator([])(nn.Identity())


def test_a_generator_is_rejected_at_once() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield data()

    with pytest.raises(EvaluationError, match="a generator, which can be read only once"):
        Evaluator(batches())


@pytest.mark.parametrize("batch", [torch.zeros(2), (torch.zeros(2),), (torch.zeros(2),) * 3, {"x": torch.zeros(2)}])
def test_batches_that_are_not_pairs(batch: Any) -> None:
    with pytest.raises(EvaluationError, match="not a pair"):
        Evaluator([batch])(nn.Identity())


@given(st.integers(1, 12), st.integers(1, 13))
def test_one_value_an_item_or_the_mean_of_a_batch(samples: int, batch_size: int) -> None:
    inputs, targets = data(samples)
    each = Evaluator.from_tensors(inputs, targets, loss=nn.CrossEntropyLoss(reduction="none"), batch_size=batch_size)
    mean = Evaluator.from_tensors(inputs, targets, loss=nn.CrossEntropyLoss(), batch_size=batch_size)
    assert each(nn.Identity()) == pytest.approx(mean(nn.Identity()), rel=1e-12)


def test_a_target_without_samples() -> None:
    with pytest.raises(EvaluationError, match="target is a int"):
        Evaluator([(torch.zeros(2, 2), 1)])(nn.Identity())
    with pytest.raises(EvaluationError, match=r"the target has no axis of samples.*; give a DataLoader, not a dataset"):
        Evaluator(list(TensorDataset(*data())))(nn.Identity())


def test_from_tensors_checks_its_sizes() -> None:
    with pytest.raises(EvaluationError, match=r"\(3, 2\) and targets \(4,\)"):
        Evaluator.from_tensors(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(EvaluationError, match="batch_size is 0"):
        Evaluator.from_tensors(torch.zeros(3, 2), torch.zeros(3), batch_size=0)


# --- several loaders, several metrics -----------------------------------------------------------------------------


class Counted(nn.Module):
    """An identity that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_train_and_test_side_by_side() -> None:
    train, test = data(7), data(5)
    found = Evaluator({"train": [train], "test": [test]})(nn.Identity())
    assert list(found) == ["train loss", "train accuracy", "test loss", "test accuracy"]
    for split, batch in (("train", train), ("test", test)):
        for name, value in Evaluator([batch])(nn.Identity()).items():
            assert found[f"{split} {name}"] == value


def test_one_forward_pass_a_batch() -> None:
    model = Counted()
    metrics = {"top-2": top(2), "perplexity": perplexity, "mean": lambda output, target: output.mean()}
    found = Evaluator.from_tensors(*data(), metrics=metrics, batch_size=3)(model)
    assert model.calls == 4
    assert list(found) == ["loss", "accuracy", "top-2", "perplexity", "mean"]


def test_which_metrics_are_better_when_higher() -> None:
    metrics = {"top-2": top(2), "gain": Metric(lambda output, target: output.sum(1), higher_is_better=True)}
    assert Evaluator([], metrics=metrics).higher_is_better == ("accuracy", "top-2", "gain")
    splits = Evaluator({"a": [], "b": []}, metrics={"perplexity": perplexity})
    assert splits.higher_is_better == ("a accuracy", "b accuracy")
    assert "loss" in Evaluator([], Metric(lambda output, target: output.mean(), higher_is_better=True)).higher_is_better


def test_the_accuracy_can_be_the_users_own() -> None:
    evaluate = Evaluator([data()], metrics={"accuracy": lambda output, target: torch.tensor(0.25)})
    assert evaluate(nn.Identity())["accuracy"] == 0.25
    assert evaluate.higher_is_better == ("accuracy",)


def test_outputs_with_logits() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(x)

    evaluate = Evaluator([data()], metrics={"top-3": top(3), "perplexity": perplexity})
    assert evaluate(Wrapped()) == evaluate(nn.Identity())
    torch.testing.assert_close(predict(Wrapped(), [data()]).outputs, data()[0])


def test_a_numbers_mean_weighs_samples_and_a_finish_comes_last() -> None:
    batches = [(torch.full((2, 1), 1.0), torch.zeros(2)), (torch.full((1, 1), 4.0), torch.zeros(1))]
    mean = Metric(lambda output, target: output.mean(), finish=lambda value: value**2)
    plain = lambda output, target: output.mean().item()  # noqa: E731
    found = Evaluator(batches, lambda output, target: output.mean(), metrics={"mean": mean, "plain": plain})
    assert found(nn.Identity()) == {"loss": 2.0, "mean": 4.0, "plain": 2.0}


def test_half_precision_is_summed_in_a_wider_type() -> None:
    output = torch.linspace(-1, 1, 4000).view(-1, 4).bfloat16()
    target = torch.arange(1000) % 4
    found = Evaluator([(output, target)], metrics={"values": lambda output, target: output[:, 0]})(nn.Identity())
    assert found["loss"] == pytest.approx(F.cross_entropy(output.double(), target).item(), rel=1e-6)
    assert found["values"] == pytest.approx(output[:, 0].double().mean().item(), abs=1e-6)


def test_predictions_are_scored_as_the_model_is() -> None:
    evaluate = Evaluator({"train": data_loader(7), "test": data_loader(5)}, metrics={"top-2": top(2)})
    predictions = evaluate.predict(nn.Identity())
    assert evaluate.score(predictions) == pytest.approx(evaluate(nn.Identity()), rel=1e-12)
    torch.testing.assert_close(predictions["test"].outputs, data(5)[0])
    torch.testing.assert_close(predictions["test"].targets, data(5)[1])
    with pytest.raises(EvaluationError, match=r"for \[''\], but the evaluator has \['train', 'test'\]"):
        evaluate.score({"": Predictions(*data())})


def data_loader(samples: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data(samples)), batch_size=3)


def test_predict_checks_its_batches() -> None:
    with pytest.raises(EvaluationError, match="target is a int"):
        predict(nn.Identity(), [(torch.zeros(2, 2), 1)])
    with pytest.raises(EvaluationError, match="nothing to predict"):
        predict(nn.Identity(), [])
    ragged = [(torch.zeros(1, 2, 3), torch.zeros(1, 2)), (torch.zeros(1, 4, 3), torch.zeros(1, 4))]
    with pytest.raises(EvaluationError, match=r"\(1, 2, 3\), \(1, 4, 3\).*pad them"):
        predict(nn.Identity(), ragged)
    with pytest.raises(EvaluationError, match="from which no batches can be read"):
        predict(nn.Identity(), 3)  # type: ignore[arg-type]


# --- what is wrong with metrics and data --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_named_with_their_data(value: float) -> None:
    evaluate = Evaluator({"train": [data()], "test": [(torch.full((2, 2), value), torch.tensor([0, 1]))]})
    with pytest.raises(EvaluationError, match="metric 'test loss' is nan"):
        evaluate(nn.Identity())
    big = Evaluator([data()], metrics={"scale": lambda output, target: torch.tensor(value)})
    with pytest.raises(EvaluationError, match=f"metric 'scale' is {value}"):
        big(nn.Identity())


def test_a_finish_that_overflows() -> None:
    evaluate = Evaluator([(1e4 * torch.eye(2), torch.tensor([1, 0]))], metrics={"perplexity": perplexity})
    with pytest.raises(EvaluationError, match="metric 'perplexity' is inf"):
        evaluate(nn.Identity())


def test_metrics_that_are_no_numbers() -> None:
    for value, what in ((None, "NoneType"), (torch.tensor(1j), "complex64")):
        with pytest.raises(EvaluationError, match=f"metric 'odd' is of type .*{what}"):
            Evaluator([data()], metrics={"odd": lambda output, target, value=value: value})(nn.Identity())  # type: ignore[misc]


def test_names_of_metrics() -> None:
    with pytest.raises(EvaluationError, match="called 'loss'; give the loss as loss="):
        Evaluator([], metrics={"loss": top(1)})
    with pytest.raises(EvaluationError, match="metric 'top' is a int"):
        Evaluator([], metrics={"top": 5})  # type: ignore[dict-item]
    with pytest.raises(EvaluationError, match="metrics is a list, but must be a dictionary of functions by name"):
        Evaluator([], metrics=[top(5)])  # type: ignore[arg-type]


def test_empty_loaders_are_named() -> None:
    with pytest.raises(EvaluationError, match="the loader of 'test' yielded no samples"):
        Evaluator({"train": [data()], "test": []})(nn.Identity())
    with pytest.raises(EvaluationError, match="empty dictionary"):
        Evaluator({})
    with pytest.raises(EvaluationError, match="a list_iterator, which can be read only once"):
        Evaluator({"train": [], "test": iter([])})


class Draining:
    """A loader with fewer batches each time."""

    def __init__(self, batches: int) -> None:
        self.batches = [data()] * batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.batches
        self.batches = self.batches[:-1]


@pytest.mark.parametrize(("batches", "message"), [(1, "yielded 0 samples, but 10"), (2, "yielded 10 samples, but 20")])
def test_a_loader_that_is_exhausted(batches: int, message: str) -> None:
    evaluate = Evaluator({"test": Draining(batches)}).same_data()
    evaluate(nn.Identity())
    with pytest.raises(EvaluationError, match=f"the loader of 'test' {message} when it was read first"):
        evaluate(nn.Identity())


def test_a_failing_metric_leaves_modes_and_gradients() -> None:
    def fail(output: Any, target: Any) -> Tensor:
        raise RuntimeError("stop")

    model = nn.Dropout()
    with pytest.raises(EvaluationError, match=r"metric 'fail' fails on .*: RuntimeError: stop") as caught:
        Evaluator([data()], metrics={"fail": fail})(model)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert model.training
    assert torch.is_grad_enabled()

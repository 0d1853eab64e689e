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
from autoperm.evaluate import Evaluator, device_of, evaluating


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


def test_nested_inputs_reach_the_model() -> None:
    class Pick(nn.Module):
        def forward(self, x: dict[str, list[Tensor]]) -> Tensor:
            return x["pixels"][0]

    inputs, targets = data()
    assert Evaluator([({"pixels": [inputs]}, targets)])(Pick()) == Evaluator([(inputs, targets)])(nn.Identity())


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


def test_a_loss_that_is_not_a_scalar() -> None:
    evaluate = Evaluator.from_tensors(*data(), loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(EvaluationError, match=r"shape \(10,\).*reduction='mean'"):
        evaluate(nn.Identity())


def test_a_target_without_samples() -> None:
    with pytest.raises(EvaluationError, match="target is a int"):
        Evaluator([(torch.zeros(2, 2), 1)])(nn.Identity())


def test_from_tensors_checks_its_sizes() -> None:
    with pytest.raises(EvaluationError, match=r"\(3, 2\) and targets \(4,\)"):
        Evaluator.from_tensors(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(EvaluationError, match="batch_size is 0"):
        Evaluator.from_tensors(torch.zeros(3, 2), torch.zeros(3), batch_size=0)

"""Several models that vote, and tables of models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autoperm import Comparison, Ensemble, Evaluator, compare, ensemble_curve, interpolate, predict
from autoperm.errors import ArchitectureError, EvaluationError, SpecError


def linear(seed: int) -> nn.Linear:
    model = nn.Linear(3, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def inputs(samples: int = 20) -> Tensor:
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def evaluator() -> Evaluator:
    return Evaluator.from_tensors(inputs(), torch.arange(20) % 4, batch_size=6)


class Counting(nn.Module):
    """Counts how often a model is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.model(x)


# --- the ensemble -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4))
def test_it_is_the_weighted_mean(weights: list[float]) -> None:
    models = [linear(seed) for seed in range(len(weights))]
    shares = [weight / sum(weights) for weight in weights]
    x = inputs()
    outputs = [model(x) for model in models]
    mean = sum(share * output for share, output in zip(shares, outputs, strict=True))
    torch.testing.assert_close(Ensemble(models, weights)(x), mean)
    mean = sum(share * output.softmax(-1) for share, output in zip(shares, outputs, strict=True))
    torch.testing.assert_close(Ensemble(models, weights, of="probabilities")(x).exp(), mean)


def test_classes_are_on_the_last_axis() -> None:
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = (linear(0)(tokens).softmax(-1) + linear(1)(tokens).softmax(-1)) / 2
    torch.testing.assert_close(Ensemble([linear(0), linear(1)], of="probabilities")(tokens).exp(), shares)


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_one_model_votes_as_it_says(of: Any) -> None:
    x = inputs()
    one = Ensemble([linear(0)], of=of)(x)
    torch.testing.assert_close(one.softmax(-1), linear(0)(x).softmax(-1))
    torch.testing.assert_close(Ensemble([linear(0), linear(1)], [1, 0], of=of)(x), one)
    torch.testing.assert_close(Ensemble([linear(0)] * 3, of=of)(x), one)


def test_linear_models_vote_as_their_mean() -> None:
    a, b = linear(0), linear(1)
    path, votes = interpolate(a, b, evaluator(), points=5), ensemble_curve(a, b, evaluator(), points=5)
    assert votes.lam == path.lam
    for metric, values in path.metrics.items():
        assert votes.metrics[metric] == pytest.approx(values)


def test_models_of_other_architectures_vote_too() -> None:
    other = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    assert Ensemble([linear(0), other])(inputs()).shape == (20, 4)


def test_it_holds_the_models_and_keeps_their_modes() -> None:
    a, b = linear(0).eval(), nn.Sequential(nn.Dropout(), linear(1)).eval()
    ensemble = Ensemble([a, b])
    assert not ensemble.training
    assert list(ensemble.models) == [a, b]
    b.train()
    evaluator()(ensemble)
    assert b[0].training
    assert not a.training


def test_half_precision_stays() -> None:
    models = [linear(seed).bfloat16() for seed in range(2)]
    assert Ensemble(models)(inputs().bfloat16()).dtype == torch.bfloat16
    assert Ensemble(models, of="probabilities")(inputs().bfloat16()).dtype == torch.bfloat16


def test_faults_of_an_ensemble() -> None:
    with pytest.raises(ArchitectureError, match="one model or more, and got none"):
        Ensemble([])
    for model in (linear(0), nn.Sequential(linear(0), linear(1))):
        with pytest.raises(ArchitectureError, match=r"a list of one model or more, and got a (Linear|Sequential)"):
            Ensemble(model)  # type: ignore[arg-type]
    assert len(Ensemble(nn.ModuleList([linear(0), linear(1)])).models) == 2
    with pytest.raises(SpecError, match="1 weights for 2 models"):
        Ensemble([linear(0), linear(1)], [1.0])
    with pytest.raises(SpecError, match="must be finite and not negative"):
        Ensemble([linear(0), linear(1)], [-1.0, 2.0])
    with pytest.raises(SpecError, match="no ensemble of 'votes'; choose from 'logits', 'probabilities'"):
        Ensemble([linear(0)], of="votes")  # type: ignore[arg-type]
    with pytest.raises(ArchitectureError, match="model 0 is on cpu and model 1 on meta"):
        Ensemble([linear(0), linear(1).to("meta")])
    with pytest.raises(EvaluationError, match="the model returned a str"):
        Ensemble([Text()])(inputs())


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "cat"


# --- along the path -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_its_points_are_ensembles_and_its_ends_the_models(of: Any) -> None:
    a, b = linear(0), linear(1)
    curve = ensemble_curve(a, b, evaluator(), points=5, of=of)
    for i, lam in enumerate(curve.lam):
        expected = evaluator()(Ensemble([a, b], (1 - lam, lam), of=of))
        assert {name: values[i] for name, values in curve.metrics.items()} == pytest.approx(expected)
    assert curve.higher_is_better == ("accuracy",)


def test_each_model_runs_once() -> None:
    a, b = Counting(linear(0)), Counting(linear(1))
    ensemble_curve(a, b, evaluator(), points=25)
    assert (a.calls, b.calls) == (4, 4)  # batches


def test_several_loaders() -> None:
    batch = inputs(), torch.arange(20) % 4
    curve = ensemble_curve(linear(0), linear(1), Evaluator({"train": [batch], "test": [batch]}), points=3)
    assert curve.metrics["train loss"] == curve.metrics["test loss"]


def test_a_loader_that_shuffles_is_found_out() -> None:
    loader = DataLoader(TensorDataset(inputs(), torch.arange(20) % 4), batch_size=20, shuffle=True)
    with pytest.raises(EvaluationError, match=r"the loader 'test' gave model B other targets.*do not shuffle"):
        ensemble_curve(linear(0), linear(1), Evaluator({"test": loader}))
    with pytest.raises(EvaluationError, match="the loader gave model B other targets"):
        ensemble_curve(linear(0), linear(1), Evaluator(loader))


def test_what_a_path_of_ensembles_needs() -> None:
    with pytest.raises(SpecError, match="no ensemble of 'votes'"):
        ensemble_curve(linear(0), linear(1), evaluator(), of="votes")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="points is 1"):
        ensemble_curve(linear(0), linear(1), evaluator(), points=1)


# --- tables -------------------------------------------------------------------------------------------------------


def test_a_table_of_models() -> None:
    a, b = linear(0), linear(1)
    models = {"A": a, "B": b, "ensemble": Ensemble([a, b])}
    table = compare(models, evaluator())
    assert table.models == ("A", "B", "ensemble")
    for i, model in enumerate(models.values()):
        assert {name: values[i] for name, values in table.metrics.items()} == evaluator()(model)
    assert table.records()[1] == {"model": "B", **evaluator()(b)}
    assert Comparison.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_the_best_has_a_star() -> None:
    table = Comparison(("A", "merged"), {"loss": (0.5, 0.25), "accuracy": (0.5, 0.5), "risk": (0.1, 0.2)})
    assert (table.best(), table.best("accuracy"), table.best("risk")) == ("merged", "A", "A")
    assert [line.count("*") for line in str(table).splitlines()] == [0, 2, 1]
    better = Comparison(("A", "merged"), {"score": (0.5, 0.25)}, higher_is_better=("score",))
    assert better.best("score") == "A"
    with pytest.raises(SpecError, match="no metric 'perplexity'; it has 'loss', 'accuracy', 'risk'"):
        table.best("perplexity")


def test_what_is_better_comes_from_the_evaluator_or_the_caller() -> None:
    def score(model: nn.Module) -> dict[str, float]:
        return {"score": float(predict(model, [(inputs(), torch.zeros(20))]).outputs.sum())}

    models = {"A": linear(0), "B": linear(1)}
    assert compare(models, score).higher_is_better == ("accuracy",)
    low, high = compare(models, score).best("score"), compare(models, score, higher_is_better=["score"]).best("score")
    assert {low, high} == {"A", "B"}


def test_faults_name_the_model() -> None:
    models: dict[str, nn.Module] = {"A": nn.Identity(), "B": nn.ReLU()}
    results: list[Any] = [{"loss": 1.0}, {"loss": math.nan}]
    with pytest.raises(EvaluationError, match="model 'B': metric 'loss' is nan"):
        compare(models, lambda model: results[isinstance(model, nn.ReLU)])
    results[1] = {"risk": 1.0}
    with pytest.raises(EvaluationError, match="metrics 'risk' for model 'B', but 'loss' for model 'A'"):
        compare(models, lambda model: results[isinstance(model, nn.ReLU)])
    for none, what in (({}, "an empty one"), ([linear(0)], "a list"), (linear(0), "a Linear")):
        with pytest.raises(EvaluationError, match=f"dictionary of models.*, and got {what}"):
            compare(none, evaluator())  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"evaluate is a list.*; give Evaluator\(loader\)"):
        compare(models, evaluator().data)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\('accuracy',\)"):
        compare(models, lambda model: {"loss": 0.0}, higher_is_better="accuracy")
    with pytest.raises(SpecError, match="'loss' has 1 values for 2 models"):
        Comparison(("A", "B"), {"loss": (1.0,)})


def test_models_are_compared_on_the_same_data() -> None:
    class Shrinking:
        batches = [(inputs(), torch.arange(20) % 4)] * 3

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.batches = self.batches[1:]
            return iter(self.batches)

    with pytest.raises(EvaluationError, match="model 'B': the loader yielded 20 samples, but 40"):
        compare({"A": linear(0), "B": linear(1)}, Evaluator(Shrinking()))


def test_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    compare({"A": linear(0)}, evaluator())
    assert capsys.readouterr().err == ""
    compare({"A": linear(0)}, evaluator(), progress=True)
    assert "1/1" in capsys.readouterr().err

"""Paths between models, and barriers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from ends import Tied, inputs, net, targets, weightless
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autoperm import Curve, PermutationSpec, Repair, align, discover, interpolate, lerp, slerp
from autoperm.errors import ArchitectureError, EvaluationError, SpecError, WeightsError
from autoperm.evaluate import Evaluator
from autoperm.metrics import top

Reference = Literal["mean", "chord"]
REFERENCES: tuple[Reference, ...] = ("mean", "chord")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
values = st.floats(-1e3, 1e3)


def line(points: int) -> tuple[float, ...]:
    return tuple(i / (points - 1) for i in range(points))


def made(*loss: float) -> Curve:
    return Curve(line(len(loss)), {"loss": loss})


# --- the path -----------------------------------------------------------------------------------------------------


def test_the_ends_are_the_models_bitwise() -> None:
    a, b = net(0), net(1)
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(copy.deepcopy(model.state_dict()))
        return {"loss": 0.0}

    interpolate(a, b, evaluate, points=3)
    torch.testing.assert_close(seen[0], dict(a.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(seen[2], dict(b.state_dict()), rtol=0, atol=0)
    middle = {name: (tensor + b.state_dict()[name]) / 2 for name, tensor in a.state_dict().items()}
    middle["1.num_batches_tracked"] = torch.tensor(0)
    torch.testing.assert_close(seen[1], middle)


@pytest.mark.parametrize("points", [2, 3, 7, 25])
def test_the_positions_include_both_ends(points: int) -> None:
    curve = interpolate(net(0), net(1), weightless, points=points)
    assert curve.lam[0] == 0.0
    assert curve.lam[-1] == 1.0
    torch.testing.assert_close(torch.tensor(curve.lam), torch.linspace(0, 1, points))


def test_the_ends_score_what_the_models_score() -> None:
    a, b = net(0), net(1)
    evaluate = Evaluator.from_tensors(inputs(), targets())
    curve = interpolate(a, b, evaluate, points=4)
    for metric, scores in curve.metrics.items():
        assert scores[0] == evaluate(a)[metric]
        assert scores[-1] == evaluate(b)[metric]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("points", [2, 10, 25])
def test_no_barrier_from_a_model_to_itself(reference: Reference, points: int) -> None:
    curve = interpolate(net(0), net(0), Evaluator.from_tensors(inputs(), targets()), points=points)
    assert curve.barrier("loss", reference=reference) == 0.0
    assert curve.barrier("accuracy", reference=reference) == 0.0


@pytest.mark.parametrize("renormalize", [None, "batch_norm"])
def test_the_models_are_not_changed(renormalize: Literal["batch_norm"] | None) -> None:
    a, b = net(0), net(1)
    a[1].eval()
    b.eval()
    for model in (a, b):
        model(inputs()).sum().backward()
    states = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    grads = [[p.grad.clone() for p in model.parameters() if p.grad is not None] for model in (a, b)]
    modes = [[module.training for module in model.modules()] for model in (a, b)]

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not any(module.training for module in model.modules())
        model.train()
        model(inputs())
        for parameter in model.parameters():
            parameter.data.zero_()
        return {"loss": 0.0}

    interpolate(a, b, evaluate, points=3, renormalize=renormalize, data=[inputs()] if renormalize else None)
    for model, state, grad, mode in zip((a, b), states, grads, modes, strict=True):
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        torch.testing.assert_close([p.grad for p in model.parameters()], grad, rtol=0, atol=0)
        assert [module.training for module in model.modules()] == mode


def test_what_evaluate_does_to_the_model_does_not_reach_the_next_point() -> None:
    seen: list[float] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        bias = next(p for name, p in model.named_parameters() if name == "bias")
        seen.append(bias.item())
        bias.data.fill_(99.0)
        return {"loss": 0.0}

    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    a.bias.data.fill_(0.0)
    b.bias.data.fill_(4.0)
    interpolate(a, b, evaluate, points=5)
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_renormalized_at_every_point_and_both_ends() -> None:
    a, b = net(0), net(1)
    errors: list[float] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        first, norm = list(model.children())[:2]
        with torch.no_grad():
            mean = first(inputs()).mean(0)
        errors.append(float((norm.get_buffer("running_mean") - mean).abs().max()))
        return {"loss": 0.0}

    interpolate(a, b, evaluate, points=5, renormalize="batch_norm", data=[(inputs(), targets())])
    assert len(errors) == 5
    assert max(errors) < 1e-14


def test_renormalizing_makes_no_copy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    monkeypatch.setattr("copy.deepcopy", lambda *args, real=copy.deepcopy: made.append(args[0]) or real(*args))
    a, b = net(0), net(1)
    interpolate(a, b, weightless, points=5, renormalize="batch_norm", data=[inputs()])
    assert [model for model in made if isinstance(model, nn.Module)] == [a]


def test_extra_state_stays() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: object) -> None:
            assert state == {"version": 1}

    interpolate(Extra(1, 1), Extra(1, 1), weightless, points=3)


class Loading(nn.Linear):
    """A layer that does something of its own when it loads its weights: it doubles a buffer that it does not save."""

    doubled: Tensor

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        self.register_buffer("doubled", 2 * self.weight.detach(), persistent=False)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.doubled = 2 * self.weight.detach()


def test_a_model_that_loads_in_its_own_way() -> None:
    a, b = Loading(), Loading()
    curve = interpolate(a, b, lambda model: {"ratio": (model.doubled / model.weight).item()}, points=5)  # type: ignore[operator]
    assert curve.metrics["ratio"] == (2.0,) * 5


class Saved(nn.Linear):
    """A layer whose state dict has copies of its weights."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


def test_a_state_dict_that_does_not_share_memory() -> None:
    a, b = Saved(1, 1, bias=False), Saved(1, 1, bias=False)
    a.weight.data.fill_(0.0)
    b.weight.data.fill_(4.0)
    curve = interpolate(a, b, lambda model: {"weight": model.weight.item()}, points=5)
    assert curve.metrics["weight"] == (0.0, 1.0, 2.0, 3.0, 4.0)


def test_one_copy_for_the_whole_path() -> None:
    models, places = set(), set()

    def evaluate(model: nn.Module) -> dict[str, float]:
        models.add(id(model))
        places.add(tuple(tensor.data_ptr() for tensor in model.state_dict().values()))
        return {"loss": 0.0}

    interpolate(net(0), net(1), evaluate, points=5)
    assert len(models) == len(places) == 1


def test_evaluate_may_replace_tensors_but_not_convert_them() -> None:
    seen: list[float] = []

    def replace(model: nn.Module) -> dict[str, float]:
        weight = model.get_parameter("weight")
        seen.append(weight.item())
        weight.data = torch.full((1, 1), 9.0)
        return {"loss": 0.0}

    a, b = (nn.Linear(1, 1, bias=False) for _ in "ab")
    a.weight.data.fill_(0.0)
    b.weight.data.fill_(4.0)
    interpolate(a, b, replace, points=3)
    assert seen == [0.0, 2.0, 4.0]
    with pytest.raises(EvaluationError, match=r"at lam = 0\.5: the model's tensors 'weight' have another .* dtype"):
        interpolate(a, b, lambda model: {"loss": float(len(list(model.half().modules())))}, points=3)


def test_gradients_do_not_outlive_their_point() -> None:
    def slope(model: nn.Module) -> dict[str, float]:
        (model(torch.ones(1, 1)) ** 2).sum().backward()
        gradient = model.get_parameter("weight").grad
        assert gradient is not None
        return {"slope": gradient.item()}

    a, b = (nn.Linear(1, 1, bias=False) for _ in "ab")
    a.weight.data.fill_(0.0)
    b.weight.data.fill_(4.0)
    assert interpolate(a, b, slope, points=3).metrics["slope"] == (0.0, 4.0, 8.0)
    assert a.weight.grad is None


def test_a_cache_does_not_outlive_its_point() -> None:
    class Cached(nn.Linear):
        cache: Tensor | None = None

        def train(self, mode: bool = True) -> Cached:
            if mode:
                self.cache = None
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.cache is None:
                self.cache = 2 * self.weight.detach()
            return x @ self.cache

    a, b = Cached(1, 1, bias=False), Cached(1, 1, bias=False)
    a.weight.data.fill_(0.0)
    b.weight.data.fill_(4.0)
    curve = interpolate(a, b, lambda model: {"loss": model(torch.ones(1, 1)).item()}, points=3)
    assert curve.metrics["loss"] == (0.0, 4.0, 8.0)


@pytest.mark.parametrize("path", ["lerp", "slerp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_points_are_those_of_the_state_dicts(path: Literal["lerp", "slerp"], dtype: torch.dtype) -> None:
    a, b = net(0).to(DEVICE, dtype), net(1).to(DEVICE, dtype)
    b[1].running_var.fill_(3.0)  # type: ignore[union-attr, operator]
    buffers = [name for name, _ in a.named_buffers()]
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(copy.deepcopy(model.state_dict()))
        return {"loss": 0.0}

    curve = interpolate(a, b, evaluate, points=4, path=path)
    states = a.state_dict(), b.state_dict()
    for lam, found in zip(curve.lam, seen, strict=True):
        expected = lerp(*states, lam) if path == "lerp" else slerp(*states, lam, linear=buffers)
        torch.testing.assert_close(dict(found), expected, rtol=0, atol=0)


def test_tied_weights() -> None:
    interpolate(Tied(tied=True), Tied(tied=True), weightless, points=3)
    with pytest.raises(ArchitectureError, match=r"'encode\.weight'.*tied weights"):
        interpolate(Tied(tied=True), Tied(tied=False), weightless)


def test_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    interpolate(net(0), net(1), weightless, points=3)
    assert capsys.readouterr().err == ""
    interpolate(net(0), net(1), weightless, points=3, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_numbers_of_any_kind() -> None:
    curve = interpolate(
        net(0), net(1), lambda model: {"loss": torch.tensor([2.0], requires_grad=True), "n": 3}, points=2
    )
    assert curve.metrics == {"loss": (2.0, 2.0), "n": (3.0, 3.0)}


def test_which_metrics_are_better_when_higher() -> None:
    assert interpolate(net(0), net(1), weightless, points=2).higher_is_better == ("accuracy",)
    assert interpolate(net(0), net(1), weightless, points=2, higher_is_better=["f1"]).higher_is_better == ("f1",)
    evaluate = Evaluator({"test": [(inputs(), targets())]}, metrics={"top-2": top(2)})
    curve = interpolate(net(0), net(1), evaluate, points=3)
    assert curve.higher_is_better == ("test accuracy", "test top-2")
    assert curve.barrier("test top-2") == 0.0
    accuracy = curve.metrics["test accuracy"]
    assert curve.barrier("test accuracy") == (accuracy[0] + accuracy[-1]) / 2 - min(accuracy)


@cache
def learned() -> tuple[nn.Module, PermutationSpec]:
    """A network that has learned which of three points is the nearest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(PLACES), NEAREST).backward()
        optimizer.step()
    return model.eval(), discover(model, PLACES[:4])


PLACES = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NEAREST = torch.cdist(PLACES, torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]]).double()).argmin(1)


@pytest.mark.parametrize("path", ["lerp", "slerp"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=6)
def test_no_barrier_to_a_models_own_permutation_once_aligned(path: Literal["lerp", "slerp"], seed: int) -> None:
    model, spec = learned()
    shuffled = spec.random(seed).apply(model)
    evaluate = Evaluator([(PLACES, NEAREST)])
    naive = interpolate(model, shuffled, evaluate, points=11, path=path)
    aligned = interpolate(model, align(model, shuffled, spec=spec).model, evaluate, points=11, path=path)
    for reference in REFERENCES:
        assert naive.barrier(reference=reference) > 5 * naive.metrics["loss"][0]
        assert aligned.barrier(reference=reference) == pytest.approx(0, abs=1e-12)
        assert aligned.barrier("accuracy", reference=reference) == 0.0


# --- errors of the path -------------------------------------------------------------------------------------------


def test_architectures_and_weights_are_checked() -> None:
    with pytest.raises(ArchitectureError, match=r"weight: shape \(1, 2\) in A, \(1, 3\) in B"):
        interpolate(nn.Linear(2, 1), nn.Linear(3, 1), weightless)
    broken = net(1)
    nn.init.constant_(broken[0].bias, math.nan)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"model B has NaN or infinite values:\n  0\.bias: 5 of 5"):
        interpolate(net(0), broken, weightless)
    with pytest.raises(WeightsError, match="model A"):
        interpolate(broken, net(0), weightless)
    with pytest.raises(WeightsError, match=r"model A has tensors without values \(device meta\), such as '0\.weight'"):
        interpolate(net(0).to("meta"), net(1).to("meta"), weightless)


def test_what_is_no_model_and_no_evaluation() -> None:
    for odd in (net(0).state_dict(), [net(0)], "a.pt"):
        with pytest.raises(ArchitectureError, match=f"a model is needed, and got a {type(odd).__name__}; build"):
            interpolate(net(1), odd, weightless)  # type: ignore[arg-type]
    for loader in ([(inputs(), targets())], net(2)):
        with pytest.raises(EvaluationError, match=r"evaluate is a (list|Sequential), but must be.*Evaluator"):
            interpolate(net(0), net(1), loader)  # type: ignore[arg-type]


def test_points_must_be_two_or_more() -> None:
    with pytest.raises(SpecError, match="points is 1"):
        interpolate(net(0), net(1), weightless, points=1)


def test_renormalize_and_data_belong_together() -> None:
    with pytest.raises(SpecError, match=r"needs data=\.\.\."):
        interpolate(net(0), net(1), weightless, renormalize="batch_norm")
    with pytest.raises(SpecError, match="data is given"):
        interpolate(net(0), net(1), weightless, data=[inputs()])
    for odd in (True, Repair, nn.Identity()):
        with pytest.raises(SpecError, match=r"renormalize is .*; choose 'batch_norm', 'repair'.* Repair\(data\)"):
            interpolate(net(0), net(1), weightless, renormalize=odd)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="'warp'; choose 'batch_norm'"):
        interpolate(net(0), net(1), weightless, renormalize="warp")


def test_data_must_be_rereadable() -> None:
    def batches() -> Iterator[Tensor]:
        yield inputs()

    with pytest.raises(EvaluationError, match="read only once"):
        interpolate(net(0), net(1), weightless, renormalize="batch_norm", data=batches())


def test_there_is_no_such_path() -> None:
    with pytest.raises(SpecError, match="no path 'arc'; choose from 'lerp', 'slerp'"):
        interpolate(net(0), net(1), weightless, path="arc")  # type: ignore[arg-type]


class Draining:
    """A loader with nothing left after some reads."""

    def __init__(self, reads: int) -> None:
        self.reads = reads

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads -= 1
        return iter([(inputs(), targets())] if self.reads >= 0 else [])


def test_a_loader_that_is_empty_or_exhausted_says_where() -> None:
    with pytest.raises(EvaluationError, match="at lam = 0: the loader yielded no samples"):
        interpolate(net(0), net(1), Evaluator(Draining(0)), points=3)
    with pytest.raises(EvaluationError, match=r"at lam = 0\.5: the loader of 'test' yielded 0 samples, but 8"):
        interpolate(net(0), net(1), Evaluator({"test": Draining(1)}), points=3)


def test_a_metric_that_is_not_finite_says_where() -> None:
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    a.weight.data.fill_(-1.0)
    b.weight.data.fill_(1.0)
    evaluate = Evaluator(
        {"test": [(torch.ones(1, 1), torch.ones(1))]},
        lambda output, target: output.mean(),
        metrics={"inverse": lambda output, target: (1 / output).mean()},
    )
    with pytest.raises(EvaluationError, match=r"at lam = 0\.5: metric 'test inverse' is inf"):
        interpolate(a, b, evaluate, points=3)


def test_higher_is_better_is_not_a_string() -> None:
    with pytest.raises(SpecError, match=r"\('accuracy',\)"):
        interpolate(net(0), net(1), weightless, higher_is_better="accuracy")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (0.5, r"0\.5 \(float\), but must return a dictionary"),
        (None, "None .NoneType."),
        (torch.zeros(2), r"a tensor of shape \(2,\)"),
        ({}, "empty dictionary"),
        ({1: 0.5}, "metric named 1"),
        ({"loss": "low"}, r"at lam = 0: metric 'loss' is 'low' \(str\)"),
        ({"loss": torch.zeros(3)}, r"metric 'loss' is a tensor of shape \(3,\)"),
        ({"loss": None}, "metric 'loss' is None"),
        ({"loss": math.nan}, "at lam = 0: metric 'loss' is nan"),
        ({"loss": torch.tensor(math.inf)}, "at lam = 0: metric 'loss' is inf"),
    ],
)
def test_bad_results_name_the_metric_and_the_value(result: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        interpolate(net(0), net(1), lambda model: result, points=3)


def test_a_bad_value_in_the_middle_names_its_position() -> None:
    results = iter([1.0, math.nan, 1.0])
    with pytest.raises(EvaluationError, match=r"at lam = 0\.5"):
        interpolate(net(0), net(1), lambda model: {"loss": next(results)}, points=3)


def test_metrics_must_not_change() -> None:
    results = iter([{"loss": 1.0}, {"risk": 1.0}])
    with pytest.raises(EvaluationError, match=r"'risk' at lam = 1, but 'loss' at lam = 0"):
        interpolate(net(0), net(1), lambda model: next(results), points=2)


# --- barriers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "mean", "chord"),
    [
        ((1.0, 3.0, 1.0), 2.0, 2.0),
        ((0.0, 3.0, 2.0), 2.0, 2.0),
        ((0.0, 2.0, 2.0, 3.0, 4.0), 2.0, 1.0),
        ((0.0, 0.0, 4.0), 2.0, 0.0),
        ((4.0, 0.0), 2.0, 0.0),
        ((1.0, 0.0, 1.0), 0.0, 0.0),
    ],
)
def test_barriers_by_hand(loss: tuple[float, ...], mean: float, chord: float) -> None:
    assert made(*loss).barrier() == mean
    assert made(*loss).barrier(reference="chord") == chord


def test_a_chord_goes_through_both_ends_exactly() -> None:
    curve = Curve((0.0, 0.5, 1.0), {"loss": (0.7, 0.0, 0.1)})
    assert 0.7 + (0.1 - 0.7) < 0.1  # what rounding would make of it
    assert curve.barrier(reference="chord") == 0.0


@given(values, values, st.floats(0, 1e3), st.integers(2, 30))
def test_a_convex_curve_has_no_chord_barrier(start: float, end: float, bend: float, points: int) -> None:
    curve = made(*((1 - lam) * start + lam * end - bend * lam * (1 - lam) for lam in line(points)))
    assert curve.barrier(reference="chord") == pytest.approx(0, abs=1e-9)


@given(st.lists(values, min_size=2, max_size=30), st.booleans())
def test_a_monotone_curve_has_half_its_gap_as_mean_barrier(loss: list[float], falling: bool) -> None:
    curve = made(*sorted(loss, reverse=falling))
    assert curve.barrier() == pytest.approx((max(loss) - min(loss)) / 2, abs=1e-9)


@given(st.lists(values, min_size=2, max_size=30))
def test_lower_bounds(loss: list[float]) -> None:
    curve = made(*loss)
    assert curve.barrier() >= abs(loss[0] - loss[-1]) / 2 - 1e-9
    assert curve.barrier(reference="chord") >= 0


@given(st.lists(values, min_size=2, max_size=30))
def test_the_references_agree_between_equal_ends(loss: list[float]) -> None:
    curve = made(*loss, loss[0])
    assert curve.barrier() == curve.barrier(reference="chord")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_barrier_of_the_accuracy_is_that_of_the_error(accuracy: list[float]) -> None:
    error = tuple(1 - value for value in accuracy)
    curve = Curve(line(len(error)), {"error": error, "accuracy": tuple(accuracy)})
    for reference in REFERENCES:
        expected = curve.barrier("error", reference=reference)
        assert curve.barrier("accuracy", reference=reference) == pytest.approx(expected, abs=1e-12)


def test_unknown_metrics_and_references_list_the_valid_ones() -> None:
    curve = Curve(line(2), {"loss": (0.0, 0.0), "accuracy": (1.0, 1.0)})
    with pytest.raises(SpecError, match="no metric 'los'; it has 'loss', 'accuracy'"):
        curve.barrier("los")
    with pytest.raises(SpecError, match="'median' for a barrier; choose from 'mean', 'chord'"):
        curve.barrier(reference="median")  # type: ignore[arg-type]


# --- the curve as an object ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(values, values), min_size=2, max_size=9))
def test_json_gives_the_curve_back(rows: list[tuple[float, float]]) -> None:
    loss, risk = zip(*rows, strict=True)
    curve = Curve(line(len(rows)), {"loss": loss, "risk": risk}, higher_is_better=("risk",))
    assert Curve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    curve = Curve((0.0, 1.0), {"loss": tuple(np.array([0.5, 0.25], dtype=np.float32))})
    curve.save(tmp_path / "curve.json")
    assert Curve.load(tmp_path / "curve.json") == curve


def test_from_dict_names_what_is_missing() -> None:
    with pytest.raises(SpecError, match="'metrics' is missing"):
        Curve.from_dict({"lam": [0, 1], "higher_is_better": []})


@pytest.mark.parametrize("lam", [(), (0.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.7, 0.6, 1.0), (0.0, math.nan, 1.0)])
def test_positions_rise_from_0_to_1(lam: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="must rise from 0 to 1"):
        Curve(lam, {"loss": (0.0,) * len(lam)})


def test_values_fit_the_positions() -> None:
    with pytest.raises(SpecError, match="metric 'loss' is nan at 1 of 3 positions lam"):
        made(0.0, math.nan, 0.0)
    with pytest.raises(SpecError, match="metric 'loss' has 3 values for 2 positions"):
        Curve((0.0, 1.0), {"loss": (0.0, 0.0, 0.0)})


def test_the_table() -> None:
    points = 25
    loss = tuple(0.25 + lam * (1 - lam) for lam in line(points))
    text = str(Curve(line(points), {"loss": loss, "accuracy": (0.9,) * points}))
    assert text.splitlines() == [
        "   lam        loss    accuracy",
        "  0.00        0.25         0.9",
        "  0.25      0.4375         0.9",
        "  0.50         0.5         0.9",
        "  0.75      0.4375         0.9",
        "  1.00        0.25         0.9",
        "barrier",
        "  mean        0.25           0",
        " chord        0.25           0",
    ]

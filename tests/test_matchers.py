"""Matchers by name, and what they are given and may return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import floats, randomize
from torch import Tensor, nn

from autoperm import (
    ActivationMatching,
    Match,
    MergeMany,
    ModelMatcher,
    Permutation,
    PermutationSpec,
    SimulatedAnnealing,
    Sinkhorn,
    StraightThrough,
    ToReference,
    align,
    align_many,
)
from autoperm.errors import ArchitectureError, EvaluationError, MatcherError
from autoperm.matchers import get_many_matcher, get_matcher
from autoperm.matching import ManyMatcher

State = Mapping[str, Tensor]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


SPEC = PermutationSpec.from_patterns({"0.weight": "p _", "0.bias": "p", "2.weight": "_ p"}, net())


def two() -> tuple[nn.Module, nn.Module]:
    a, b = (randomize(net().double().eval(), seed) for seed in (1, 2))
    return a, b


def data() -> list[tuple[Tensor, Tensor]]:
    return [(floats(32, 6)()[0], torch.zeros(32, 3, dtype=torch.float64))]


NAMES = ["weight", "straight-through", "identity", "greedy", "annealing", "exhaustive"]


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_name_aligns(name: str, progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
    a, b = two()
    given: dict[str, Any] = {"data": data(), "loss": F.mse_loss} if name == "straight-through" else {}
    aligned = align(a, b, spec=SPEC, matcher=name, progress=progress, **given)
    x = floats(7, 6)()[0]
    torch.testing.assert_close(aligned.model(x), b(x))
    shows = name not in ("identity", "greedy")
    assert bool(capfd.readouterr().err) == (progress and shows)


def test_the_exhaustive_one_finds_the_best_inner_product_of_all() -> None:
    a, b = two()
    values = {}
    for name in ("identity", "greedy", "annealing", "exhaustive"):
        moved = align(a, b, spec=SPEC, matcher=name).model
        pairs = zip(a.parameters(), moved.parameters(), strict=True)
        values[name] = sum(float((p * q).detach().sum()) for p, q in pairs)
    assert values["exhaustive"] == pytest.approx(max(values.values()))
    assert values["exhaustive"] > values["identity"]


def test_names_and_objects() -> None:
    batches = data()
    made = get_matcher("straight-through", data=batches, loss=F.mse_loss, progress=True)
    assert made == StraightThrough(batches, F.mse_loss, progress=True)
    assert isinstance(made, ModelMatcher)
    assert get_matcher(made) is made
    assert get_many_matcher("merge-many", progress=True) == MergeMany(progress=True)
    assert get_many_matcher("reference") == ToReference()
    assert get_many_matcher(made) == ToReference(made)
    many = MergeMany(seed=1)
    assert isinstance(many, ManyMatcher)
    assert get_many_matcher(many) is many


# --- data and loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("weight", {"data": []}, "matcher 'weight' needs no data"),
        ("greedy", {"loss": F.mse_loss}, "matcher 'greedy' needs no loss"),
        ("straight-through", {}, r"'straight-through' needs data=\.\.\. and loss=\.\.\.; data is missing"),
        ("straight-through", {"data": []}, r"needs data=\.\.\. and loss=\.\.\.; loss is missing"),
        ("annealing", {"data": []}, "annealing needs data and loss, or neither; loss is missing"),
        (lambda spec, *_: spec.identity(), {"data": []}, "data is for a matcher that is named by a string"),
        (lambda spec, *_: spec.identity(), {"loss": F.mse_loss}, "loss is for a matcher that is named by a string"),
        ("wieght", {}, "no matcher is called 'wieght'; there are 'weight', "),
        ("merge-many", {}, "no matcher is called 'merge-many'.*'merge-many' is for align_many"),
        (3, {}, r"int object is no matcher: it must be a name \('weight', .*\) or a callable"),
        (None, {}, "NoneType object is no matcher"),
    ],
)
def test_what_is_missing_or_useless_is_said(name: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(MatcherError, match=says):
        align(*two(), spec=SPEC, matcher=name, **given)


@pytest.mark.parametrize("matcher", [StraightThrough, ActivationMatching])
def test_a_class_is_no_matcher(matcher: Any) -> None:
    with pytest.raises(
        MatcherError, match=rf"{matcher.__name__} is a class; make a matcher of it: {matcher.__name__}\("
    ):
        align(*two(), spec=SPEC, matcher=matcher)
    with pytest.raises(MatcherError, match="is a class"):
        align_many(two(), spec=SPEC, matcher=matcher)


def test_a_matcher_of_many_models_is_not_one_of_two() -> None:
    with pytest.raises(MatcherError, match="MergeMany object is for align_many"):
        align(*two(), spec=SPEC, matcher=MergeMany())


@pytest.mark.parametrize("name", ["activation", "straight-through", "sinkhorn", "annealing"])
def test_data_that_cannot_be_read_are_refused(name: str) -> None:
    given: Any = {} if name == "activation" else {"loss": F.mse_loss}
    with pytest.raises(EvaluationError, match="the data is a int, from which no batches can be read"):
        align(*two(), spec=SPEC, matcher=name, data=3, **given)


def test_a_generator_is_read_for_one_pair_of_models_only() -> None:
    a, b = two()
    align(a, b, spec=SPEC, matcher="activation", data=iter(data()))
    with pytest.raises(EvaluationError, match=r"no batches.*a list_iterator can be read only once: give a DataLoader"):
        align_many([a, b, b], spec=SPEC, matcher="activation", data=iter(data()))


# --- unusual models -----------------------------------------------------------------------------------------------


def with_data(loss: Any) -> list[Any]:
    batches = data()
    path = [Sinkhorn(batches, loss, objective=objective, steps=2) for objective in ("midpoint", "random")]
    return [StraightThrough(batches, loss, steps=2), SimulatedAnnealing(batches, loss, steps=2), *path]


@pytest.mark.parametrize("number", range(4))
def test_a_model_without_parameters_stays(number: int) -> None:
    a, b = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())
    loss = lambda output, target: output.square().mean()  # noqa: E731
    assert align(a, b, example_inputs=data()[0][0], matcher=with_data(loss)[number]).permutation.is_identity


class Table(nn.Module):
    """A parameter and a buffer that are integers."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 4).double(), nn.Linear(4, 3).double()
        self.shift = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu())[:, self.order] + self.shift


@pytest.mark.parametrize("number", range(4))
def test_integers_have_no_midpoint(number: int) -> None:
    a, b, other = Table([0, 2, 1]), Table([0, 2, 1]), Table([2, 1, 0])
    x = data()[0][0]
    matcher = with_data(F.mse_loss)[number]
    torch.testing.assert_close(align(a, b, example_inputs=x, matcher=matcher).model(x), b(x))
    with pytest.raises(ArchitectureError, match="integer or boolean tensors, between which there is no path"):
        align(a, other, example_inputs=x, matcher=matcher)


# --- what a matcher returns ---------------------------------------------------------------------------------------


def other_spec() -> PermutationSpec:
    return PermutationSpec.from_patterns({"0.weight": "p _", "0.bias": "p", "2.weight": "_ p"}, nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))  # fmt: skip


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "matcher 'mine' returned a NoneType, not a Permutation or a Match: None"),
        ({"p": torch.tensor([1, 0, 2, 3])}, "matcher 'mine' returned a dict, not a Permutation"),
        (
            Match([1, 0], (), 1, True),
            r"matcher 'mine' returned a Match with a list, not a Permutation or a Match: \[1, 0",
        ),
        (
            other_spec().random(0),
            "'mine' returned a permutation of another specification, with the factors p=5; .* p=4",
        ),
        (Match(other_spec().random(0), (), 1, True), "another specification"),
    ],
)
def test_what_is_no_permutation_of_the_specification_is_refused(returned: Any, says: str) -> None:
    def mine(spec: PermutationSpec, a: State, b: State, /) -> Any:
        return returned

    with pytest.raises(MatcherError, match=says):
        align(*two(), spec=SPEC, matcher=mine)


def test_an_equal_specification_is_the_same() -> None:
    a, b = two()
    same = PermutationSpec.from_json(SPEC.to_json())
    aligned = align(a, b, spec=SPEC, matcher=lambda *_: same.random(0))
    assert aligned.permutation == SPEC.random(0)


@pytest.mark.parametrize("which", ["A", "B"])
def test_a_matcher_that_writes_to_a_model_is_found_out(which: str) -> None:
    def careless(spec: PermutationSpec, a: State, b: State, /) -> Permutation:
        (a if which == "A" else b)["2.weight"].mul_(2)
        return spec.identity()

    with pytest.raises(MatcherError, match=rf"matcher 'careless' has changed model {which} in place: 2\.weight"):
        align(*two(), spec=SPEC, matcher=careless)


def test_weights_made_in_inference_mode_can_be_aligned() -> None:
    a = randomize(net().double().eval(), 1)
    with torch.inference_mode():
        b = randomize(net().double().eval(), 2)
    x = floats(7, 6)()[0]
    with torch.no_grad():
        torch.testing.assert_close(align(a, b, spec=SPEC).model(x), b(x))


# --- a matcher that runs the models -------------------------------------------------------------------------------


class Bound:
    """Remembers what it was bound to."""

    def bind(self, model_a: nn.Module, model_b: nn.Module, /) -> Any:
        self.models = model_a, model_b
        return lambda spec, *_: spec.random(0)


def test_a_matcher_with_bind_gets_the_models() -> None:
    a, b = two()
    matcher = Bound()
    assert align(a, b, spec=SPEC, matcher=matcher).permutation == SPEC.random(0)
    assert matcher.models == (a, b)


def test_a_match_without_an_objective_is_shown() -> None:
    a, b = two()
    assert "matched: converged after 1 sweep\n" in str(
        align(a, b, spec=SPEC, matcher=lambda spec, *_: Match(spec.identity(), (), 1, True))
    )
    interrupted = Match(SPEC.identity(), (1.0, 2.5), 3, False, interrupted=True)
    shown = str(align(a, b, spec=SPEC, matcher=lambda *_: interrupted))
    assert "matched: objective 1 -> 2.5, interrupted after 3 sweeps" in shown

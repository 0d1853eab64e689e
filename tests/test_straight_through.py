"""Straight-through estimation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, randomize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autoperm import Match, Permutation, PermutationSpec, StraightThrough, align, discover, lerp, weight_matching
from autoperm.errors import AutopermError, EvaluationError, MatcherError, WeightsError

Batches = list[tuple[Any, Tensor]]
ZEROS = [(torch.zeros(2, 6), torch.zeros(2, 4))]
SGD = partial(torch.optim.SGD, lr=0.3, momentum=0.9)


def mlp(width: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)
    )


def two(build: Callable[[], nn.Module] = mlp) -> tuple[nn.Module, nn.Module]:
    a, b = (randomize(build().double().eval(), seed) for seed in (1, 2))
    return a, b


def teacher(model: nn.Module, count: int = 4, size: int = 32) -> Batches:
    """Batches whose targets are a model's own outputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, 6, generator=generator, dtype=torch.float64) for _ in range(count)]
    with torch.no_grad():
        return [(x, model(x)) for x in inputs]


def params(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}


def run(matcher: StraightThrough, a: nn.Module, b: nn.Module, spec: PermutationSpec) -> Match:
    found = matcher.bind(a, b)(spec, params(a), params(b))
    assert isinstance(found, Match)
    return found


def midpoint_loss(a: nn.Module, b: nn.Module, permutation: Permutation, data: Batches) -> float:
    """Written out: the mean loss of the network halfway, with BatchNorm on the statistics of each batch."""
    middle = copy.deepcopy(a)
    middle.load_state_dict(lerp(a.state_dict(), permutation.apply(b).state_dict(), 0.5))
    for module in middle.modules():
        if "BatchNorm" in type(module).__name__:
            module.train()
    with torch.no_grad():
        losses = [len(y) * F.mse_loss(middle(x), y).item() for x, y in data]
    return sum(losses) / sum(len(y) for _, y in data)


# --- what it finds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [mlp, batch_norm])
def test_a_planted_permutation_is_found_and_kept(build: Callable[[], nn.Module]) -> None:
    a = two(build)[0]
    data = teacher(a)
    spec = discover(a, data[0][0])
    planted = spec.random(3)
    found = run(StraightThrough(data, F.mse_loss, steps=10, optimizer=SGD), a, planted.apply(a), spec)
    assert found.permutation.compose(planted) == spec.identity()
    assert found.sweeps == 10


VARIANTS = list(itertools.product(["midpoint", "b"], ["inner", "l2"]))


@pytest.mark.parametrize(("at", "projection"), VARIANTS)
@pytest.mark.parametrize("build", [mlp, batch_norm])
def test_every_variant_lowers_the_loss_in_the_middle(build: Callable[[], nn.Module], at: Any, projection: Any) -> None:
    a, b = two(build)
    data = teacher(a)
    spec = discover(a, data[0][0])
    matcher = StraightThrough(data, F.mse_loss, steps=30, optimizer=SGD, at=at, projection=projection)
    found = run(matcher, a, b, spec)
    start = weight_matching(spec, params(a), params(b)).permutation
    assert found.objective[0] == pytest.approx(-midpoint_loss(a, b, start, data))
    assert found.objective[-1] == pytest.approx(-midpoint_loss(a, b, found.permutation, data))
    assert all(later > earlier for earlier, later in itertools.pairwise(found.objective))
    assert found.objective[-1] > 0.95 * found.objective[0], "it is minus the loss, and lower by a twentieth or more"


def test_for_the_end_of_b_distance_and_inner_product_are_one_projection() -> None:
    a, b = two()
    data = teacher(a)
    spec = discover(a, data[0][0])
    inner, l2 = (
        run(StraightThrough(data, F.mse_loss, steps=20, optimizer=SGD, at="b", projection=projection), a, b, spec)
        for projection in ("inner", "l2")
    )
    assert inner.objective == l2.objective
    assert inner.permutation == l2.permutation


@pytest.mark.parametrize(
    "name", ["residual_cnn", "lstm", "gpt", "tied_embedding", "grouped_conv", "attention_grouped_sdpa"]
)
def test_it_is_never_worse_than_weight_matching(name: str) -> None:
    network = NETWORKS[name]
    a, b = network.build(), randomize(network.build(), 99)
    (x,) = network.inputs()
    spec = discover(a, x)
    with torch.no_grad():
        data = [(x, a(x))]
    found = run(StraightThrough(data, F.mse_loss, steps=4, judge_every=1), a, b, spec)
    start = weight_matching(spec, params(a), params(b)).permutation
    before, after = (midpoint_loss(a, b, permutation, data) for permutation in (start, found.permutation))
    assert after <= before * (1 + 1e-9)
    assert found.objective[0] == pytest.approx(-before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision(dtype: torch.dtype) -> None:
    a, b = (model.to(dtype) for model in two())
    data = [(x.to(dtype), y.to(dtype)) for x, y in teacher(a.double())]
    a.to(dtype)
    aligned = align(a, b, matcher=StraightThrough(data, F.mse_loss, steps=20, optimizer=SGD))
    assert {p.dtype for p in aligned.model.parameters()} == {dtype}
    assert aligned.match is not None
    assert len(aligned.match.objective) > 1


# --- one step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "share"), [("midpoint", 1.0), ("b", 0.5)])
def test_the_free_weights_move_against_the_gradient_at_the_midpoint(at: Any, share: float) -> None:
    """B's end moves the midpoint half as far, so that its gradient is half as large."""
    a, b = two()
    data = teacher(a, count=1)
    spec = discover(a, data[0][0])
    kept: list[Tensor] = []

    def optimizer(tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
        kept.extend(tensors)
        return torch.optim.SGD(kept, lr=0.1)

    run(StraightThrough(data, F.mse_loss, steps=1, optimizer=optimizer, at=at), a, b, spec)
    start = weight_matching(spec, params(a), params(b)).permutation
    middle = copy.deepcopy(a)
    middle.load_state_dict(lerp(a.state_dict(), start.apply(b).state_dict(), 0.5))
    F.mse_loss(middle(data[0][0]), data[0][1]).backward()
    for weight, before, parameter in zip(kept, a.parameters(), middle.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(weight, before.detach() - 0.1 * share * parameter.grad)


def test_projections_may_be_rarer() -> None:
    a, b = two()
    data = teacher(a)
    spec = discover(a, data[0][0])
    found = run(StraightThrough(data, F.mse_loss, steps=9, optimizer=SGD, project_every=10), a, b, spec)
    assert found.permutation == weight_matching(spec, params(a), params(b)).permutation
    assert len(found.objective) == 1


def test_parameters_that_are_frozen_or_not_used_are_no_obstacle() -> None:
    a, b = two()
    for model in (a, b):
        model.register_parameter("spare", nn.Parameter(torch.zeros(3, dtype=torch.float64)))
        model[2].weight.requires_grad_(False)
    data = teacher(a)
    aligned = align(a, b, matcher=StraightThrough(data, F.mse_loss, steps=20, optimizer=SGD))
    assert aligned.match is not None
    assert len(aligned.match.objective) > 1
    assert not aligned.model[2].weight.requires_grad


def test_gradients_may_be_switched_off_outside() -> None:
    a, b = two()
    data = teacher(a)
    spec = discover(a, data[0][0])
    matcher = StraightThrough(data, F.mse_loss, steps=20, optimizer=SGD)
    expected = run(matcher, a, b, spec)
    with torch.no_grad():
        found = run(matcher, a, b, spec)
    assert found.objective == expected.objective
    assert found.permutation == expected.permutation


# --- what it leaves alone -----------------------------------------------------------------------------------------


def test_neither_model_is_changed() -> None:
    a, b = two(batch_norm)
    data = teacher(a)
    a.train()
    before = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    align(a, b, matcher=StraightThrough(data, F.mse_loss, steps=5))
    for model, state in zip((a, b), before, strict=True):
        torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in a.modules())
    assert not any(module.training for module in b.modules())


def test_a_seed_gives_the_same_result_again_and_leaves_random_numbers_alone() -> None:
    """Also for a loader that shuffles with torch's own generator."""
    a, b = two()
    inputs, targets = (torch.cat(tensors) for tensors in zip(*teacher(a), strict=True))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
    spec = discover(a, inputs)
    state = torch.get_rng_state()
    first, again, other = (
        run(StraightThrough(loader, F.mse_loss, steps=15, optimizer=SGD, judge_batches=2, seed=seed), a, b, spec)
        for seed in (0, 0, 1)
    )
    assert first.permutation == again.permutation
    assert first.objective == again.objective
    assert first.objective != other.objective, "the batches that judge are others"
    assert torch.equal(torch.get_rng_state(), state)


# --- data and faults ----------------------------------------------------------------------------------------------


class Counted(list[Any]):
    """Batches that count how often they are read from the start."""

    read = 0

    def __iter__(self) -> Iterator[Any]:
        self.read += 1
        return super().__iter__()


def test_a_loader_that_ends_early_is_read_again() -> None:
    a, b = two()
    data = Counted(teacher(a, count=3))
    found = run(StraightThrough(data, F.mse_loss, steps=7), a, b, discover(a, data[0][0]))
    assert found.sweeps == 7
    assert data.read == 1 + 3, "once to judge, and 7 steps on 3 batches"


def test_no_data() -> None:
    a, b = two()
    with pytest.raises(EvaluationError, match="no batches"):
        align(a, b, matcher="straight-through", data=[], loss=F.mse_loss)
    with pytest.raises(EvaluationError, match="read only once"):
        align(a, b, matcher="straight-through", data=iter(teacher(a)), loss=F.mse_loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    a, b = two()
    data = teacher(a, count=5)
    data[3][1][0, 0] = value
    with pytest.raises(EvaluationError, match=r"loss at the midpoint is (nan|inf) in step 3"):
        align(a, b, matcher=StraightThrough(data, F.mse_loss, judge_batches=2))
    with pytest.raises(EvaluationError, match=r"the mean loss is (nan|inf)"):
        align(a, b, matcher=StraightThrough(data, F.mse_loss))


def test_free_weights_that_diverge_are_named_with_their_step() -> None:
    a, b = two()
    optimizer = partial(torch.optim.SGD, lr=1e308)
    with pytest.raises(WeightsError, match=r"no longer finite after step \d+; lower the learning rate"):
        align(a, b, matcher=StraightThrough(teacher(a), F.mse_loss, optimizer=optimizer))


@pytest.mark.parametrize(
    ("data", "loss", "says"),
    [
        ([torch.zeros(2, 6)], F.mse_loss, "not a pair"),
        (ZEROS, partial(F.mse_loss, reduction="none"), r"the loss has shape \[2, 4\]"),
        (ZEROS, lambda output, target: 1.0, "the loss has type float"),
        ([(torch.zeros(2, 6), 3)], F.mse_loss, "the target is a int"),
    ],
)  # fmt: skip
def test_batches_and_losses_that_do_not_fit_are_named(data: Any, loss: Any, says: str) -> None:
    a, b = (model.float() for model in two())
    with pytest.raises(EvaluationError, match=says):
        align(a, b, matcher="straight-through", data=data, loss=loss)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": "a"}, "at is 'a'; choose 'midpoint' or 'b'"),
        ({"projection": "linf"}, "projection is 'linf'; choose 'inner' or 'l2'"),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"project_every": 0}, "project_every is 0"),
        ({"judge_every": -1}, "judge_every is -1"),
        ({"judge_batches": 0}, "judge_batches is 0"),
    ],
)
def test_options_that_there_are_not(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MatcherError, match=says):
        StraightThrough([], F.mse_loss, **options)


def test_an_unknown_kernel_is_refused() -> None:
    a, b = two()
    with pytest.raises(AutopermError, match="no kernel 'cosin'"):
        align(a, b, matcher=StraightThrough(teacher(a), F.mse_loss, kernel="cosin"))


# --- interruptions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 2, 4, 30])
def test_an_interruption_returns_the_best_so_far(calls: int) -> None:
    """Four calls of the loss judge the start: an interruption before that returns weight matching's result."""
    a, b = two()
    data = teacher(a)
    spec = discover(a, data[0][0])
    left = calls

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return F.mse_loss(output, target)

    found = run(StraightThrough(data, loss, optimizer=SGD, judge_every=1), a, b, spec)
    assert found.interrupted
    assert not found.converged
    assert found.sweeps < 30
    if calls > 4:
        assert len(found.objective) > 1
        assert found.objective[-1] == pytest.approx(-midpoint_loss(a, b, found.permutation, data))
    else:
        assert found.permutation == weight_matching(spec, params(a), params(b)).permutation


def test_an_interruption_of_the_loader() -> None:
    a, b = two()
    batches = teacher(a)

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            yield from batches
            raise KeyboardInterrupt

    aligned = align(a, b, matcher=StraightThrough(Loader(), F.mse_loss, judge_batches=2))
    assert aligned.match is not None
    assert aligned.match.interrupted
    assert aligned.match.sweeps == len(batches)
    assert f"interrupted after {len(batches)} sweeps" in str(aligned)

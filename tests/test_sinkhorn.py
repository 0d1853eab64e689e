"""Sinkhorn re-basin: soft permutations learnt by gradient descent."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import Traced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_state, specs
from test_weight_matching import inner_product
from torch import Tensor, nn
from torch.nn import functional as F

from autoperm import Evaluator, PermutationSpec, lerp, weight_matching
from autoperm.errors import AutopermError, EvaluationError
from autoperm.matching import Match, Sinkhorn
from autoperm.matching.soft import normalize

Trace = Callable[[str], Traced]
SPEC = {"0.weight": "h _", "0.bias": "h", "2.weight": "i h", "2.bias": "i", "4.weight": "_ i"}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def params(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Sequential, nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """Two small networks trained on the same three classes, and the batches they were trained on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(96, 4)
        targets = inputs[:, :3].abs().argmax(1)
        models = []
        for _ in range(2):
            model = mlp()
            optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
            for _ in range(100):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            optimizer.zero_grad()
            models.append(model)
    return models[0], models[1], list(zip(inputs.split(32), targets.split(32), strict=True))


# --- the normalisation --------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 100), st.floats(0.1, 3))
def test_rows_and_columns_sum_to_one(size: int, seed: int, scale: float) -> None:
    logits = scale * torch.randn(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = normalize(logits, 2000)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, size, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(-2), torch.ones(2, size, dtype=torch.float64), rtol=0, atol=1e-3)


def test_cold_matrices_are_the_best_assignment() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.0], [0.9, 0.0, 0.0], [0.0, 0.0, 0.3]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(normalize(logits / 0.01, 200), expected, rtol=0, atol=0.01)


def test_the_normalisation_is_differentiable() -> None:
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: normalize(x, 5), logits)


# --- the distance of weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["boundary", "uniform"])
@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "attention_grouped_sdpa"])
def test_a_planted_permutation_is_found_exactly(name: str, start: str, traced: Trace) -> None:
    net = traced(name)
    a, planted = net.model.state_dict(), net.spec.random(0)
    match = Sinkhorn(start=start, steps=60)(net.spec, a, planted.apply(a))
    assert match.permutation.compose(planted) == net.spec.identity()


@settings(max_examples=10)
@given(specs(), st.integers(0, 3), st.sampled_from(["linear", "cosine"]))
def test_the_result_is_never_worse_than_its_start(spec: PermutationSpec, seed: int, kernel: str) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    for start in ("uniform", "boundary", spec.random(seed)):
        match = Sinkhorn(kernel=kernel, start=start, steps=5)(spec, a, b)
        assert all(later > earlier for earlier, later in itertools.pairwise(match.objective))
        found = inner_product(spec, a, match.permutation.apply(b), kernel)
        assert match.objective[-1] == pytest.approx(found, abs=1e-8)
        if start == "uniform":
            before = inner_product(spec, a, b, kernel)
        else:
            before = weight_matching(spec, a, b, kernel=kernel, start=start, max_sweeps=0).objective[0]
        assert match.objective[0] == pytest.approx(before, abs=1e-8)


def test_a_specification_without_free_factors() -> None:
    spec = PermutationSpec.from_patterns({"w": "_ _"}, {"w": torch.empty(2, 3)})
    match = Sinkhorn()(spec, random_state(spec), random_state(spec, 1))
    assert match.permutation.is_identity
    assert match.converged


def test_a_factor_that_no_given_tensor_carries_stays(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = ({"6.bias": state["6.bias"]} for state in (random_state(spec), random_state(spec, 1)))
    assert Sinkhorn()(spec, a, b).permutation.is_identity


# --- the loss on the path -----------------------------------------------------------------------------------------


def midpoint_loss(a: nn.Module, b: nn.Module, match: Match, data: list[tuple[Tensor, Tensor]]) -> float:
    middle = mlp()
    middle.load_state_dict(lerp(a.state_dict(), match.permutation.apply(b.state_dict()), 0.5))
    return Evaluator(data)(middle)["loss"]


@pytest.mark.parametrize("objective", ["midpoint", "random"])
def test_the_loss_at_the_midpoint_falls(
    objective: str, pair: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]
) -> None:
    a, b, data = pair
    spec = PermutationSpec.from_patterns(SPEC, a)
    start = Match(spec.random(0), (), 0, converged=False)
    matcher = Sinkhorn(data, objective=objective, steps=60, start=start.permutation).bind(a, b)
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in (a, b)]
    match = matcher(spec, params(a), params(b))
    assert -match.objective[0] == pytest.approx(midpoint_loss(a, b, start, data))
    assert -match.objective[-1] == pytest.approx(midpoint_loss(a, b, match, data))
    assert match.objective[-1] > 0.5 * match.objective[0]
    assert match == matcher(spec, params(a), params(b)), "a seed gives the same result again"
    torch.testing.assert_close([a.state_dict(), b.state_dict()], before, rtol=0, atol=0)
    assert all(p.grad is None for model in (a, b) for p in model.parameters())


def test_batch_norm_normalises_by_the_batch() -> None:
    """The two models' running statistics are far from the batch's; what they say must not matter."""
    losses = []
    for shift in (0.0, 100.0):
        torch.manual_seed(0)
        a, b = (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)) for _ in range(2))
        for model in (a, b):
            model[1].running_mean += shift
        patterns = {"0.weight": "h _", "0.bias": "h", "1.weight": "h", "1.bias": "h", "3.weight": "_ h"}
        spec = PermutationSpec.from_patterns(patterns, a)
        data = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
        match = Sinkhorn(data, objective="midpoint", steps=3).bind(a, b)(spec, params(a), params(b))
        losses.append(match.objective)
        assert a.training
        torch.testing.assert_close(a[1].running_mean, torch.full((6,), shift))
    assert losses[0] == losses[1]


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
            self.inner = nn.Linear(6, 6)
            self.again = self.inner

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(torch.relu(self.again(torch.relu(self.inner(self.encoder(x))))))

    torch.manual_seed(0)
    a, b = Tied(), Tied()
    patterns = {"encoder.weight": "h _", "inner.weight": "h h", "inner.bias": "h", "decoder.weight": "_ h"}
    spec = PermutationSpec.from_patterns(patterns, a)
    assert spec.tied
    data = [(torch.randn(8, 4), torch.randn(8, 4))]
    match = Sinkhorn(data, nn.MSELoss(), objective="midpoint", steps=5).bind(a, b)(spec, params(a), params(b))
    middle = Tied()
    middle.load_state_dict(lerp(a.state_dict(), match.permutation.apply(b.state_dict()), 0.5))
    assert -match.objective[-1] == pytest.approx(Evaluator(data, nn.MSELoss())(middle)["loss"])


@pytest.mark.parametrize("call", [0, 20])
def test_an_interruption_gives_the_best_so_far(
    pair: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]], call: int
) -> None:
    a, b, data = pair
    spec, calls = PermutationSpec.from_patterns(SPEC, a), itertools.count()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == call:
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)

    match = Sinkhorn(data, loss, objective="midpoint").bind(a, b)(spec, params(a), params(b))
    assert match.interrupted
    assert not match.converged
    assert (0 < match.sweeps < 20) == bool(match.objective) == (call > 0)


# --- faults -------------------------------------------------------------------------------------------------------


def test_faults_are_named(pair: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    a, b, data = pair
    spec = PermutationSpec.from_patterns(SPEC, a)
    with pytest.raises(AutopermError, match="no objective 'l1'; choose 'l2', 'midpoint' or 'random'"):
        Sinkhorn(objective="l1")
    with pytest.raises(AutopermError, match=r"'midpoint' is a loss on data; give batches"):
        Sinkhorn(objective="midpoint")
    with pytest.raises(EvaluationError, match="can be read only once"):
        Sinkhorn(iter(data), objective="midpoint")
    with pytest.raises(AutopermError, match=r"runs the models; use align, or call bind"):
        Sinkhorn(data, objective="midpoint")(spec, params(a), params(b))
    with pytest.raises(EvaluationError, match="no batches"):
        Sinkhorn([], objective="midpoint").bind(a, b)(spec, params(a), params(b))
    with pytest.raises(EvaluationError, match=r"the loss has shape \[32, 3\]"):
        Sinkhorn(data, lambda output, target: output, objective="midpoint").bind(a, b)(spec, params(a), params(b))
    with pytest.raises(EvaluationError, match=r"not a pair \(input, target\)"):
        Sinkhorn([data[0][0]], objective="midpoint").bind(a, b)(spec, params(a), params(b))


def test_a_loss_that_is_not_finite_is_named_with_its_step(
    pair: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    a, b, data = pair
    spec, calls = PermutationSpec.from_patterns(SPEC, a), itertools.count()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        # Three batches are judged before the first step.
        return output.sum() * (float("nan") if next(calls) == 3 + 1 else 0.0)

    with pytest.raises(EvaluationError, match="the loss in step 2 is nan"):
        Sinkhorn(data, loss, objective="midpoint").bind(a, b)(spec, params(a), params(b))

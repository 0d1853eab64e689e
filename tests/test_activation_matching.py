"""Activation matching: planted permutations, which activations speak, and data that cannot be used."""

from __future__ import annotations

import gc
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, randomize
from test_activations import batch_like
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autoperm import ActivationMatch, ActivationMatching, Evaluator, PermutationSpec, discover, interpolate
from autoperm.activations import Capture
from autoperm.activations.moments import Moments
from autoperm.activations.speakers import find_speakers
from autoperm.errors import ActivationsError, AutopermError, EvaluationError, SpecError, TraceError
from autoperm.matching.activation import match_moments
from autoperm.matching.nested import Nested

Trace = Callable[[str], Traced]


def batches_for(net: Traced, *sizes: int) -> list[Tensor]:
    return [batch_like(net.inputs[0], size, seed) for seed, size in enumerate(sizes)]


def match(a: nn.Module, b: nn.Module, spec: PermutationSpec, data: Any, **options: Any) -> ActivationMatch:
    return ActivationMatching(data, **options).bind(a, b)(spec, {}, {})


# --- planted permutations

# Before the nonlinearity no unit is dead. After a ReLU some are, on these data, and dead units cannot be told apart.
DEAD = {"transformer_pre", "transformer_post", "shared_layer"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_planted_permutation_is_found_exactly(name: str) -> None:
    model, inputs = NETWORKS[name].build(), NETWORKS[name].inputs()
    spec = Capture.of(model, inputs).spec
    assert sorted((factor.size, spec.copies(factor)) for factor in spec.free) == NETWORKS[name].groups
    data = [batch_like(inputs[0], size, seed) for seed, size in enumerate((32, 29))]
    planted = spec.random(1)
    b = planted.apply(model)
    for options in [{"when": "before"}, {}, {"moment": "covariance", "which": "last"}]:
        if name in DEAD and "when" not in options:
            continue
        found = match(model, b, spec, data, **options)
        assert found.permutation.compose(planted) == spec.identity()
        assert found.silent == ()
        assert found.converged
        assert not found.interrupted
        assert found.objective[0] < found.objective[-1]


@pytest.mark.parametrize("name", ["residual_mlp", "grouped_conv", "lstm", "gpt", "vit", "tied_embedding"])
def test_a_planted_permutation_of_a_discovered_specification_is_found(name: str, traced: Trace) -> None:
    """The exporter's graph is not the one that is recorded, and names factors in another order."""
    net = traced(name)
    planted = net.spec.random(1)
    found = match(net.model, planted.apply(net.model), net.spec, batches_for(net, 32, 29))
    assert found.permutation.compose(planted) == net.spec.identity()


@pytest.mark.parametrize("moment", ["uncentred", "covariance", "pearson"])
def test_dead_units_do_not_hide_the_others(moment: str, traced: Trace) -> None:
    """What is found moves every unit that is not dead as it was planted."""
    net = traced("transformer_pre")
    planted = net.spec.random(0)
    b, data = planted.apply(net.model), batches_for(net, 64)
    found = match(net.model, b, net.spec, data, moment=moment).permutation
    capture = Capture.of(net.model, data[0])
    relu: dict[str, Tensor] = {}
    wanted = [activation for activation in capture.activations if activation.nonlinear]
    for which, model in (("a", net.model), ("b", found.apply(b))):
        capture.run(model, data[0], wanted, lambda act, x, which=which: relu.update({which + act.name: x.clone()}))
    assert any(bool((x == 0).flatten(0, -2).all(0).any()) for x in relu.values()), "else this shows nothing"
    for activation in wanted:
        torch.testing.assert_close(relu["b" + activation.name], relu["a" + activation.name])


def test_the_pearson_objective_counts_the_units_that_live(traced: Trace) -> None:
    net = traced("mlp")
    (data,) = batches_for(net, 200)
    found = match(net.model, net.spec.random(0).apply(net.model), net.spec, [data])
    hidden, living = data, 0
    for layer in net.model[:-1]:
        hidden = layer(hidden)
        living += int((hidden.std(0) > 0).sum()) if isinstance(layer, nn.ReLU) else 0
    assert found.objective[-1] == pytest.approx(living)


def test_any_specification_of_the_model_will_do(traced: Trace) -> None:
    """Discovered, read from JSON, or written by hand, under other names."""
    net = traced("mlp")
    by_hand = PermutationSpec.from_patterns(
        {
            "0.weight": "x _",
            "0.bias": "x",
            "2.weight": "y x",
            "2.bias": "y",
            "4.weight": "z y",
            "4.bias": "z",
            "6.weight": "_ z",
        },
        net.model,
    )
    for spec in (net.spec, PermutationSpec.from_json(net.spec.to_json()), by_hand):
        planted = spec.random(2)
        found = match(net.model, planted.apply(net.model), spec, batches_for(net, 40), when="before")
        assert found.permutation.compose(planted) == spec.identity()
        assert set(found.speakers) == {factor.name for factor in spec.free}


def test_a_specification_may_be_a_part_of_what_there_is(traced: Trace) -> None:
    """Heads as whole blocks: the channels inside do not move."""
    net = traced("grouped_conv")
    patterns = {"0.weight": "(g=4 3) _ _ _", "0.bias": "(g 3)", "2.weight": "(g 5) _ _ _", "2.bias": "(g 5)"}
    spec = PermutationSpec.from_patterns({**patterns, "4.weight": "_ (g 5) _ _"}, net.model)
    planted = spec.random(1)
    found = match(net.model, planted.apply(net.model), spec, batches_for(net, 9))
    assert not planted.is_identity
    assert found.permutation.compose(planted) == spec.identity()


class LowRank(nn.Module):
    """The inner factor is only in parameters and what is computed from them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(6, 3))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(F.linear(x, torch.einsum("or,ri->oi", self.up, self.down))))


def test_factors_that_no_activation_carries_are_named_and_stay() -> None:
    model = LowRank()
    data = [torch.randn(200, 4, generator=torch.Generator().manual_seed(0))]
    spec = discover(model, data[0])
    (inner,) = (factor.name for factor in spec.free if factor.size == 3)
    planted = spec.random(2)
    assert inner in planted.indices
    found = match(model, planted.apply(model), spec, data)
    assert found.silent == (inner,)
    assert inner not in found.permutation.indices
    assert inner not in found.speakers
    left = found.permutation.compose(planted)
    assert set(left.indices) == {inner}


def test_what_a_matcher_is_given_for_parameters_does_not_count(traced: Trace) -> None:
    net = traced("mlp")
    matcher = ActivationMatching(batches_for(net, 8)).bind(net.model, net.model)
    assert matcher(net.spec, {"x": torch.zeros(1)}, {}).permutation.is_identity


# --- data


def test_batches_say_what_all_the_data_says_at_once(traced: Trace) -> None:
    net = traced("transformer_post")
    (data,) = batches_for(net, 20)
    b = net.spec.random(4).apply(NETWORKS["transformer_post"].build())
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator()))
    one = match(net.model, b, net.spec, [data])
    for split in (data.split(7), [(x, "label") for x in data.split(3)], [{"input": x} for x in data.split(19)]):
        many = match(net.model, b, net.spec, split)
        assert many.permutation == one.permutation
        torch.testing.assert_close(many.objective, one.objective)


def test_only_so_many_batches_are_read(traced: Trace) -> None:
    net = traced("mlp")

    def batches() -> Iterator[Tensor]:
        yield from batches_for(net, 5, 6)
        raise AssertionError("a third batch")

    two = match(net.model, net.model, net.spec, batches(), batches=2)
    assert two.objective == match(net.model, net.model, net.spec, batches_for(net, 5, 6)).objective


def test_no_data_are_kept(traced: Trace) -> None:
    """Of what was read only the last batch is there while the next one is made."""
    net = traced("residual_mlp")
    alive: list[int] = []

    def batches() -> Iterator[Tensor]:
        made: list[weakref.ref[Tensor]] = []
        for seed in range(5):
            gc.collect()
            alive.append(sum(reference() is not None for reference in made))
            batch = batch_like(net.inputs[0], 4, seed)
            made.append(weakref.ref(batch))
            yield batch
            del batch

    match(net.model, net.model, net.spec, batches())
    assert max(alive) <= 1


def test_half_precision_is_enough() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 3)).bfloat16()
    spec = discover(model)
    planted = spec.random(1)
    data = [torch.randn(64, 5).bfloat16()]
    found = match(model, planted.apply(model), spec, data)
    assert found.permutation.compose(planted) == spec.identity()


def test_models_that_draw_random_numbers_draw_the_same() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.inner(x + 100 * torch.randn_like(x))))

    torch.manual_seed(0)
    model = Noisy()
    spec = discover(model, torch.zeros(4, 3))
    planted = spec.random(1)
    before = torch.get_rng_state()
    found = match(model, planted.apply(model), spec, [torch.zeros(50, 3)], moment="uncentred")
    assert found.permutation.compose(planted) == spec.identity()
    assert torch.equal(torch.get_rng_state(), before)


def test_models_and_data_stay_as_they_are(traced: Trace) -> None:
    model = NETWORKS["mlp_batchnorm1d"].build()
    model.train()
    model[2].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = [torch.randn(6, 6, dtype=torch.float64)]
    kept = data[0].clone()
    spec = traced("mlp_batchnorm1d").spec
    match(model, model, spec, data)
    assert [module.training for module in model] == [True, True, False, True, True, True, True]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert torch.equal(data[0], kept)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# --- which activations speak


def speaking(net: Traced, factor: str, **options: Any) -> list[str]:
    found = find_speakers(net.spec, Capture.of(net.model, net.inputs[0]), **options)
    return list(dict.fromkeys(speaker.activation.name.rpartition("_")[0] for speaker in found[factor]))


def test_before_and_after_the_nonlinearity(traced: Trace) -> None:
    net = traced("vgg")
    conv = net.spec.patterns["0.weight"][0].name
    assert speaking(net, conv) == ["leaky_relu"]
    assert speaking(net, conv, when="before") == ["batch_norm"]


def test_where_several_activations_carry_a_factor(traced: Trace) -> None:
    net = traced("residual_cnn")
    stream = net.spec.patterns["0.weight"][0].name
    capture = Capture.of(net.model, net.inputs[0])

    def modules(**options: Any) -> list[str]:
        return [speaker.activation.module for speaker in find_speakers(net.spec, capture, **options)[stream]]

    assert modules() == ["2", "3"]
    assert modules(which="first") == ["2"]
    assert modules(which="last") == ["3"]
    assert modules(which=lambda activation: activation.op == "aten.conv2d") == ["0", "3.body.3"]
    chosen = find_speakers(net.spec, capture, which=lambda activation: activation.module == "2")
    assert set(chosen) == {stream}


def test_a_stream_without_a_nonlinearity_speaks_at_every_step(traced: Trace) -> None:
    net = traced("gpt")
    stream = net.spec.patterns["tokens.weight"][1].name
    assert speaking(net, stream) == ["embedding", "add", "layer_norm", "linear"]
    heads = net.spec.patterns["blocks.0.1.qkv.weight"][0].terms[0].terms[0].name
    assert speaking(net, heads) == ["softmax"], "scores are masked, with infinities"


def test_the_last_activation_is_compared_alone(traced: Trace) -> None:
    net = traced("residual_mlp")
    stream = net.spec.patterns["0.weight"][0].name
    data = batches_for(net, 30)
    b = net.spec.random(0).apply(net.model)
    last = match(net.model, b, net.spec, data, which="last")
    assert last.speakers[stream] == match(net.model, b, net.spec, data).speakers[stream][-1:]


# --- the assignment


def by_trying(spec: PermutationSpec, moments: Mapping[str, Any]) -> float:
    """The best value over the whole group."""
    names = [factor.name for factor in spec.free]
    rows = {f.name: list(itertools.permutations(range(f.size))) for f in spec.free}
    shapes = {f.name: [spec.factors[o].size for o in f.over] for f in spec.free}
    every = [
        [torch.tensor(choice).reshape(*shapes[n], -1) for choice in itertools.product(rows[n], repeat=spec.copies(n))]
        for n in names
    ]
    whole = Nested(spec, frozenset(names))
    return max(whole.value(moments, dict(zip(names, choice, strict=True))) for choice in itertools.product(*every))


def spec_of(over: Mapping[str, list[str]], **sizes: int) -> PermutationSpec:
    text = " ".join(f"{name}={size}" for name, size in sizes.items())
    return PermutationSpec.from_patterns({"w": text}, {"w": torch.empty(*sizes.values())}, over=over)


@given(st.integers(0, 1000))
def test_a_block_is_solved_exactly(seed: int) -> None:
    spec = spec_of({"d": ["h"], "e": ["h"]}, h=2, d=3, e=2)
    rng = np.random.default_rng(seed)
    moments = {"h": rng.normal(size=(2, 2)), "d": rng.normal(size=(2, 3, 2, 3)), "e": rng.normal(size=(2, 2, 2, 2))}
    assert match_moments(spec, moments).objective[-1] == pytest.approx(by_trying(spec, moments))


@given(st.integers(0, 1000))
def test_blocks_that_share_a_factor_are_solved_in_turns(seed: int) -> None:
    spec = spec_of({"d": ["g", "h"]}, g=2, h=3, d=2)
    rng = np.random.default_rng(seed)
    moments = {"d": rng.normal(size=(2, 3, 2, 2, 3, 2))}
    found = match_moments(spec, moments)
    assert found.converged
    assert all(later >= earlier for earlier, later in itertools.pairwise(found.objective))
    best = by_trying(spec, moments)
    assert found.objective[-1] <= best + 1e-9
    value = Nested(spec, frozenset("ghd")).value(moments, {name: found.permutation[name] for name in "ghd"})
    assert found.objective[-1] == pytest.approx(value)


def test_a_factor_over_two_that_move_separately_is_recovered() -> None:
    spec = spec_of({"d": ["g", "h"]}, g=2, h=3, d=4)
    planted = spec.random(0)
    taken = planted.apply({"w": torch.arange(24).reshape(2, 3, 4)})["w"].reshape(-1)
    near = torch.rand(24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    moments = {"d": (torch.eye(24, dtype=torch.float64)[taken] + near).reshape(2, 3, 4, 2, 3, 4).numpy()}
    assert match_moments(spec, moments).permutation == planted


# --- what cannot be used


class Logarithm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.log(self.inner(x)))


def test_activations_that_are_not_finite_are_an_error() -> None:
    model = Logarithm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    spec = discover(model, torch.ones(3, 2))
    data = [torch.ones(3, 2), torch.tensor([[1.0, 1.0], [-2.0, 1.0], [-5.0, 1.0]])]
    with pytest.raises(ActivationsError) as error:
        match(model, model, spec, data)
    text = str(error.value)
    assert text.startswith("model A, batch 1: 8 of 12 values of log_1 [3, 4]")
    assert "torch.log(self.inner(x))" in text
    linear = match(model, model, spec, data, which=lambda activation: activation.op == "aten.linear")
    assert linear.speakers[spec.free[0].name] == ("linear_0",)


def test_data_that_cannot_be_used_are_an_error(traced: Trace) -> None:
    net = traced("mlp")

    def run(data: Any) -> None:
        match(net.model, net.model, net.spec, data)

    with pytest.raises(EvaluationError, match="no batches"):
        run([])
    with pytest.raises(
        EvaluationError, match=r"Sequential does not run on a batch \(float64\[3, 5\]\)\n  RuntimeError"
    ):
        run([torch.zeros(3, 5, dtype=torch.float64)])
    with pytest.raises(EvaluationError, match=r"^model A, batch 1: Sequential does not run"):
        run([*batches_for(net, 3), torch.zeros(3, 5, dtype=torch.float64)])
    with pytest.raises(EvaluationError, match="str"):
        run(["a sentence"])


def test_specifications_and_models_that_do_not_fit_are_an_error(traced: Trace) -> None:
    net = traced("mlp")
    with pytest.raises(SpecError, match="model B"):
        match(net.model, nn.Sequential(nn.Linear(6, 12)).double(), net.spec, batches_for(net, 3))
    other = nn.Sequential(*[nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in net.model])
    with pytest.raises(TraceError, match=r"model B, batch 0: operation 1 of the run is aten\.tanh"):
        match(net.model, other, net.spec, batches_for(net, 3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"moment": "cosine"}, "moment is 'cosine'; choose 'uncentred'"),
        ({"when": "during"}, "when is 'during'"),
        ({"which": "middle"}, "'all', or pass a function"),
        ({"batches": 0}, "batches is 0"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], text: str) -> None:
    with pytest.raises(AutopermError, match=text):
        ActivationMatching([], **options)


def test_it_needs_the_models(traced: Trace) -> None:
    with pytest.raises(AutopermError, match="needs the models"):
        ActivationMatching([])(traced("mlp").spec, {}, {})


def test_an_interrupt_leaves_what_was_seen_so_far(traced: Trace) -> None:
    net = traced("mlp")
    data = batches_for(net, 20, 20)
    b = net.spec.random(0).apply(net.model)

    def interrupted(count: int) -> Iterator[Tensor]:
        yield from data[:count]
        raise KeyboardInterrupt

    two = match(net.model, b, net.spec, interrupted(2))
    assert two.interrupted
    assert not two.converged
    assert two.permutation == match(net.model, b, net.spec, data).permutation
    none = match(net.model, b, net.spec, interrupted(0))
    assert none.interrupted
    assert none.permutation.is_identity
    assert none.silent == tuple(factor.name for factor in net.spec.free)


def test_an_interrupt_between_two_activations_loses_nothing(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    net = traced("mlp")
    calls, add = itertools.count(), Moments.add

    def once(self: Moments, a: Tensor, b: Tensor) -> None:
        if next(calls) == 4:  # three activations in the first batch, one in the second
            raise KeyboardInterrupt
        add(self, a, b)

    monkeypatch.setattr(Moments, "add", once)
    planted = net.spec.random(0)
    found = match(net.model, planted.apply(net.model), net.spec, batches_for(net, 50, 50), when="before")
    assert found.interrupted
    assert found.permutation.compose(planted) == net.spec.identity()


class Routed(nn.Module):
    """The second layer sees the samples that a gate lets through: others in each model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate, self.late = nn.Linear(4, 6), nn.Linear(4, 1), nn.Linear(6, 5)
        self.outer, self.rest = nn.Linear(5, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).tanh()
        chosen = h[(self.gate(x) > 0).squeeze(-1).nonzero().squeeze(-1)]
        return self.rest(h).sum(0) + self.outer(self.late(chosen).tanh()).sum(0)


def test_what_has_another_shape_in_b_is_left_out() -> None:
    a, b = randomize(Routed().double(), 0), randomize(Routed().double(), 1)
    data = [torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]
    patterns = {"inner.weight": "h _", "inner.bias": "h", "late.weight": "i h", "late.bias": "i"}
    spec = PermutationSpec.from_patterns({**patterns, "outer.weight": "_ i", "rest.weight": "_ h"}, a)
    assert set(match(a, spec.random(0).apply(a), spec, data).speakers) == {"h", "i"}
    found = match(a, b, spec, data)
    assert set(found.speakers) == {"h"}
    assert found.silent == ("i",)
    assert found.permutation["i"].tolist() == list(range(5))


# --- trained networks


def test_it_lowers_the_barrier_between_trained_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    sys.modules.pop("digits", None)
    import digits

    data = digits.load()
    a, b = (digits.train(digits.mlp(48), seed, data, epochs=15, rate=3e-3) for seed in range(2))
    spec = discover(a, torch.zeros(2, 1, 8, 8))
    evaluate = Evaluator(DataLoader(data.test, batch_size=512))
    naive = interpolate(a, b, evaluate, points=5).barrier("loss")
    loader = DataLoader(TensorDataset(data.train.tensors[0]), batch_size=300)
    for moment in ("uncentred", "covariance", "pearson"):
        aligned = match(a, b, spec, loader, moment=moment).permutation.apply(b)
        assert interpolate(a, aligned, evaluate, points=5).barrier("loss") < 0.4 * naive

"""The probe finds what a specification lacks, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import Traced
from networks import NETWORKS, floats, randomize
from torch import Tensor, nn

import autoperm
from autoperm import PermutationSpec, Probe, discover, probe
from autoperm.errors import SpecError, TraceError

Trace = Callable[[str], Traced]


def mlp(hidden: int = 8) -> nn.Module:
    return randomize(nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2)).double())


PINNED = {"0.weight": "h! _", "0.bias": "h!", "2.weight": "_ h!"}


def without_inference(spec: PermutationSpec, **factors: object) -> PermutationSpec:
    """The same specification with other factors, as somebody could write it by hand."""
    return replace(spec, factors={**spec.factors, **factors}, inference=None)


# --- specifications that lack nothing, and such that lack one thing


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_missed_in_known_networks(name: str, traced: Trace) -> None:
    net = traced(name)
    found = probe(net.model, net.spec, net.inputs)
    assert not found.missed, str(found)
    assert not found.unexercised, str(found)
    assert found.checked
    assert found.share == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_factor_that_is_pinned_in_vain_is_found(name: str, traced: Trace) -> None:
    net = traced(name)
    for factor in net.spec.free:
        spec = without_inference(net.spec, **{factor.name: replace(factor, pinned=True)})
        found = probe(net.model, spec, net.inputs)
        (missed,) = [missed for missed in found.missed if missed.over is None]
        assert set(missed.axes) == set(net.spec.carriers[factor.name])
        assert missed.whole
        assert missed.effect < 1e-9 < 1e-4 < missed.sensitivity


def wreaths() -> list[str]:
    return [name for name, network in NETWORKS.items() if any(copies > 1 for _, copies in network.groups)]


@pytest.mark.parametrize("name", wreaths())
def test_a_factor_that_could_vary_over_another_is_found(name: str, traced: Trace) -> None:
    net = traced(name)
    within = [factor for factor in net.spec.free if factor.over]
    assert within
    for factor in within:
        spec = without_inference(net.spec, **{factor.name: replace(factor, over=factor.over[:-1])})
        (missed,) = probe(net.model, spec, net.inputs).missed
        assert missed.axes == net.spec.carriers[factor.name]
        assert missed.over is not None
        assert missed.over.axes == net.spec.carriers[factor.over[-1]]


def test_an_operation_without_a_rule_is_found_out() -> None:
    """What goes in and what comes out are pinned as two classes; neither is free alone."""

    @torch.library.custom_op("probe_test::swish", mutates_args=())
    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @swish.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(swish(self.first(x)))

    model, x = Net().double(), floats(5, 3)()
    spec = discover(model, x)
    assert not spec.free
    found = probe(model, spec, x)
    (missed,) = found.missed
    assert set(missed.axes) == {("first.weight", 0), ("first.bias", 0), ("last.weight", 1)}
    assert found.missed_axes == missed.axes
    assert found.axes == 6
    assert found.share == 0.5
    assert "no rule: probe_test.swish" in str(found)
    assert "50.0%" in str(found)


def test_a_symmetry_of_some_units_is_told_from_one_of_all() -> None:
    class TwoHalves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.first(x).chunk(2, -1)
            return self.last(torch.cat([one.tanh(), two.sin()], -1))

    model = randomize(TwoHalves().double())
    patterns = {"first.weight": "h! _", "first.bias": "h!", "last.weight": "_ h!"}
    (missed,) = probe(model, PermutationSpec.from_patterns(patterns, model), floats(5, 3)()).missed
    assert not missed.whole
    assert len({unit // 4 for unit in missed.units}) == 1


def test_by_hand_what_is_tied_is_not_known_but_guessed_by_size() -> None:
    model, hidden = mlp(), {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    apart = PermutationSpec.from_patterns({"0.weight": "_ _", "0.bias": "_", "2.weight": "_ _"}, model)
    found = probe(model, apart, floats(5, 3)())
    (missed,) = found.missed
    assert set(missed.axes) == hidden
    assert len(missed.tied) == 3
    assert found.axes == 6
    assert set(probe(model, PermutationSpec.from_patterns({}, model), floats(5, 3)()).missed_axes) == hidden


# --- what says nothing is not taken for a symmetry


class Tokens(nn.Module):
    """The mean of some rows of a table; gradients may be switched off."""

    def __init__(self, gradients: bool = True) -> None:
        super().__init__()
        self.rows, self.last, self.gradients = nn.Embedding(64, 4), nn.Linear(4, 2), gradients

    def forward(self, ids: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            return self.last(torch.tanh(self.rows(ids)).mean(1))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("ids", [[[37]], [[0, 63]], [[5, 5, 6]]])
def test_rows_that_the_inputs_look_up_are_found_among_the_others(gradients: bool, ids: list[list[int]]) -> None:
    model, x = Tokens(gradients).double(), (torch.tensor(ids),)
    found = probe(model, discover(model, x), x)
    assert not found.missed
    assert not found.unexercised


def test_a_symmetry_for_these_inputs_only_is_none() -> None:
    """The mean over a sample does not change if two rows are exchanged that it looks up once each."""
    model, x = Tokens().double(), (torch.tensor([[0, 1], [5, 9], [12, 13], [3, 60]]),)
    assert not probe(model, discover(model, x), x).missed


def test_units_that_are_dead_for_the_inputs_are_not_exercised() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    nn.init.constant_(model[0].bias, -100)
    x = floats(5, 3)()
    spec = PermutationSpec.from_patterns(PINNED, model)
    found = probe(model, spec, x, randomize=False)
    assert not found.missed
    assert (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)) in [tied.axes for tied in found.unexercised]
    with torch.no_grad():
        model[0].bias[5] = 100  # one that lives is enough
    assert len(probe(model, spec, x, randomize=False).missed) == 1


def test_equal_weights_are_no_evidence() -> None:
    model, x = mlp(), floats(5, 3)()
    nn.init.constant_(model[2].weight, 0.5)
    nn.init.constant_(model[2].bias, 0.0)
    spec = discover(model, x)
    for randomize_weights in (False, True):
        found = probe(model, spec, x, randomize=randomize_weights)
        assert not found.missed
        assert not found.unexercised
    pinned = without_inference(spec, **{f.name: replace(f, pinned=True) for f in spec.free})
    assert len(probe(model, pinned, x, randomize=False).missed) == 1


def test_tensors_that_are_never_used_are_counted_apart() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model, x = Spare().double(), floats(4, 3)()
    found = probe(model, discover(model, x), x)
    assert {axis for tied in found.unused for axis in tied.axes} == {
        ("spare.weight", 0), ("spare.weight", 1), ("spare.bias", 0),
    }  # fmt: skip
    assert found.checked == 2
    assert not found.unexercised
    assert not found.missed


# --- models that are not easy to run


def wrapped(before: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(before(self, x))

    net = Net(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    net.register_buffer("calls", torch.zeros(()))
    return net


def only_float32(net: nn.Module, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise RuntimeError("not implemented for 'Double'")
    return x


def counting(net: nn.Module, x: Tensor) -> Tensor:
    net.calls += 1
    return x * net.calls


def noisy(net: nn.Module, x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


@pytest.mark.parametrize("before", [only_float32, counting, noisy])
def test_models_that_are_not_easy_to_run_are_probed(before: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model, x = wrapped(before), (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),)
    complete = {name: pattern.replace("!", "") for name, pattern in PINNED.items()}
    assert not probe(model, PermutationSpec.from_patterns(complete, model), x).missed
    found = probe(model, PermutationSpec.from_patterns(PINNED, model), x)
    (missed,) = found.missed
    assert set(missed.axes) == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    assert any("precision" in note for note in found.notes) == (before is only_float32)
    assert model.calls == 0


def test_random_weights_that_break_a_model_are_not_used() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.scale = nn.Linear(3, 64), nn.Linear(64, 2), nn.Parameter(torch.rand(64))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * self.scale.sqrt())

    model, x = Root().double(), floats(20, 3)()
    with torch.no_grad():
        model.scale[0] = 0  # so that not all are positive
    found = probe(model, discover(model, x), x)
    assert found.notes
    assert not found.missed


def test_outputs_without_a_finite_value_show_nothing() -> None:
    model = mlp()
    nn.init.constant_(model[0].bias, float("nan"))
    spec = PermutationSpec.from_patterns(PINNED, model)
    with pytest.raises(TraceError, match="finite"):
        probe(model, spec, floats(5, 3)())
    with pytest.raises(TraceError, match="finite"):
        spec.verify(model, floats(5, 3)())


# --- the model, the limits


def test_the_model_and_the_random_numbers_are_left_alone() -> None:
    model = NETWORKS["vgg"].build().float().train()
    inputs = NETWORKS["vgg"].inputs()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = discover(model, tuple(x.float() for x in inputs))
    before = torch.random.get_rng_state()
    probe(model, spec, inputs)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_the_seed_decides() -> None:
    model, x = mlp(), floats(5, 3)()
    spec = PermutationSpec.from_patterns(PINNED, model)
    found = [probe(model, spec, x, generator=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].missed[0].sensitivity != found[2].missed[0].sensitivity
    assert probe(model, spec, x, generator=torch.Generator().manual_seed(1)) == found[2]


def test_limits_leave_classes_that_are_counted(traced: Trace) -> None:
    net = traced("vgg")
    few = probe(net.model, net.spec, net.inputs, limit=3)
    none = probe(net.model, net.spec, net.inputs, seconds=0)
    assert (few.checked, none.checked) == (3, 0)
    assert none.unreached == few.unreached + 3 > 3
    assert probe(net.model, net.spec, net.inputs).unreached == 0
    assert "not reached" in str(none)


def test_a_specification_of_another_model_is_refused(traced: Trace) -> None:
    with pytest.raises(SpecError):
        probe(mlp(9), discover(mlp(8), floats(5, 3)()), floats(5, 3)())


def test_the_result_reads_well() -> None:
    model, x = mlp(), floats(5, 3)()
    found = probe(model, PermutationSpec.from_patterns(PINNED, model), x)
    assert isinstance(found, Probe)
    text = str(found)
    for part in ("missed:         1, on 3 of 6 axes (50.0%)", "0.weight[0], 0.bias[0], 2.weight[1]", "all 8 units"):
        assert part in text
    assert autoperm.probe is probe


def test_scales_that_start_close_to_zero_do_not_hide_a_branch() -> None:
    """With a layer scale of 1e-6 nothing in the branch would matter."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 1e-9))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.scale * self.inner(x).roll(1, -1))

    model, x = Scaled().double(), floats(5, 4)()
    spec = discover(model, x)
    assert probe(model, spec, x, randomize=False).unexercised
    found = probe(model, spec, x)
    assert not found.unexercised
    assert not found.missed


def test_progress_is_shown_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = mlp(), floats(5, 3)()
    spec = PermutationSpec.from_patterns(PINNED, model)
    probe(model, spec, x)
    assert not capsys.readouterr().err
    probe(model, spec, x, progress=True)
    assert "probe" in capsys.readouterr().err


def test_inputs_may_be_given_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp()

        def forward(self, *, x: Tensor, scale: float) -> Tensor:
            return scale * self.layers(x)

    given = {"x": torch.randn(5, 3), "scale": 2.0}
    spec = discover(Named(), given)
    assert not probe(Named(), spec, given).missed
    assert probe(Named(), PermutationSpec.from_patterns({}, Named()), given).missed

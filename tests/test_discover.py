"""Discovery: the groups of known networks, the models it must leave alone, and what must stay pinned."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Traced
from networks import LARGE, NETWORKS, floats, log10_order, randomize
from torch import Tensor, nn

from autoperm import AutopermError, Permutation, PermutationSpec, discover, register
from autoperm.rules import SIGNATURES
from autoperm.signature import Name, Pattern, Product, Sum, names

Trace = Callable[[str], Traced]


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return model(*inputs)


def check_same_function(a: nn.Module, b: nn.Module, inputs: tuple[Tensor, ...], tolerance: float = 1e-9) -> None:
    expected = outputs(a, inputs)
    torch.testing.assert_close(outputs(b, inputs), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def shift(spec: PermutationSpec, name: str) -> Permutation:
    """The group element that moves every unit of one factor to the next place, at every position it varies over."""
    return Permutation(spec, {name: spec.identity()[name].roll(1, -1)})


def groups(spec: PermutationSpec) -> list[tuple[int, int]]:
    return sorted((factor.size, spec.copies(factor)) for factor in spec.free)


def canonical(spec: PermutationSpec) -> tuple[dict[str, str], list[tuple[str, int, tuple[str, ...], bool]]]:
    """Patterns and factors with the names numbered as they come, so that only the structure is compared."""
    number: dict[str, str] = {}
    for name in sorted(spec.patterns):
        for factor in names(spec.patterns[name]):
            number.setdefault(factor, f"f{len(number)}")

    def rename(pattern: Pattern | Any) -> Any:
        if isinstance(pattern, tuple):
            return " ".join(map(rename, pattern))
        if isinstance(pattern, Name):
            return number[pattern.name]
        if isinstance(pattern, (Product, Sum)):
            return "(" + (" " if isinstance(pattern, Product) else " + ").join(map(rename, pattern.terms)) + ")"
        return "_"

    factors = [(number[f.name], f.size, tuple(number[n] for n in f.over), f.pinned) for f in spec.factors.values()]
    return {name: rename(pattern) for name, pattern in spec.patterns.items()}, sorted(factors)


# --- networks of known symmetry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_groups_are_those_of_theory(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    assert groups(spec) == NETWORKS[name].groups
    assert spec.log10_order == pytest.approx(log10_order(NETWORKS[name].groups))
    assert spec.unknown == ()


@pytest.mark.parametrize("name", NETWORKS)
def test_random_group_elements_preserve_the_function(name: str, traced: Trace) -> None:
    net = traced(name)
    for seed in range(3):
        check_same_function(net.model, net.spec.random(seed).apply(net.model), net.inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_factor_alone_preserves_the_function_and_moves_its_carriers(name: str, traced: Trace) -> None:
    net = traced(name)
    before = net.model.state_dict()
    for factor in net.spec.free:
        moved = shift(net.spec, factor.name).apply(net.model)
        check_same_function(net.model, moved, net.inputs)
        after = moved.state_dict()
        carriers = {tensor for tensor, _ in net.spec.carriers[factor.name]}
        carriers |= {other for other, tensor in net.spec.tied.items() if tensor in carriers}
        assert {tensor for tensor in before if not torch.equal(before[tensor], after[tensor])} == carriers != set()


@pytest.mark.parametrize("name", ["mlp", "vgg", "groupnorm", "attention_einsum"])
def test_every_carrier_of_a_factor_is_needed(name: str, traced: Trace) -> None:
    """Without this, a network whose outputs ignore its weights would pass all the tests above."""
    net = traced(name)
    before, expected = net.model.state_dict(), outputs(net.model, net.inputs)
    for factor in net.spec.free:
        after = shift(net.spec, factor.name).apply(before)
        for tensor in {tensor for tensor, _ in net.spec.carriers[factor.name]}:
            broken = copy.deepcopy(net.model)
            broken.load_state_dict({**after, tensor: before[tensor]})
            difference = (outputs(broken, net.inputs) - expected).abs().max() / expected.abs().max()
            assert difference > 1e-6, f"{factor.name} on {tensor}"


@pytest.mark.parametrize("name", NETWORKS)
def test_two_runs_give_equal_specifications(name: str, traced: Trace) -> None:
    first = traced(name).spec
    again = discover(NETWORKS[name].build(), NETWORKS[name].inputs())
    assert again == first
    assert list(again.factors) == list(first.factors)
    assert str(again) == str(first)


@pytest.mark.parametrize(
    ("name", "count", "order"),
    [("mlp3x512", 3, 3499.6), ("vgg16", 15, 35168.5), ("resnet20", 12, None), ("resnet50", 37, 25638.3)],
)
def test_standard_networks_have_the_published_number_of_permutations(
    name: str, count: int, order: float | None, traced: Trace
) -> None:
    spec = traced(name).spec
    assert len(spec.groups) == len(spec.free) == count
    assert groups(spec) == LARGE[name].groups
    if order is not None:
        assert spec.log10_order == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("name", LARGE)
def test_standard_networks_compute_the_same_when_permuted(name: str, traced: Trace) -> None:
    """In single precision, so that the large ones stay cheap: a wrong permutation changes the first digit."""
    net = traced(name)
    check_same_function(net.model, net.spec.random(0).apply(net.model), net.inputs, tolerance=1e-4)


# --- specifications written by hand -------------------------------------------------------------------------------


def conv(name: str, outputs: str, inputs: str, bias: bool = False) -> dict[str, str]:
    return {f"{name}.weight": f"{outputs} {inputs} _ _", **({f"{name}.bias": outputs} if bias else {})}


def norm(name: str, channels: str) -> dict[str, str]:
    return {f"{name}.{tensor}": channels for tensor in ("weight", "bias", "running_mean", "running_var")}


def dense(name: str, outputs: str, inputs: str) -> dict[str, str]:
    return {f"{name}.weight": f"{outputs} {inputs}", f"{name}.bias": outputs}


BY_HAND = {
    "mlp": {
        **dense("0", "P0", "_"),
        **dense("2", "P1", "P0"),
        **dense("4", "P2", "P1"),
        **dense("6", "_", "P2"),
    },
    "vgg": {
        **conv("0", "P0", "_", True), **norm("1", "P0"),
        **conv("4", "P1", "P0", True), **norm("5", "P1"),
        **conv("8", "P2", "P1", True), **norm("9", "P2"),
        **dense("13", "P3", "(P2 4)"),
        **dense("15", "_", "P3"),
    },
    "residual_cnn": {
        **conv("0", "Pa", "_"), **norm("1", "Pa"),
        **conv("3.body.0", "P1", "Pa"), **norm("3.body.1", "P1"),
        **conv("3.body.3", "Pa", "P1"), **norm("3.body.4", "Pa"),
        **conv("4.body.0", "P2", "Pa"), **norm("4.body.1", "P2"),
        **conv("4.body.3", "Pb", "P2"), **norm("4.body.4", "Pb"),
        **conv("4.shortcut.0", "Pb", "Pa"), **norm("4.shortcut.1", "Pb"),
        **dense("7", "_", "Pb"),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_written_specifications_are_found_again(name: str, traced: Trace) -> None:
    net = traced(name)
    by_hand = PermutationSpec.from_patterns(BY_HAND[name], net.model)
    assert canonical(net.spec) == canonical(by_hand)


# --- the user's model is left alone -------------------------------------------------------------------------------


class WithState(nn.Module):
    """A buffer that changes in every call, a cache in an attribute, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.seen.append(x.shape[0])
        return self.head(F.dropout(torch.relu(self.norm(self.inner(x))), training=self.training))


UNTOUCHED: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "state": lambda: (randomize(WithState().double()), floats(3, 6)()),
    **{
        name: lambda name=name: (NETWORKS[name].build(), NETWORKS[name].inputs())
        for name in ("mlp_batchnorm1d", "vgg", "lstm", "transformer_post", "tied_embedding", "weight_norm_mlp")
    },
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_the_users_model_is_left_as_it_is(name: str) -> None:
    model, inputs = UNTOUCHED[name]()
    modules = list(model.modules())
    for i, module in enumerate(modules):  # a mixture of modes that no call of train() or eval() would leave
        module.training = i % 2 == 0
    parameters = dict(model.named_parameters())
    for i, parameter in enumerate(parameters.values()):
        parameter.requires_grad = i % 3 != 0
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    ids = {name: (id(p), p.data_ptr(), p._version, p.requires_grad) for name, p in parameters.items()}
    state = copy.deepcopy(model.state_dict())
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    attributes = [{key: repr(value) for key, value in vars(module).items()} for module in modules]
    given = [tensor.clone() for tensor in inputs]

    discover(model, inputs)

    assert [module.training for module in modules] == [i % 2 == 0 for i in range(len(modules))]
    after = dict(model.named_parameters())
    assert {name: (id(p), p.data_ptr(), p._version, p.requires_grad) for name, p in after.items()} == ids
    for name, gradient in grads.items():
        assert (after[name].grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(after[name].grad, gradient, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert [{key: repr(value) for key, value in vars(module).items()} for module in modules] == attributes
    torch.testing.assert_close(list(inputs), given, rtol=0, atol=0)


def test_a_model_in_training_mode_is_discovered_in_evaluation_mode(traced: Trace) -> None:
    """In training mode the batch statistics would be outputs of the graph, and dropout would draw numbers."""
    model = NETWORKS["vgg"].build().train()
    assert discover(model, NETWORKS["vgg"].inputs()) == traced("vgg").spec


# --- operations that no rule knows --------------------------------------------------------------------------------


@torch.library.custom_op("autoperm_tests::mystery", mutates_args=())
def mystery(x: Tensor, scale: Tensor) -> Tensor:
    return torch.sin(x) * scale


@mystery.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.autoperm_tests.mystery(x, self.scale)  # the line that the report must show


def with_mystery() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Sequential(nn.Linear(12, 10), Middle()), nn.Linear(10, 4))
    return randomize(model.double().eval())


def test_an_unknown_operation_pins_all_that_it_touches_and_says_so() -> None:
    model, inputs = with_mystery(), floats(3, 6)()
    spec = discover(model, inputs)
    assert groups(spec) == [(12, 1)], "the layer before it is not touched"
    for tensor, axis in [("2.0.weight", 0), ("2.0.bias", 0), ("2.1.scale", 0), ("3.weight", 1)]:
        assert "autoperm_tests.mystery" in spec.reasons[tensor][axis]
    (report,) = spec.unknown
    assert "autoperm_tests.mystery" in report
    assert "2.1" in report, "the module's path"
    assert "test_discover.py" in report
    assert "the line that the report must show" in report
    assert "[3, 10]" in report
    assert "[10]" in report
    assert 'autoperm.register("autoperm_tests.mystery", "_ _, _ -> _ _")' in report
    assert report.splitlines()[0] in str(spec)
    check_same_function(model, spec.random(0).apply(model), inputs)


@pytest.fixture
def table() -> Iterator[None]:
    """Undo registrations."""
    before = dict(SIGNATURES)
    yield
    SIGNATURES.clear()
    SIGNATURES.update(before)


@pytest.mark.usefixtures("table")
def test_the_advice_for_an_unknown_operation_works_when_it_is_followed() -> None:
    model, inputs = with_mystery(), floats(3, 6)()
    (report,) = discover(model, inputs).unknown
    found = re.search(r'autoperm\.register\("([^"]+)", "([^"]+)"\)', report)
    assert found is not None
    register(found[1], found[2])
    assert groups(discover(model, inputs)) == [(12, 1)], "as it stands the line pins, and silences the report"
    assert discover(model, inputs).unknown == ()
    register(found[1], "b c, c -> b c", override=True)
    spec = discover(model, inputs)
    assert groups(spec) == [(10, 1), (12, 1)]
    check_same_function(model, spec.random(0).apply(model), inputs)


@pytest.mark.usefixtures("table")
def test_a_rule_that_does_not_fit_the_call_pins_and_says_why() -> None:
    register("autoperm_tests.mystery", "a b c, c -> a b c")
    spec = discover(with_mystery(), floats(3, 6)())
    assert groups(spec) == [(12, 1)]
    (report,) = spec.unknown
    assert "does not fit this call" in report
    assert "2 axes" in report


# --- parameters that must stay ------------------------------------------------------------------------------------


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.auxiliary = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x)))


def test_parameters_that_nothing_uses_are_pinned_with_a_reason() -> None:
    model, inputs = randomize(Unused().double().eval()), floats(3, 6)()
    spec = discover(model, inputs)
    assert groups(spec) == [(12, 1)]
    for tensor, axis in [("auxiliary.weight", 0), ("auxiliary.weight", 1), ("auxiliary.bias", 0)]:
        assert spec.reasons[tensor][axis] == "the traced path never uses it"
    moved = shift(spec, spec.free[0].name).apply(model)
    torch.testing.assert_close(moved.auxiliary.weight, model.auxiliary.weight, rtol=0, atol=0)


def test_tied_weights_are_one_tensor(traced: Trace) -> None:
    spec = traced("tied_embedding").spec
    assert spec.tied == {"head.weight": "emb.weight"}
    assert spec.patterns["head.weight"] == spec.patterns["emb.weight"]
    assert all(tensor != "head.weight" for axes in spec.carriers.values() for tensor, _ in axes)


def sharing(overlap: int) -> nn.Module:
    """Two layers whose weights are ranges of one storage."""
    storage = torch.empty(20 * 6, dtype=torch.float64)
    first, second = nn.Linear(6, 10).double(), nn.Linear(6, 10 + overlap).double()
    first.weight = nn.Parameter(storage[:60].view(10, 6))
    second.weight = nn.Parameter(storage[60 - 6 * overlap :].view(10 + overlap, 6))

    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second
            self.head = nn.Linear(20 + overlap, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(torch.cat([self.first(x), self.second(x)], -1)))

    return randomize(Sharing().eval())


def test_tensors_that_overlap_in_memory_are_pinned() -> None:
    assert groups(discover(sharing(0), floats(3, 6)())) == [(10, 1), (10, 1)], "neighbours in memory are free"
    spec = discover(sharing(2), floats(3, 6)())
    assert spec.free == ()
    assert "shares memory" in spec.reasons["first.weight"][0]
    assert "shares memory" in spec.reasons["second.weight"][0]


class Cached(nn.Module):
    """A bias table that is looked up once in evaluation mode and kept (LeViT and others)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table, self.head = nn.Linear(6, 12), nn.Parameter(torch.empty(12, 3)), nn.Linear(12, 4)
        self.register_buffer("places", torch.tensor([0, 2, 1, 1]))
        self._cache: Tensor | None = None

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self._cache = None
        return super().train(mode)

    def looked_up(self) -> Tensor:
        if self.training:
            return self.table[:, self.places]
        if self._cache is None:
            self._cache = self.table[:, self.places]
        return self._cache

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.inner(x))
        return self.head(x) + x @ self.looked_up()


CACHES = {"empty": None, "with a graph": torch.enable_grad, "without a graph": torch.no_grad}


@pytest.mark.parametrize("how", CACHES)
def test_a_modules_own_cache_of_parameters_is_seen_through(how: str) -> None:
    """Were the cache taken for a constant, the table's rows would look free of the channels that they belong to."""
    model, inputs = randomize(Cached().double()).eval(), floats(3, 6)()
    fill = CACHES[how]
    if fill is not None:
        with fill():
            model(*inputs)
    cache = model._cache
    spec = discover(model, inputs)
    assert model._cache is cache
    assert groups(spec) == [(12, 1)]
    assert str(spec.patterns["table"][0]) == str(spec.patterns["inner.weight"][0]) != "_"


@pytest.mark.parametrize("how", CACHES)
def test_a_permuted_model_does_not_keep_the_cache_of_the_original(how: str) -> None:
    model, inputs = randomize(Cached().double()).eval(), floats(3, 6)()
    fill = CACHES[how]
    if fill is not None:
        with fill():
            model(*inputs)
    spec = discover(model, inputs)
    assert spec.verify(model, inputs) < 1e-9
    check_same_function(model, shift(spec, spec.free[0].name).apply(model), inputs)


class WithBuffer(nn.Module):
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.register_buffer("scale", torch.linspace(0.5, 2, 12), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x) * self.scale))


def test_persistent_buffers_move_and_others_are_pinned() -> None:
    """A buffer that the state dict does not have cannot be permuted through one."""
    inputs = floats(3, 6)()
    kept, constant = (WithBuffer(persistent).double().eval() for persistent in (True, False))
    spec = discover(kept, inputs)
    assert groups(spec) == [(12, 1)]
    assert ("scale", 0) in spec.carriers[spec.free[0].name]
    check_same_function(kept, shift(spec, spec.free[0].name).apply(kept), inputs)
    spec = discover(constant, inputs)
    assert spec.free == ()
    assert "do not come from parameters" in spec.reasons["inner.weight"][0]


class Positions(nn.Module):
    """The mean over positions lets them be permuted, those that are used at least."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.empty(9, 12)), nn.Linear(12, 4)
        self.inner = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.table[: x.shape[1]] + self.inner(x.mean(1))[:, None]).mean(1))


def test_rows_of_a_table_that_were_sliced_off_are_pinned() -> None:
    model, inputs = randomize(Positions().double().eval()), floats(2, 5, 6)()
    spec = discover(model, inputs)
    assert groups(spec) == [(5, 12), (12, 1)], "for each channel its own order of the positions"
    rows = spec.patterns["table"][0]
    assert isinstance(rows, Sum)
    assert [spec.size(part) for part in rows.terms] == [5, 4]
    assert str(rows.terms[1]) == "4"
    assert "never uses this part" in spec.reasons["table"][0]
    check_same_function(model, spec.random(0).apply(model), inputs)


def test_inputs_and_outputs_are_pinned_with_a_reason(traced: Trace) -> None:
    spec = traced("mlp").spec
    assert spec.reasons["0.weight"][1].startswith("model input")
    assert spec.reasons["6.weight"][0] == spec.reasons["6.bias"][0] == "model output"
    assert spec.reasons["2.weight"] == ("", "")


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, flag: Tensor | None = None, *, scale: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.inner(x)) * scale
        return {"y": self.head(hidden), "hidden": [hidden.sum(-1)]}


def test_inputs_by_name_and_nested_outputs() -> None:
    model = randomize(TwoOutputs().double().eval())
    x, scale = floats(3, 6)()[0], torch.tensor(2.0, dtype=torch.float64)
    spec = discover(model, {"x": x, "scale": scale})
    assert groups(spec) == [(12, 1)]
    moved = shift(spec, spec.free[0].name).apply(model)
    torch.testing.assert_close(moved(x=x, scale=scale), model(x=x, scale=scale), rtol=0, atol=1e-12)


def test_a_model_without_parameters_has_no_factors() -> None:
    spec = discover(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.zeros(2, 3))
    assert spec.factors == {}
    assert spec.log10_order == 0


def test_discovery_errors_are_of_the_package() -> None:
    with pytest.raises(AutopermError, match="example_inputs is a str"):
        discover(nn.Linear(2, 2), "images")


class PositionAttentionWithoutTransposing(nn.Module):
    """Spatial attention that reads its result as an image without turning it round, as a published decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.center = nn.Conv2d(16, 5, 1)
        self.bottom = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        center, bottom = self.center(x).flatten(2), self.bottom(x).flatten(2).transpose(1, 2)
        scores = (center.transpose(1, 2) @ center).softmax(-1)
        return self.out(F.pad(x + (scores @ bottom).reshape(x.shape), (1, 1, 1, 1)))


def test_a_view_may_not_move_a_factor_from_one_copy_of_an_axis_to_the_other() -> None:
    """The image's axes stand twice in what is viewed: before it beside the one copy, after it beside the other."""
    net = PositionAttentionWithoutTransposing().double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert discover(net, x).verify(net, (x,), draws=10) < 1e-12


class Decay(nn.Module):
    """A table for the longest input, of which shorter ones use a corner: rows are cut off first, then columns."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        self.decay = nn.Parameter(torch.randn(4, 9, 9))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return self.down(torch.einsum("bsh,hst->bth", self.up(x).tanh(), self.decay[:, :n, :n]))


def test_what_is_cut_off_in_several_steps_is_not_used() -> None:
    """A longer input would use it, in its order."""
    spec = discover(Decay(), torch.randn(2, 5, 3))
    assert [factor.size for factor in spec.free] == [4]
    assert spec.inference is not None
    assert list(spec.inference.reasons().values()).count("the traced path never uses this part") == 2
    assert spec.verify(Decay(), (torch.randn(2, 7, 3),)) < 1e-12


class Rescales(nn.Module):
    """A model that changes its own weights as it runs, as some recurrent language models do in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).tanh()
        with torch.no_grad():
            self.mean.mul_(0.5).add_(hidden.mean(0))
            self.down.weight.div_(2)
        return self.down(hidden - self.mean)


def test_what_a_model_writes_back_to_its_own_tensors_moves_as_they_do() -> None:
    net = Rescales().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    spec = discover(net, x)
    assert [factor.size for factor in spec.free] == [8]
    carriers = {("up.weight", 0), ("up.bias", 0), ("down.weight", 1), ("mean", 0)}
    assert set(spec.carriers[spec.free[0].name]) == carriers
    moved = spec.random(0).apply(net)
    for _ in range(3):  # what is kept is read by the next run
        torch.testing.assert_close(moved(x), net(x))

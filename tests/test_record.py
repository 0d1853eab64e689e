"""The recorder: what it records is what the exporter gives, and what only it can take is sound on the path."""

from __future__ import annotations

import ctypes
import linecache
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Groups, floats, log10_order, randomize
from test_trace import COARSE, WRITES, Writes, check_functional, operations
from torch import Tensor, nn

from autoperm import PermutationSpec, align, discover
from autoperm.discover import infer
from autoperm.errors import EquivalenceError, TraceError
from autoperm.trace import trace
from autoperm.trace.record import functional, record


def groups(spec: PermutationSpec) -> Groups:
    return sorted((factor.size, spec.copies(factor)) for factor in spec.free)


def recorded(model: nn.Module, *inputs: Tensor, **named: Tensor) -> PermutationSpec:
    graph = record(model, inputs, named)
    check_functional(graph)
    return infer(graph)


def inputs_of(*shape: int, count: int = 4) -> list[Tensor]:
    """Different inputs, with values of all sizes: they lead along different paths."""
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) + i - 1) * 2**i for i in (1, 0, 2, 3)[:count]]


def check(model: nn.Module, inputs: Sequence[Tensor], expected: Groups) -> PermutationSpec:
    """Discovery on the first inputs finds what theory says, and it holds on all of them."""
    spec = discover(model, inputs[0])
    assert groups(spec) == sorted(expected)
    for x in inputs:
        assert spec.verify(model, (x,), draws=3, tolerance=1e-9) < 1e-9
    return spec


# --- the same as the exporter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_recording_finds_what_exporting_finds(name: str, traced: Callable[[str], Any]) -> None:
    network, exported = NETWORKS[name], traced(name)
    graph = record(network.build(), network.inputs(), {})
    check_functional(graph)
    spec = infer(graph)
    assert groups(spec) == groups(exported.spec) == network.groups
    assert spec.log10_order == pytest.approx(exported.spec.log10_order)
    assert list(spec.patterns) == list(exported.spec.patterns)
    assert (spec.tied, spec.unknown, spec.notes) == (exported.spec.tied, (), ())


@pytest.mark.parametrize("name", ["tied_embedding", "attention_rotary", "bilstm", "dense_concat"])
def test_recorded_groups_preserve_the_function(name: str) -> None:
    network = NETWORKS[name]
    model = network.build()
    assert recorded(model, *network.inputs()).verify(model, network.inputs(), tolerance=1e-9) < 1e-9


def test_structured_operations_stay_whole() -> None:
    network = NETWORKS["transformer_pre"]
    found = operations(record(network.build(), network.inputs(), {}))
    assert {"aten.linear", "aten.layer_norm", "aten.scaled_dot_product_attention"} <= set(found)


def test_operations_without_a_rule_are_taken_apart() -> None:
    class Hinge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.pairwise_distance(self.inner(x)[..., None], torch.zeros(12, 1, dtype=x.dtype)))

    model = randomize(Hinge().double().eval())
    spec = recorded(model, *floats(3, 6)())
    assert spec.unknown == ()
    assert groups(spec) == [(12, 1)]
    spec.verify(model, floats(3, 6)(), tolerance=1e-9)


# --- writes in place ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
def test_writes_in_place_divide_the_channels(name: str) -> None:
    write, expected = WRITES[name]
    model, inputs = randomize(Writes(write).double().eval()), floats(3, 6)()
    spec = recorded(model, *inputs)
    assert groups(spec) == expected
    assert spec.verify(model, inputs, draws=5, tolerance=1e-9) < 1e-9


def through_old_view(x: Tensor) -> None:
    view = x[:, :5]
    x.mul_(2.0)  # the view sees it
    view += view.sin()


def through_two_views(x: Tensor) -> None:
    rows, part = x.view(-1, 3, 4), x[:, 4:]
    rows[:, 1] *= 0.5
    part.add_(1.0)


def through_pieces(x: Tensor) -> None:
    first, second = x.split([5, 7], dim=1)
    first.mul_(2.0)
    second.copy_(second.cos())


def through_unbound(x: Tensor) -> None:
    x.unflatten(1, (3, 4)).unbind(1)[1].sin_()


def into_out(x: Tensor) -> None:
    torch.mul(x[:, :5].clone(), 3.0, out=x[:, :5])


def by_swap(x: Tensor) -> None:
    x[:, :4], x[:, 8:] = x[:, 8:].clone(), x[:, :4].clone()


def through_shape(x: Tensor) -> None:
    y = x.t_()
    y[:5] *= 2
    x.t_()


def through_data(x: Tensor) -> None:
    x.data[:, :5] += 1.0


MORE_WRITES: dict[str, tuple[Callable[[Tensor], object], Groups]] = {
    "old view": (through_old_view, [(5, 1), (7, 1)]),
    "two views": (through_two_views, [(4, 1), (4, 1), (4, 1)]),
    "pieces": (through_pieces, [(5, 1), (7, 1)]),
    "unbound": (through_unbound, [(4, 1), (4, 1), (4, 1)]),
    "out": (into_out, [(5, 1), (7, 1)]),
    "swap": (by_swap, [(4, 1), (4, 1), (4, 1)]),
    "shape": (through_shape, [(5, 1), (7, 1)]),
    "data": (through_data, [(5, 1), (7, 1)]),
}


@pytest.mark.parametrize("name", MORE_WRITES)
def test_every_view_sees_every_write(name: str) -> None:
    write, expected = MORE_WRITES[name]
    model, inputs = randomize(Writes(write).double().eval()), floats(3, 6)()
    spec = recorded(model, *inputs)
    assert groups(spec) == expected
    assert spec.verify(model, inputs, draws=5, tolerance=1e-9) < 1e-9


def through_diagonal(x: Tensor) -> None:
    x[:, :3].diagonal(dim1=0, dim2=1).mul_(2.0)


def through_memory(x: Tensor) -> None:
    x.as_strided((3, 2), (12, 5)).add_(1.0)


def to_masked(x: Tensor) -> None:
    x[torch.tensor([[True, False, True] * 4] * 3)] = 2.0


@pytest.mark.parametrize("write", [*COARSE.values(), through_diagonal, through_memory, to_masked])
def test_writes_that_no_rule_knows_are_sound(write: Callable[[Tensor], object]) -> None:
    model, inputs = randomize(Writes(write).double().eval()), floats(3, 6)()
    spec = recorded(model, *inputs)
    assert all(factor.size < 12 for factor in spec.free), "moving all channels at once would be wrong"
    assert spec.verify(model, inputs, draws=5, tolerance=1e-9) < 1e-9


def test_what_the_model_writes_to_itself_is_an_output() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
            self.register_buffer("mean", torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.inner(x))
            self.mean.mul_(0.9).add_(x.mean(0))
            return self.head(x)

    model = Counting().double().eval()
    assert recorded(model, *floats(3, 6)()).free == ()
    assert model.mean.eq(0).all(), "the user's model is left alone"


def test_running_statistics_that_are_written_without_a_word() -> None:
    class Norm(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)

    model = randomize(nn.Sequential(nn.Linear(6, 12), Norm(12), nn.Linear(12, 4)).double().eval())
    assert recorded(model, *floats(3, 6)()).free == ()


def test_windows_of_memory_keep_the_axes_that_come_through() -> None:
    """Overlapping windows along the sequence, as in attention to neighbours: the channels are free."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x).contiguous()
            b, s, c = x.shape
            x = x.as_strided((b, s // 2 - 1, 4, c), (x.stride(0), 2 * x.stride(1), x.stride(1), 1))
            return self.head(torch.relu(x).mean(2))

    model = randomize(Windows().double().eval())
    spec = recorded(model, *floats(2, 8, 6)())
    assert (groups(spec), spec.unknown) == ([(12, 1)], ())
    spec.verify(model, floats(2, 8, 6)(), tolerance=1e-9)


@pytest.mark.parametrize(
    ("op", "form"),
    [
        ("add_.Tensor", "add.Tensor"),
        ("copy_.default", "copy.default"),
        ("index_put_.default", "index_put.default"),
        ("normal_.default", "normal_functional.default"),
        ("mul.out", "mul.Tensor"),
        ("dropout_.default", "dropout.default"),
        ("set_.source_Tensor", "set.source_Tensor"),
        ("record_stream.default", None),
    ],
)
def test_functional_forms(op: str, form: str | None) -> None:
    name, overload = op.split(".")
    found = functional(getattr(getattr(torch.ops.aten, name), overload))
    assert (None if found is None else str(found)) == (form and f"aten.{form}")


# --- paths ----------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if x.sum() > 0:  # the branch
            x = torch.relu(x)
        return self.head(torch.tanh(self.hidden(x)))


def test_a_branch_is_recorded_and_said() -> None:
    model = randomize(Branching().double().eval())
    xs = inputs_of(3, 6)
    assert len({bool(model.inner(x).sum() > 0) for x in xs}) == 2, "both ways are taken"
    spec = check(model, xs, [(8, 1), (12, 1)])
    why, path = spec.notes
    line = next(n for n in range(1, 1000) if linecache.getline(__file__, n).strip().endswith("# the branch"))
    assert why.startswith("torch.export cannot take Branching: ")
    assert f"{__file__}:{line}" in why
    assert "recorded instead" in why
    assert path.startswith("the path depends on data, and the symmetries hold on the path that was recorded; verify")
    assert f"aten.is_nonzero, {__file__}:{line}: if x.sum() > 0:" in path
    assert f"note: {path}" in str(spec)


class Experts(nn.Module):
    """A mixture of experts that calls each expert on the tokens routed to it, if there are any."""

    def __init__(self, experts: int = 3, chosen: int = 2) -> None:
        super().__init__()
        self.chosen = chosen
        self.stem, self.gate, self.head = nn.Linear(6, 10), nn.Linear(10, experts), nn.Linear(10, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(10, 7), nn.GELU(), nn.Linear(7, 10)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights, chosen = self.gate(x).softmax(-1).topk(self.chosen, dim=-1)
        mask = F.one_hot(chosen, len(self.experts)).permute(2, 1, 0)
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            place, token = torch.where(mask[index])
            if token.numel() == 0:
                continue
            result.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return self.head(x + result)


class ExpertsByMask(Experts):
    """The same, with a mask for each expert, and what it computes written to the places of the mask."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        best = self.gate(x).argmax(-1)
        result = x.clone()
        for index, expert in enumerate(self.experts):
            mask = best == index
            if mask.any():
                result[mask] = expert(x[mask])
        return self.head(result)


@pytest.mark.parametrize("kind", [Experts, ExpertsByMask])
def test_experts_in_a_loop(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind().double().eval())
    nn.init.zeros_(model.gate.bias)
    spec = check(model, inputs_of(32, 6), [(10, 1), (7, 1), (7, 1), (7, 1)])
    assert any("the path depends on data" in note for note in spec.notes)


def test_sizes_that_data_decides() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            count = int((x[:, 0] > 0).sum().item()) + 1
            return self.head(torch.relu(self.inner(x))[:count])

    check(randomize(Sized().double().eval()), inputs_of(5, 6), [(12, 1)])


def test_a_slice_of_channels_that_data_decides() -> None:
    """On the path of the first inputs, units may move within the two parts; elsewhere the cut is another."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            h[:, : int(x.abs().max().item()) + 3] *= 2.0
            return self.head(h)

    model, x = randomize(Cut().double().eval()), torch.full((3, 6), 1.5, dtype=torch.float64)
    spec = discover(model, x)
    assert groups(spec) == [(4, 1), (8, 1)]
    spec.verify(model, (x,), tolerance=1e-9)
    spec.verify(model, (-x,), tolerance=1e-9)
    with pytest.raises(EquivalenceError):  # the note says so: verify on several inputs
        spec.verify(model, (4 * x,), tolerance=1e-9)


@pytest.mark.parametrize("read", [Tensor.tolist, Tensor.numpy, np.asarray, lambda h: h.detach().cpu().numpy()])
def test_what_python_is_given_stays_in_place(read: Callable[[Tensor], Any]) -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head, self.side = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(6, 9)
            self.out = nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.inner(x))
            weights = np.arange(12) * np.array(read(h[0]))  # each unit has its own weight
            return self.head(h) * float(weights.sum()) + self.out(torch.relu(self.side(x)))

    spec = check(randomize(Given().double().eval()), inputs_of(3, 6), [(9, 1)])
    assert any("the path depends on data" in note for note in spec.notes)


def test_units_that_are_read_one_by_one() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.inner(x))
            return self.head(h) * h[0, 3].item() + float(h.argmax(-1)[0])

    model = randomize(One().double().eval())
    spec = recorded(model, *floats(3, 6)())
    assert spec.free == (), "the place of the largest is a place among all"


def test_reading_constants_is_no_path() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
            self.register_buffer("length", torch.tensor(3))

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(12, dtype=torch.bool)
            if bool(mask.all()) and self.length.item() == 3:
                mask = torch.zeros(12, dtype=torch.bool)
            return self.head(self.inner(x).masked_fill(mask, 0.0))

    graph = record(Fixed(), (torch.zeros(2, 6),), {})
    assert graph.notes == []
    assert operations(graph) == ["aten.linear", "aten.masked_fill", "aten.linear"], "the rest is folded"


def test_numbers_that_come_from_data_make_no_constants() -> None:
    """A mask that is all false for these inputs is not the same all along for others."""

    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.arange(12) > float(x.abs().max())
            return self.head(self.inner(x).masked_fill(mask, 0.0))

    model = randomize(Threshold().double().eval())
    large, small = 100 * torch.ones(3, 6, dtype=torch.float64), torch.ones(3, 6, dtype=torch.float64)
    spec = recorded(model, large)
    spec.verify(model, (large,), tolerance=1e-9)
    spec.verify(model, (small,), tolerance=1e-9)


# --- tensors from elsewhere -----------------------------------------------------------------------------------------


class Uses(nn.Module):
    """A layer, and something that is done with it and its output."""

    def __init__(self, use: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.inner, torch.relu(self.inner(x))))


TABLE = torch.linspace(0.0, 1.0, 12, dtype=torch.float64)


def from_the_module(layer: nn.Linear, h: Tensor) -> Tensor:
    return h * TABLE


def from_numpy(layer: nn.Linear, h: Tensor) -> Tensor:
    return h * torch.from_numpy(np.linspace(0.0, 1.0, 12))


def literal(layer: nn.Linear, h: Tensor) -> Tensor:
    return h * torch.tensor([1.0, 2.0] * 6, dtype=h.dtype)


@pytest.mark.parametrize("use", [from_the_module, from_numpy, literal])
def test_constants_from_elsewhere_pin_what_they_meet(use: Callable[[nn.Linear, Tensor], Tensor]) -> None:
    model = randomize(Uses(use).double().eval())
    spec = recorded(model, *floats(3, 6)())
    assert spec.free == ()
    assert all(reason for reasons in spec.reasons.values() for reason in reasons)


def test_literals_that_are_the_same_all_along_restrict_nothing() -> None:
    model = randomize(Uses(lambda layer, h: h * torch.tensor([2.0] * 12, dtype=h.dtype)).double().eval())
    assert groups(recorded(model, *floats(3, 6)())) == [(12, 1)]


def test_attributes_are_constants() -> None:
    model = Uses(lambda layer, h: h * layer.scale + layer.shift)
    model.inner.scale = torch.full((12,), 2.0)
    model.inner.register_buffer("shift", torch.arange(12.0) // 6, persistent=False)
    model = randomize(model.double().eval())
    model.inner.scale = model.inner.scale.double()
    assert recorded(model, *floats(3, 6)()).free == ()
    model.inner.shift.zero_()
    assert groups(recorded(model, *floats(3, 6)())) == [(12, 1)]


def memory_of(h: Tensor) -> bytes:
    """Read a tensor as a kernel does that is no operation of torch."""
    storage = h.untyped_storage()
    return ctypes.string_at(storage.data_ptr(), storage.nbytes())


def test_weights_that_come_back_from_elsewhere_are_an_error() -> None:
    """A cache outside of the model keeps a function of its weights: no permutation of them would reach it."""
    kept: dict[nn.Linear, Tensor] = {}  # by the layer, which lives on in it: another one would get its id

    def cached(layer: nn.Linear, h: Tensor) -> Tensor:
        return h * kept.setdefault(layer, layer.weight.detach().sum(1).clone())

    def by_address(layer: nn.Linear, h: Tensor) -> Tensor:
        return h * torch.frombuffer(bytearray(memory_of(h)), dtype=h.dtype).view_as(h)

    model = randomize(Uses(by_address).double().eval())
    with pytest.raises(TraceError, match="no recorded operation made changes with the weights") as caught:
        record(model, floats(3, 6)(), {})
    assert "test_record.py" in str(caught.value), "where"
    assert "torch.library.custom_op" in str(caught.value), "what to do"
    model = randomize(Uses(cached).double().eval())
    assert recorded(model, *floats(3, 6)()).verify(model, floats(3, 6)()) < 1e-9


def test_memory_that_something_unseen_has_filled_is_an_error() -> None:
    def kernel(layer: nn.Linear, h: Tensor) -> Tensor:
        return torch.empty(12, dtype=h.dtype) * h

    with pytest.raises(TraceError, match="memory that no recorded operation has written to"):
        record(Uses(kernel).double(), floats(3, 6)(), {})


def test_memory_that_is_filled_is_known() -> None:
    def filled(layer: nn.Linear, h: Tensor) -> Tensor:
        result = torch.empty_like(h)
        result[:, :5] = h[:, :5]
        result[:, 5:] = 2 * h[:, 5:]
        return result

    model = randomize(Uses(filled).double().eval())
    spec = recorded(model, *floats(3, 6)())
    assert groups(spec) == [(5, 1), (7, 1)]
    spec.verify(model, floats(3, 6)(), tolerance=1e-9)


def test_caches_of_evaluation_mode_are_dropped() -> None:
    class Cached(nn.Module):
        """Keeps a function of its weights in evaluation mode."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head, self.bias = nn.Linear(6, 12), nn.Linear(12, 4), nn.Parameter(torch.zeros(12))
            self.cache: Tensor | None = None

        def train(self, mode: bool = True) -> nn.Module:
            if mode:
                self.cache = None
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.cache is None:
                self.cache = self.bias.exp()
            return self.head(torch.relu(self.inner(x) + self.cache))

    model = randomize(Cached().double().eval())
    model(*floats(3, 6)())
    assert groups(recorded(model, *floats(3, 6)())) == [(12, 1)]
    assert isinstance(model.cache, Tensor)
    assert not model.cache.is_inference(), "the user's model is left alone"


# --- random numbers -------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw
        self.inner, self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.draw(self.inner(x)))))


@pytest.mark.parametrize(
    "draw",
    [
        lambda h: h + torch.rand(8, dtype=h.dtype),
        lambda h: h + torch.randn_like(h),
        lambda h: F.dropout(h, 0.5, training=True),
        lambda h: h * torch.bernoulli(h.sigmoid()),
        lambda h: h[:, torch.randperm(8)],
        lambda h: h.clone().normal_() + h,
        lambda h: torch.rrelu(h, training=True),
    ],
)
@pytest.mark.parametrize("take", [trace, lambda model, inputs: record(model, inputs, {})])
def test_random_numbers_are_said_and_pinned(
    draw: Callable[[Tensor], Tensor], take: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = randomize(Noisy(draw).double().eval()), floats(3, 6)()
    spec = infer(take(model, inputs))
    assert groups(spec) == [(12, 1)], "what meets random numbers is pinned, the rest is free"
    assert spec.unknown == ()
    (note,) = spec.notes
    assert note.startswith("random numbers are drawn in evaluation mode")
    assert "test_record.py" in note, "where"
    assert spec.verify(model, inputs, tolerance=1e-9) < 1e-9, "each forward draws the same"


def test_dropout_that_is_off_draws_nothing() -> None:
    model = randomize(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double().eval())
    spec = recorded(model, *floats(3, 6)())
    assert (groups(spec), spec.notes) == ([(8, 1)], ())


def test_verification_leaves_the_user_s_random_numbers_alone() -> None:
    model, inputs = randomize(Noisy(lambda h: h + torch.rand(8)).double().eval()), floats(3, 6)()
    spec = recorded(model, *inputs)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    spec.verify(model, inputs)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


# --- inputs, outputs, names, errors ---------------------------------------------------------------------------------


def test_inputs_by_name_and_within_others() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, images: list[Tensor], *, options: dict[str, Tensor]) -> dict[str, list[Tensor]]:
            if options["scale"] > 0:
                images = [image * options["scale"] for image in images]
            return {"boxes": [self.head(torch.relu(self.inner(image))) for image in images]}

    model = randomize(Nested().double().eval())
    named = {"images": [*floats(3, 6)(), *floats(2, 6)()], "options": {"scale": torch.tensor(2.0)}}
    spec = discover(model, named)
    assert groups(spec) == [(8, 1)]
    assert any("model input 'images.0'" in reason for reason in spec.reasons["inner.weight"] if reason)
    assert spec.verify(model, named) < 1e-9


def test_outputs_within_objects_are_outputs() -> None:
    class Result:
        def __init__(self, hidden: Tensor) -> None:
            self.hidden = hidden

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Result]:
            x = torch.relu(self.inner(x))
            return self.head(torch.relu(self.hidden(x))), Result(x)

    assert groups(recorded(Returns().double(), *floats(3, 6)())) == [(12, 1)]


def test_inputs_are_not_written_to() -> None:
    class Greedy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2.0))

    (x,) = floats(3, 6)()
    before = x.clone()
    recorded(Greedy(6, 4).double(), x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_nothing_found_has_any_shape() -> None:
    class Finds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head, self.boxes = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 12)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.inner(x))
            boxes = self.boxes(h[x[:, 0] > 100.0])
            return self.head(h), boxes.view(-1, 3, 4).flatten(1, 2)

    model = randomize(Finds().double().eval())
    spec = check(model, floats(3, 6)(), [(8, 1)])
    assert spec.log10_order > 0


def test_sizes_that_the_exporter_leaves_open() -> None:
    """It exports a count of tokens as an unknown; the recorder knows it."""

    class Splits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.inner(x[x[:, 0] > 0])))

    spec = check(randomize(Splits().double().eval()), inputs_of(8, 6), [(8, 1)])
    assert len(spec.notes) == 2


def test_verification_says_when_rounding_decides() -> None:
    """Whether any sum is larger than the same sum was before, only rounding says."""

    class Ties(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 1)
            self.register_buffer("before", torch.zeros(301, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(torch.tanh(self.inner(x)))
            return 3 * y if (y > self.before).any() else y

    model, inputs = randomize(Ties().double().eval()), floats(301, 6)()
    with torch.no_grad():
        model.before.copy_(model.head(torch.tanh(model.inner(*inputs))))
    spec = discover(model, inputs)
    assert groups(spec) == [(8, 1)]
    with pytest.raises(EquivalenceError, match="rounding decides the path"):
        spec.verify(model, inputs, tolerance=1e-9)


def test_what_comes_to_nothing_is_not_recorded() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.side = nn.Linear(6, 4), nn.Linear(6, 9)

        def forward(self, x: Tensor) -> Tensor:
            self.side(x)
            return self.inner(x)

    graph = record(Idle(), (torch.zeros(2, 6),), {})
    assert operations(graph) == ["aten.linear"]
    assert infer(graph).reasons["side.bias"] == ("the traced path never uses it",)


def test_calls_know_module_and_line() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.Identity(), Branching()))
    call = record(model, (torch.ones(2, 5),), {}).calls[-2]
    assert call.op is torch.ops.aten.tanh.default
    assert call.where.module == "1.1"
    file, line, code = call.where.source.split(":", 2)
    assert file == __file__
    assert linecache.getline(file, int(line)).strip() == code.strip() == "return self.head(torch.tanh(self.hidden(x)))"


def test_a_model_that_does_not_run_is_not_blamed_on_tracing() -> None:
    with pytest.raises(TraceError, match=r"Branching does not run on the example inputs \(float64\[3, 7\]\)"):
        discover(Branching().double(), torch.zeros(3, 7, dtype=torch.float64))


def test_memory_that_is_exchanged_is_an_error() -> None:
    class Exchanges(Branching):
        def forward(self, x: Tensor) -> Tensor:
            y = x.clone()
            y.set_(x)
            return super().forward(y)

    with pytest.raises(TraceError, match=r"can be neither exported nor recorded") as caught:
        discover(Exchanges().double(), *floats(3, 6)())
    assert "aten.set_ gives a tensor other memory" in str(caught.value)
    assert "PermutationSpec.from_patterns" in str(caught.value), "what to do"


def test_models_that_are_recorded_are_aligned() -> None:
    make = lambda seed: randomize(Experts().double().eval(), seed)  # noqa: E731
    aligned = align(make(0), make(1), example_inputs=inputs_of(16, 6)[0])
    assert aligned.error is not None
    assert aligned.error < 1e-9
    assert aligned.spec.log10_order == pytest.approx(log10_order([(10, 1), (7, 1), (7, 1), (7, 1)]))

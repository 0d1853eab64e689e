"""Values that are positions: experts, codebooks, and whatever else ``topk`` or ``argmax`` points at.

Each network is a function of an input and a few parameters. What is asked of each: that all that is found is a symmetry
(``verify``), that what is known to be one is found, and that where positions are used as numbers, or ties decide them,
the axis is pinned, for which a permutation that changes the output is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import autoperm
from autoperm import rules
from autoperm.errors import EquivalenceError
from autoperm.rules.positions import grouped_mm as grouped_mm_rule

F = nn.functional
E, H, D, K = 6, 5, 4, 3  # experts (or codes), hidden units, inputs, outputs


class Net(nn.Module):
    """A function of an input and of parameters."""

    def __init__(self, function: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        random = torch.Generator().manual_seed(3)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))

        self.router, self.table, self.bias = parameter(E, D), parameter(E, H), parameter(E, K)
        self.correction = parameter(E)
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64))
        self.up, self.down = parameter(E, H, D), parameter(E, K, H)
        self.first, self.shift, self.out = parameter(H, D), parameter(H), parameter(K, H)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)

    def scores(self, x: Tensor) -> Tensor:
        return F.linear(x, self.router)

    def codes(self, x: Tensor) -> Tensor:
        return F.linear(x, self.first, self.shift)


X = torch.randn(7, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


MANY = torch.randn(300, D, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def groups(function: Callable[[Net, Tensor], Any], x: Tensor = X) -> dict[str, tuple[int, int]]:
    """Size and copies of the free factors that are carried, by the first axis of each parameter they are on."""
    model = Net(function).eval()
    spec = autoperm.discover(model, x)
    assert not spec.unknown
    spec.verify(model, (x,), tolerance=1e-9, generator=0)
    found = {}
    for factor in spec.free:
        tensor, axis = spec.carriers[factor.name][0]
        found[f"{tensor}.{axis}"] = (factor.size, spec.copies(factor))
    return found


def breaks(function: Callable[[Net, Tensor], Any], patterns: dict[str, tuple[str, ...]], x: Tensor = MANY) -> bool:
    """Tell whether permuting axes of the same name changes the output: the counterexample for a pin."""
    model = Net(function).eval()
    text = {name: " ".join(axes) for name, axes in patterns.items()}
    spec = autoperm.PermutationSpec.from_patterns(text, model)
    try:
        spec.verify(model, (x,), tolerance=1e-9, generator=0)
    except EquivalenceError:
        return True
    return False


# ------------------------------------------------------------------------------------------------ known symmetries


def all_experts(net: Net, x: Tensor, gate: Tensor) -> Tensor:
    hidden = torch.einsum("bi,ehi->beh", x, net.up).relu()
    return torch.einsum("be,beh,eoh->bo", gate, hidden, net.down)


def scatter_gate(net: Net, x: Tensor) -> Tensor:
    weights, experts = net.scores(x).softmax(-1).topk(2)
    return all_experts(net, x, torch.zeros(len(x), E, dtype=x.dtype).scatter(1, experts, weights))


def scatter_add_gate(net: Net, x: Tensor) -> Tensor:
    weights, experts = net.scores(x).sigmoid().topk(2, dim=-1)
    return all_experts(net, x, torch.zeros_like(net.scores(x)).scatter_add(-1, experts, weights))


def mask_of_the_chosen(net: Net, x: Tensor) -> Tensor:
    scores = net.scores(x)
    chosen = F.one_hot(scores.topk(2).indices, E).sum(1)
    return all_experts(net, x, scores.softmax(-1) * chosen)


def put_gate(net: Net, x: Tensor) -> Tensor:
    best = net.scores(x).argmax(-1)
    gate = torch.zeros(len(x), E, dtype=x.dtype).index_put((torch.arange(len(x)), best), torch.ones((), dtype=x.dtype))
    return all_experts(net, x, gate)


def gathered_experts(net: Net, x: Tensor) -> Tensor:
    weights, experts = net.scores(x).topk(2)
    hidden = torch.einsum("bi,bkhi->bkh", x, net.up[experts]).relu()
    return torch.einsum("bk,bkh,bkoh->bo", weights, hidden, net.down[experts])


def gathered_scores(net: Net, x: Tensor) -> Tensor:
    scores = net.scores(x).softmax(-1)
    experts = (scores + net.correction).topk(2).indices  # a correction chooses, but does not weigh
    return torch.einsum("bk,bko->bo", scores.gather(1, experts), net.bias[experts])


def one_expert(net: Net, x: Tensor) -> Tensor:
    best, expert = net.scores(x).max(-1)
    return best[:, None] * net.bias.index_select(0, expert)


def nearest_code(net: Net, x: Tensor) -> Tensor:
    code = torch.cdist(net.codes(x), net.table).argmin(-1)
    return F.linear(F.embedding(code, net.table), net.out)


def nearest_code_by_squares(net: Net, x: Tensor) -> Tensor:
    z, table = net.codes(x), net.table
    distances = z.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1) - 2 * z @ table.t()
    return F.linear(F.one_hot(distances.argmin(1), E).to(z.dtype) @ table, net.out)


def nearest_code_by_difference(net: Net, x: Tensor) -> Tensor:
    distances = (net.codes(x)[:, None] - net.table).square().sum(-1)
    return F.linear(net.table[distances.min(1).indices], net.out)


def hard_assignment(net: Net, x: Tensor) -> Tensor:
    """As in k-means attention: the mean of all that belong to one centre is added to it."""
    z = net.codes(x)
    belongs = ((z @ net.table.t()).argmax(-1, keepdim=True) == torch.arange(E)).to(z.dtype)
    centres = net.table + belongs.t() @ z / (1 + belongs.sum(0)[:, None])
    return F.linear(belongs @ centres, net.out)


def scattered_mean(net: Net, x: Tensor) -> Tensor:
    code = net.scores(x).argmax(-1)
    sums = torch.zeros(E, D, dtype=x.dtype).index_add(0, code, x)
    return torch.einsum("ei,ehi->h", sums, net.up) @ net.out.t()


def median_unit(net: Net, x: Tensor) -> Tensor:
    value, place = net.scores(x).median(-1)
    return value[:, None] * net.bias[place]


def ranked(net: Net, x: Tensor) -> Tensor:
    """All experts, the best first, each weighed by its rank."""
    order = net.scores(x).sort(-1, descending=True).indices
    ranks = torch.arange(1, 1 + E, dtype=x.dtype)
    return (net.bias[order] / ranks[:, None]).sum(1)


def learned_ranks(net: Net, x: Tensor) -> Tensor:
    """A parameter sorted and put back: a sort's own inverse."""
    order = net.bias[:, 0].argsort()
    rank = order.argsort()
    return all_experts(net, x, (net.bias[order].cumsum(0)[rank][:, 0] * net.scores(x)))


EXPERTS, HIDDEN, CODES, WIDTH = {"router.0": (E, 1)}, {"up.1": (H, E)}, {"table.0": (E, 1)}, {"table.1": (H, 1)}
ONCE = {"up.1": (H, 1)}

KNOWN: list[tuple[Callable[[Net, Tensor], Tensor], dict[str, tuple[int, int]]]] = [
    (scatter_gate, EXPERTS | HIDDEN),
    (scatter_add_gate, EXPERTS | HIDDEN),
    (mask_of_the_chosen, EXPERTS | HIDDEN),
    (put_gate, EXPERTS | HIDDEN),
    (gathered_experts, EXPERTS | ONCE),
    (gathered_scores, EXPERTS),
    (one_expert, EXPERTS),
    (nearest_code, CODES | WIDTH),
    (nearest_code_by_squares, CODES | WIDTH),
    (nearest_code_by_difference, CODES | WIDTH),
    (hard_assignment, CODES | WIDTH),
    (scattered_mean, EXPERTS | ONCE),
    (median_unit, EXPERTS),
    (ranked, EXPERTS),
    (learned_ranks, EXPERTS | HIDDEN | {"bias.1": (2, 1)}),
]


@pytest.mark.parametrize(("function", "expected"), KNOWN, ids=lambda value: getattr(value, "__name__", ""))
def test_known_symmetries(function: Callable[[Net, Tensor], Tensor], expected: dict[str, tuple[int, int]]) -> None:
    assert groups(function) == expected


# ------------------------------------------------------------------------------------------------ grouped experts


@torch.library.custom_op("autoperm_test::grouped_mm", mutates_args=())
def grouped_mm(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """As ``torch._grouped_mm``, in float64."""
    bounds = [0, *ends.tolist()]
    parts = [x[a:b] @ matrix for (a, b), matrix in zip(itertools.pairwise(bounds), matrices, strict=True)]
    return torch.cat(parts)


@grouped_mm.register_fake
def _(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], matrices.shape[2])


@pytest.fixture
def _grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules._POSITIONS, "autoperm_test.grouped_mm", grouped_mm_rule)
    monkeypatch.setitem(rules.SIGNATURES, "autoperm_test.grouped_mm", "_ i, _ i o, _ -> _ o")


def grouped_experts(
    net: Net,
    x: Tensor,
    *,
    between: Callable[[Net, Tensor, Tensor], Tensor] = lambda net, y, order: y,
    scores: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1),
    counted: Callable[[Tensor, Tensor], Tensor] = lambda chosen, arranged: arranged,
    ends: Callable[[Tensor], Tensor] = lambda counts: counts.cumsum(0, dtype=torch.int32),
) -> Tensor:
    """Tokens sorted by their experts, one product for all, and back, as large mixtures of experts do it."""
    weights, experts = scores(net.scores(x)).topk(2)
    chosen = experts.flatten()
    arranged, order = chosen.sort()
    until = ends(torch.histc(counted(chosen, arranged).float(), E, 0, E - 1))
    hidden = grouped_mm(x[order // 2], net.up.transpose(1, 2), until).relu()
    y = grouped_mm(hidden, net.down.transpose(1, 2), until) + net.bias[arranged]
    y = between(net, y, order) * weights.flatten()[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return y[back].unflatten(0, (-1, 2)).sum(1)


@pytest.mark.usefixtures("_grouped")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, EXPERTS | HIDDEN),
        ({"counted": lambda chosen, arranged: chosen}, EXPERTS | HIDDEN),
        # the hidden units of each expert stay its own where the experts themselves are pinned: by ties,
        ({"scores": lambda scores: scores.relu()}, HIDDEN),
        # by the order of the slots,
        ({"between": lambda net, y, order: y.cumsum(0)}, HIDDEN),
        ({"between": lambda net, y, order: y * torch.arange(len(y))[:, None]}, HIDDEN),
        ({"between": lambda net, y, order: y[:8].repeat(2, 1)[: len(y)]}, {}),
        # but not where what is multiplied is not what was sorted
        ({"counted": lambda chosen, arranged: chosen.flip(0) * 0}, ONCE),
        ({"ends": lambda counts: counts.flip(0).cumsum(0, dtype=torch.int32)}, ONCE),
        ({"ends": lambda counts: (counts * 1).cumsum(0, dtype=torch.int32)}, ONCE),
    ],
)
def test_grouped_experts(options: dict[str, Any], expected: dict[str, tuple[int, int]]) -> None:
    if not expected:
        assert "router.0" not in groups(lambda net, x: grouped_experts(net, x, **options))
    else:
        assert groups(lambda net, x: grouped_experts(net, x, **options)) == expected


@pytest.mark.usefixtures("_grouped")
def test_slots_stay_slots_where_gates_are_split_off() -> None:
    def gated(net: Net, x: Tensor) -> Tensor:
        arranged, order = net.scores(x).argmax(-1).sort()
        until = torch.histc(arranged.float(), E, 0, E - 1).cumsum(0, dtype=torch.int32)
        both = torch.cat([net.up, net.up.tanh()], 1).transpose(1, 2)
        left, right = grouped_mm(x[order], both, until).split(H, -1)
        return grouped_mm(left * right.sigmoid(), net.down.transpose(1, 2), until)[order.argsort()]

    assert groups(gated) == EXPERTS | HIDDEN


@pytest.mark.usefixtures("_grouped")
def test_slots_of_two_routers_are_different_slots() -> None:
    """Each is sorted in its own way, so adding them up slot by slot needs their order."""

    def two(net: Net, x: Tensor) -> Tensor:
        slots = []
        for scores in (net.scores(x), x @ net.up[:, 0].t()):
            arranged, order = scores.argmax(-1).sort()
            until = torch.histc(arranged.float(), E, 0, E - 1).cumsum(0, dtype=torch.int32)
            slots.append(grouped_mm(x[order], net.down[:, :, :D].transpose(1, 2)[:, :D], until))
        return (slots[0] + slots[1]).cumsum(1)

    assert "router.0" not in groups(two)


@pytest.mark.usefixtures("_grouped")
def test_a_parameter_of_the_slots_needs_their_order() -> None:
    def learned(net: Net, x: Tensor) -> Tensor:
        arranged, _ = net.scores(x[:E]).argmax(-1).sort()
        return net.bias[arranged] + net.down[:, :, 0]

    assert "router.0" not in groups(learned)
    assert breaks(learned, {"router": ("a", "_"), "bias": ("a", "_")})
    assert breaks(learned, {"down": ("a", "_", "_")})


# ------------------------------------------------------------------------------------------------ what must pin

R, B = {"router": ("a", "_"), "bias": ("a", "_")}, {"router": ("a", "_")}


def of_best(use: Callable[[Net, Tensor, Tensor], Any]) -> Callable[[Net, Tensor], Any]:
    return lambda net, x: use(net, x, net.scores(x).argmax(-1))


PINNED: dict[str, tuple[Callable[[Net, Tensor], Any], dict[str, tuple[str, ...]]]] = {
    # ties: equal values are told apart by their places
    "relu": (lambda net, x: net.bias[(net.scores(x) - 2).relu().argmax(-1)], R),
    "clamp": (lambda net, x: net.bias[net.scores(x).clamp(-1, 1).argmax(-1)], R),
    "hardsigmoid": (lambda net, x: net.bias[F.hardsigmoid(9 * net.scores(x)).topk(2).indices].sum(1), R),
    "masked": (
        lambda net, x: net.bias[net.scores(x).masked_fill(net.scores(x) < 1, -9.0).topk(3).indices].sum(1),
        R,
    ),
    "times a mask": (
        lambda net, x: net.bias[(net.scores(x) * net.mask).topk(4).indices].sum(1),
        {**R, "mask": ("a",)},
    ),
    "where": (lambda net, x: net.bias[torch.where(net.scores(x) > 1, net.scores(x), 0.0).topk(4).indices].sum(1), R),
    "rounded": (lambda net, x: net.bias[net.scores(x).round().argmax(-1)], R),
    "whole numbers": (lambda net, x: net.bias[net.scores(x).to(torch.int64).argmax(-1)], R),
    "signs": (lambda net, x: net.bias[net.scores(x).sign().argmax(-1)], R),
    "sign by quotient": (lambda net, x: net.bias[(net.scores(x) / net.scores(x).abs()).argmax(-1)], R),
    "nothing left": (lambda net, x: net.bias[(net.scores(x) - net.scores(x).clone()).argmax(-1)], R),
    "comparisons": (lambda net, x: net.bias[(net.scores(x) > 0).double().argmax(-1)], R),
    "softmax of one": (lambda net, x: net.bias[net.scores(x)[..., None].softmax(-1)[..., 0].argmax(-1)], R),
    "zeros without a bias": (lambda net, x: net.bias[F.linear((x - 9).relu(), net.router).argmax(-1)], R),
    "times zeros": (lambda net, x: net.bias[(net.scores(x) * (x[:, :1]).relu()).argmax(-1)], R),
    "most frequent": (lambda net, x: net.bias[net.scores(x).mode(-1).indices], {}),
    "the same for all": (lambda net, x: net.bias[x[:, :1].expand(-1, E).argmax(-1)], {"bias": ("a", "_")}),
    "looked up twice": (
        lambda net, x: net.bias[net.table[:, 0][torch.tensor([0, 1, 1, 0, 1, 0])].argmax()] * x[:, :3],
        {
            "bias": ("a", "_"),
        },
    ),
    # numbers
    "returned": (of_best(lambda net, x, best: (best.double(), x)), B),
    "compared": (of_best(lambda net, x, best: (best == 2).double()), B),
    "less": (of_best(lambda net, x, best: (best < 2).double()), B),
    "computed": (of_best(lambda net, x, best: net.bias[(best + 1) % E]), R),
    "truth": (of_best(lambda net, x, best: best.to(torch.bool).double()), B),
    "joined with numbers": (of_best(lambda net, x, best: net.bias[torch.cat([best, torch.arange(E)])]), R),
    "sorted units": (
        lambda net, x: net.up[net.bias.argmax(-1).sort().indices].sum(-1),
        {
            "bias": ("a", "_"),
            "up": ("a", "_", "_"),
        },
    ),
    "sorted": (of_best(lambda net, x, best: net.bias[best.sort().values]), R),
    "largest": (of_best(lambda net, x, best: net.bias[best.max(0, keepdim=True).values]), R),
    "another table": (
        of_best(lambda net, x, best: net.table[:, :, None].expand(E, H, 2).flatten(0, 1)[best]),
        {
            "router": ("a", "_"),
            "table": ("a", "_"),
        },
    ),
    "wider": (of_best(lambda net, x, best: F.one_hot(best, E + 1).double()), B),
    "last written": (
        lambda net, x: torch.zeros(2, K, dtype=x.dtype).index_copy(0, torch.tensor([0, 1, 0, 1, 0, 1]), net.bias),
        {"bias": ("a", "_")},
    ),
    "unordered": (
        lambda net, x: net.scores(x).topk(5, sorted=False).values.cumsum(1) * net.bias[0, 0],
        {},
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_must_pin(name: str) -> None:
    function, patterns = PINNED[name]
    found = groups(function)
    assert not {"router.0", "bias.0"} & set(found), found
    assert not patterns or breaks(function, patterns)


def test_places_in_an_input_stay_places() -> None:
    """The feature at the end-of-text token: the axis that is searched is the input's own."""

    def pooled(net: Net, x: Tensor) -> Tensor:
        h = F.linear(net.codes(x), net.out)
        return h[torch.arange(2), x[..., 0].argmax(-1)]

    assert groups(pooled, X[:6].unflatten(0, (2, 3))) == {"first.0": (H, 1)}


def test_counting_means_any_axis() -> None:
    """One table of numbers, read as the positions along two axes of one length."""

    def both(net: Net, x: Tensor) -> Tensor:
        every = torch.arange(E)
        return x[:, :1] * (net.bias[every].sum(0) + net.table[every][:, :K].pow(2).sum(0))

    assert groups(both) == {"bias.0": (E, 1), "table.0": (E, 1), "table.1": (H - K, 1)}


# ------------------------------------------------------------------------------------------------ any program

SOURCES = [
    "s.argmax(-1)", "s.argmin(1)", "s.max(-1)[1]", "s.min(1)[1]", "s.topk(2)[1]", "s.topk(1)[1]",
    "s.topk(3, sorted=False)[1]", "s.sort(-1)[1]", "s.argsort(1)", "s.median(-1)[1]", "s.kthvalue(2, 1)[1]",
    "s.mode(-1)[1]", "s.sort(-1)[1].argsort(-1)", "s.t().argmax(0)", "s.view(-1, 2, 3).argmax(-1)",
    "s.flatten().argmax()", "net.bias[:, 0].argsort()", "net.bias[:, 0].argsort().argsort()", "net.router.argmax(0)",
    "net.bias.argmax(-1)", "torch.arange(E)", "s.argmax(0)", "s[:, :3].argmax(-1)", "s.argmax(-1).sort()[0]",
    "s.topk(2)[1].flatten().sort()[1]",
]  # fmt: skip
SCORES = [
    "s", "s.softmax(-1)", "s.sigmoid()", "s + net.correction", "s.relu()", "-s", "s * 2", "s.clamp(-1, 1)",
    "s - s.mean(-1, True)",
]  # fmt: skip
MOVES = [
    "p.flatten()", "p.unsqueeze(0)", "p.clone()", "p.to(torch.int32)", "p.float().long()", "p[..., :1]", "p.flip(-1)",
    "torch.cat([p, p], -1)", "torch.stack([p, p])", "p.expand(2, *p.shape)", "p.transpose(0, -1)", "p + 1", "p % 3",
    "p // 2", "torch.where(p > 1, p, 0)", "p.sort(-1)[0]", "p.sort(-1)[1]", "p.roll(1, 0)",
    "p.repeat_interleave(2, -1)", "p.max(-1)[0]", "p.flatten()[p.flatten().argsort()]", "p.bool().long()",
    "torch.cat([p.flatten(), torch.arange(E)])", "p.gather(-1, p * 0)",
]  # fmt: skip
USES = [
    "net.bias[p]", "F.embedding(p, net.table)", "net.up[p].sum(-1)", "F.one_hot(p, E).double() @ net.bias",
    "p.double()", "(p[..., None] == torch.arange(E)).double() @ net.table",
    "(p[..., None] != p[..., None, :]).double()",
    "torch.zeros(E, dtype=x.dtype).index_add(0, p.flatten(), x.flatten()[: p.numel()]) @ net.bias",
    "net.bias[:, 0].scatter(0, p.flatten(), x.flatten()[: p.numel()]) @ net.bias",
    "net.bias[:, 0].scatter_add(0, p.flatten(), x.flatten()[: p.numel()]) @ net.table",
    "net.bias[:, 0].index_put((p,), x.flatten()[0]) @ net.bias", "net.scores(x).gather(-1, p.reshape(-1, 1)[:7])",
    "net.scores(x)[:, p.flatten()] @ net.bias.repeat(9, 1)[: p.numel()]", "net.bias.index_select(0, p.flatten())",
    "torch.histc(p.float(), E, 0, E - 1).double() @ net.bias", "net.bias.take_along_dim(p.reshape(-1, 1), 0)",
    "net.up[p, 0]", "net.router[p, p * 0]", "net.up.flatten(0, 1)[p]", "net.bias.index_fill(0, p.flatten(), 0.5)",
    "net.bias.index_copy(0, p.flatten()[:E], net.bias[: p.numel()]).cumsum(1)", "net.bias.softmax(0)[p].cumsum(-1)",
]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.sampled_from(SCORES),
    st.sampled_from(SOURCES),
    st.lists(st.sampled_from(MOVES), max_size=2),
    st.sampled_from(USES),
)
def test_any_use_of_positions_is_sound(scores: str, source: str, moves: list[str], use: str) -> None:
    scope = {"torch": torch, "F": F, "E": E}

    def program(net: Net, x: Tensor) -> Tensor:
        names: dict[str, Any] = {"net": net, "x": x}
        for name, code in [
            ("s", "net.scores(x)"),
            ("s", scores),
            ("p", source),
            *(("p", move) for move in moves),
            ("y", use),
        ]:
            names[name] = eval(code, scope, names)
        return names["y"]

    try:
        Net(program)(X)
    except (RuntimeError, IndexError):  # sizes do not fit
        return
    groups(program)

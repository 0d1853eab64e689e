"""Weight matching."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS
from strategies import elements, random_state, specs
from torch import Tensor, nn

from autoperm import Permutation, PermutationSpec, interpolate, weight_matching
from autoperm.errors import AutopermError, SpecError, WeightsError

Trace = Callable[[str], Traced]
State = Mapping[str, Tensor]


KERNELS = ("linear", "cosine")


def inner_product(spec: PermutationSpec, a: State, b: State, kernel: str = "linear") -> float:
    """The objective, written out. Tied names count once, since they are one tensor.

    The cosine kernel divides by both norms, and counts tensors with one number for each unit a thousandth.
    """
    total = 0.0
    for name in spec.patterns:
        if name not in spec.tied:
            value = float((a[name] * b[name]).sum())
            if kernel == "cosine":
                norms = float(a[name].norm() * b[name].norm())
                value *= (1.0 if a[name].squeeze().ndim > 1 else 1e-3) / norms if norms else 0.0
            total += value
    return total


def check_history(
    spec: PermutationSpec, a: State, b: State, *, kernel: str = "linear", **options: object
) -> Permutation:
    """Match; check that the objective never falls and is what it says it is; return what was found."""
    match = weight_matching(spec, a, b, kernel=kernel, **options)
    scale = sum(float(a[name].norm() * b[name].norm()) for name in spec.patterns) if kernel == "linear" else 1.0
    rounding = 1e-9 * max(scale, 1.0)
    start = options.get("start", "boundary")
    before = inner_product(spec, a, (spec.identity() if start == "boundary" else start).apply(b), kernel)
    if start == "boundary":
        assert match.objective[0] >= before - rounding, "where it starts is no worse than the identity"
    else:
        assert match.objective[0] == pytest.approx(before, abs=rounding)
    assert all(later >= earlier for earlier, later in itertools.pairwise(match.objective))
    after = inner_product(spec, a, match.permutation.apply(b), kernel)
    assert match.objective[-1] == pytest.approx(after, abs=rounding)
    return match.permutation


# --- planted permutations -----------------------------------------------------------------------------------------

PLANTED = [
    "mlp", "residual_mlp", "mlp_batchnorm1d", "vgg", "residual_cnn", "conv1d", "conv3d", "dense_concat", "unet", "lstm",
    "gru", "bilstm", "shared_layer", "tied_embedding", "swiglu", "mixture_dense", "groupnorm", "depthwise_groupnorm",
    "grouped_conv", "transformer_post", "transformer_pre", "gpt", "vit", "perceiver",
    *(name for name in NETWORKS if name.startswith("attention_")),
]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_is_found_exactly(name: str, kernel: str, traced: Trace) -> None:
    net = traced(name)
    a = {n: p.detach() for n, p in net.model.named_parameters(remove_duplicate=False)}
    everything = net.model.state_dict()
    for seed in range(2):
        planted = net.spec.random(seed)
        moved = planted.apply(everything)
        b = {n: moved[n] for n in a}
        match = weight_matching(net.spec, a, b, kernel=kernel, seed=seed)
        assert match.permutation.compose(planted) == net.spec.identity()
        assert match.converged
        if kernel == "linear":
            norm = sum(float(a[n].square().sum()) for n in a if n not in net.spec.tied)
            assert match.objective[-1] == pytest.approx(norm)


@pytest.mark.parametrize(
    "name", ["mlp", "residual_cnn", "grouped_conv", "transformer_pre", "attention_grouped_sdpa", "lstm"]
)
def test_noise_does_not_hide_a_planted_permutation(name: str, traced: Trace) -> None:
    net = traced(name)
    a, noise = net.model.state_dict(), random_state(net.spec, 7)
    planted = net.spec.random(0)
    b = planted.apply({**a, **{n: a[n] + 0.01 * noise[n] for n in net.spec.patterns}})
    assert check_history(net.spec, a, b).compose(planted) == net.spec.identity()


# --- the objective ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mlp", "vgg", "residual_cnn", "lstm", "grouped_conv", "transformer_pre", "gpt", "perceiver"]
)
def test_the_objective_never_falls_and_is_the_inner_product(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    for kernel, start in itertools.product(KERNELS, ["boundary", spec.identity(), spec.random(5)]):
        found = check_history(spec, a, b, kernel=kernel, start=start)
        assert inner_product(spec, a, found.apply(b), kernel) > inner_product(spec, a, b, kernel)


@given(specs(), st.integers(0, 3))
def test_the_objective_never_falls_on_random_specifications(spec: PermutationSpec, seed: int) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    for kernel, start in itertools.product(KERNELS, ["boundary", spec.random(seed)]):
        check_history(spec, a, b, kernel=kernel, seed=seed, start=start)


@given(specs(), st.integers(0, 3))
def test_matching_again_from_where_it_stopped_changes_nothing(spec: PermutationSpec, seed: int) -> None:
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    first = weight_matching(spec, a, b, seed=seed)
    assert first.converged
    again = weight_matching(spec, a, b, seed=seed + 1, start=first.permutation)
    assert again.permutation == first.permutation
    assert len(again.objective) == 1


def by_hand(patterns: Mapping[str, tuple[str, tuple[int, ...]]], over: Mapping[str, list[str]]) -> PermutationSpec:
    tensors = {name: torch.empty(shape) for name, (_, shape) in patterns.items()}
    return PermutationSpec.from_patterns({name: text for name, (text, _) in patterns.items()}, tensors, over=over)


# A block is a root with all that varies over it; these have one block each, and are linear in it.
BLOCKS = {
    "one factor": by_hand({"w": ("h _", (5, 3)), "b": ("h", (5,)), "v": ("_ h", (2, 5))}, {}),
    "heads": by_hand({"w": ("(h=3 d=2) _", (6, 3)), "b": ("(h d)", (6,)), "s": ("h", (3,))}, {"d": ["h"]}),
    "heads on separate axes": by_hand({"w": ("h _ d", (3, 2, 3)), "v": ("(h d)", (9,))}, {"d": ["h"]}),
    "keys and values": by_hand({"w": ("((h=2 d=3) + (h e=2)) _", (10, 3))}, {"d": ["h"], "e": ["h"]}),
    "three levels": by_hand(
        {"w": ("(g=2 h=2 d=2) _", (8, 3)), "s": ("(g h)", (4,)), "v": ("d _ (g h)", (2, 2, 4))},
        {"h": ["g"], "d": ["g", "h"]},
    ),
    "three levels, always together": by_hand({"w": ("(g=2 h=2 d=2)", (8,))}, {"h": ["g"], "d": ["g", "h"]}),
    "over a pinned axis": by_hand({"w": ("p! h _", (2, 4, 3))}, {"h": ["p"]}),
    "two levels over a pinned axis": by_hand({"w": ("p! (h=2 d=2) _", (2, 4, 3))}, {"h": ["p"], "d": ["p", "h"]}),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("seed", range(4))
def test_a_single_block_is_solved_exactly(name: str, seed: int) -> None:
    spec = BLOCKS[name]
    a, b = random_state(spec, 2 * seed), random_state(spec, 2 * seed + 1)
    every = list(elements(spec))
    assert len(every) == round(10**spec.log10_order)
    best = max(inner_product(spec, a, p.apply(b)) for p in every)
    for start in ["boundary", every[(seed * 7) % len(every)]]:
        found = check_history(spec, a, b, seed=seed, start=start)
        assert inner_product(spec, a, found.apply(b)) == pytest.approx(best, rel=1e-12)


def test_blocks_that_are_not_linear_are_named() -> None:
    spec = by_hand({"w": ("(g=2 o=3) i", (6, 2)), "b": ("g o", (2, 3))}, {"o": ["g"]})
    assert weight_matching(spec, random_state(spec), random_state(spec, 1)).alternating == ()
    spec = by_hand({"w": ("(g=2 o=3) _", (6, 2)), "v": ("g o i", (2, 3, 2))}, {"o": ["g"], "i": ["g"]})
    assert weight_matching(spec, random_state(spec), random_state(spec, 1)).alternating == ("g",)


# --- options and faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "grouped_conv"])
def test_a_seed_gives_the_same_result_again(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    first, again = (weight_matching(spec, a, b, seed=3) for _ in range(2))
    assert first.permutation == again.permutation
    assert first.objective == again.objective


def test_the_order_of_the_blocks_is_drawn_from_the_seed(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    matches = [weight_matching(spec, a, b, seed=seed, start=spec.identity()) for seed in range(6)]
    assert len({match.objective for match in matches}) > 1


def test_sweeps_are_limited(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    match = weight_matching(spec, a, b, start=spec.identity(), max_sweeps=1)
    assert match.sweeps == 1
    assert not match.converged
    assert weight_matching(spec, a, b, start=spec.identity()).sweeps > 1
    none = weight_matching(spec, a, b, start=spec.identity(), max_sweeps=0)
    assert none.permutation == spec.identity()
    assert len(none.objective) == 1


def test_the_start_is_where_matching_starts(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b, start = random_state(spec, 0), random_state(spec, 1), spec.random(0)
    assert weight_matching(spec, a, b, start=start, max_sweeps=0).permutation == start
    check_history(spec, a, b, start=start)


def test_an_unknown_kernel_lists_those_there_are(traced: Trace) -> None:
    spec = traced("mlp").spec
    with pytest.raises(AutopermError, match="no kernel 'cosin'; choose 'linear' or 'cosine'"):
        weight_matching(spec, random_state(spec), random_state(spec, 1), kernel="cosin")


def test_the_cosine_kernel_does_not_depend_on_the_scale_of_tensors(traced: Trace) -> None:
    spec = traced("vgg").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    scaled = {name: tensor * 10.0 ** (i % 5 - 2) for i, (name, tensor) in enumerate(a.items())}
    first, again = (weight_matching(spec, state, b, kernel="cosine").permutation for state in (a, scaled))
    assert first == again
    linear = [weight_matching(spec, state, b, kernel="linear").permutation for state in (a, scaled)]
    assert linear[0] != linear[1]


def test_growing_from_the_boundary_finds_what_descent_from_the_identity_does_not(traced: Trace) -> None:
    """With noise as large as the weights: the units next to inputs and outputs are still told apart."""
    net = traced("mlp")
    a, noise = net.model.state_dict(), random_state(net.spec, 3)
    planted = net.spec.random(0)
    b = planted.apply({n: a[n] + 0.3 * noise[n] * a[n].std() for n in net.spec.patterns})

    def right(start: object) -> float:
        found = weight_matching(net.spec, a, b, kernel="linear", start=start).permutation.compose(planted)
        return sum(float((found[f.name] == torch.arange(f.size)).double().mean()) for f in net.spec.free)

    assert right("boundary") == len(net.spec.free)
    assert right("boundary") >= right(net.spec.identity())


def test_a_specification_without_free_factors() -> None:
    spec = by_hand({"w": ("_ _", (2, 3))}, {})
    match = weight_matching(spec, random_state(spec), random_state(spec, 1))
    assert match.permutation.is_identity
    assert match.converged


@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(which: str, value: float, traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    (a if which == "A" else b)["2.weight"][1, 2] = value
    with pytest.raises(WeightsError, match=f"2.weight of model {which}"):
        weight_matching(spec, a, b)


def test_tensors_that_do_not_fit_are_named(traced: Trace) -> None:
    spec = traced("mlp").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    with pytest.raises(SpecError, match=r"2\.bias is \[10\] in the specification and \[11\] in model B"):
        weight_matching(spec, a, {**b, "2.bias": torch.zeros(11)})
    with pytest.raises(SpecError, match=r"2\.bias is \[10\] in the specification and \[11\] in model A"):
        weight_matching(spec, {**a, "2.bias": torch.zeros(11)}, b)
    with pytest.raises(SpecError, match=r"2\.bias is .* missing in model B"):
        weight_matching(spec, a, {name: tensor for name, tensor in b.items() if name != "2.bias"})


def test_neither_state_is_changed(traced: Trace) -> None:
    spec = traced("gpt").spec
    a, b = random_state(spec, 0), random_state(spec, 1)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (a, b)]
    weight_matching(spec, a, b)
    torch.testing.assert_close([a, b], before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype, traced: Trace) -> None:
    net = traced("transformer_pre")
    a = {name: tensor.to(dtype) for name, tensor in net.model.state_dict().items()}
    planted = net.spec.random(0)
    found = weight_matching(net.spec, a, planted.apply(a)).permutation
    assert found.compose(planted) == net.spec.identity()


# --- two examples from the paper (Git Re-Basin, appendices A.6 and A.7.2) -----------------------------------------


def relu_net(*layers: tuple[list[list[float]], list[float]]) -> nn.Module:
    modules: list[nn.Module] = []
    for i, (weight, bias) in enumerate(layers):
        layer = nn.Linear(len(weight[0]), len(weight)).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
        modules += [layer, nn.ReLU()] if i < len(layers) - 1 else [layer]
    return nn.Sequential(*modules)


COUNTEREXAMPLE_A = relu_net(([[-1, 0], [0, -1]], [1, 0]), ([[-1, 0], [0, 1]], [1, 0]), ([[-1, -1]], [0]))
COUNTEREXAMPLE_B = relu_net(([[1, 0], [0, 1]], [0, 1]), ([[1, 0], [0, -1]], [0, 1]), ([[-1, -1]], [0]))
TWO_LAYERS = {"0.weight": "p _", "0.bias": "p", "2.weight": "q p", "2.bias": "q", "4.weight": "_ q"}
SWAP = torch.tensor([1, 0])


def grid_error(model: nn.Module) -> dict[str, float]:
    """The fraction of a grid on [-1, 1]^2 that is not classified as x1 < 0 and x2 > 0. No point is on an edge."""
    ticks = (torch.arange(200, dtype=torch.float64) + 0.5) / 100 - 1
    x = torch.cartesian_prod(ticks, ticks)
    wrong = (model(x)[:, 0] >= 0) != ((x[:, 0] < 0) & (x[:, 1] > 0))
    return {"error": wrong.double().mean().item()}


def test_the_counterexample_of_the_paper() -> None:
    """Both networks are perfect, and no permutation connects them, not even that of the largest inner product."""
    a, b = COUNTEREXAMPLE_A, COUNTEREXAMPLE_B
    spec = PermutationSpec.from_patterns(TWO_LAYERS, a)
    state_a, state_b = a.state_dict(), b.state_dict()
    assert grid_error(a) == grid_error(b) == {"error": 0.0}
    candidates = [
        Permutation(spec, {}),
        Permutation(spec, {"q": SWAP}),
        Permutation(spec, {"p": SWAP}),
        Permutation(spec, {"p": SWAP, "q": SWAP}),
    ]
    assert [inner_product(spec, state_a, p.apply(state_b)) for p in candidates] == [-2, 1, 3, 6]
    for p in candidates:
        curve = interpolate(a, p.apply(b), grid_error, points=25)
        assert curve.barrier("error") == pytest.approx(0.25, abs=0.006)
    for seed, start in itertools.product(range(4), ["boundary", spec.identity()]):
        found = weight_matching(spec, state_a, state_b, kernel="linear", seed=seed, start=start)
        assert found.permutation == candidates[-1]


def test_both_swaps_are_found_in_any_order() -> None:
    """A greedy pass from the input to the output finds none of them, and loses half of the function."""
    e = 0.01
    spec = by_hand({"0": ("p _", (2, 1)), "1": ("q p", (2, 2)), "2": ("_ q", (1, 2))}, {})
    double = torch.float64
    a = {
        "0": torch.tensor([[1], [1 + e]], dtype=double),
        "1": torch.tensor([[1, 0], [0, e]], dtype=double),
        "2": torch.tensor([[1, 0]], dtype=double),
    }
    b = {
        "0": torch.tensor([[1], [1 + e]], dtype=double),
        "1": torch.tensor([[0, 0], [0, 1]], dtype=double),
        "2": torch.tensor([[0, 1]], dtype=double),
    }
    for seed, start in itertools.product(range(10), ["boundary", spec.identity()]):
        found = weight_matching(spec, a, b, kernel="linear", seed=seed, start=start).permutation
        assert found == Permutation(spec, {"p": SWAP, "q": SWAP})
        moved = found.apply(b)
        middle = {name: (a[name] + moved[name]) / 2 for name in a}
        assert float(middle["2"] @ middle["1"] @ middle["0"]) == pytest.approx(1 + e / 2, abs=e**2)

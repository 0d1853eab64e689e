"""Group elements: what they do to tensors, and that they are a group."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import Traced
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS
from strategies import elements, random_state, specs
from torch import Tensor, nn

from autoperm import Permutation, PermutationSpec
from autoperm.errors import SpecError
from autoperm.signature import Name, Pinned, Product, Sum, Term

Trace = Callable[[str], Traced]
State = dict[str, Tensor]


def from_shapes(patterns: dict[str, tuple[str, tuple[int, ...]]], over: dict[str, list[str]]) -> PermutationSpec:
    tensors = {name: torch.empty(shape) for name, (_, shape) in patterns.items()}
    return PermutationSpec.from_patterns({name: text for name, (text, _) in patterns.items()}, tensors, over=over)


BY_HAND = {
    "plain": from_shapes({"w": ("h _", (4, 2)), "b": ("h", (4,)), "s": ("", ())}, {}),
    "heads": from_shapes({"w": ("(h=3 d) c", (12, 5)), "o": ("c (h d)", (5, 12))}, {"d": ["h"]}),
    "three levels": from_shapes(
        {
            "w": ("(g=2 h=3 d) _", (24, 2)),
            "b": ("(g h d)", (24,)),
            "t": ("g _ (h d)", (2, 3, 12)),
            "s": ("h g", (3, 2)),
        },
        {"h": ["g"], "d": ["g", "h"]},
    ),
    "fused": from_shapes(
        {"qkv": ("((h=3 d=2) + (h d) + (h e)) c", (21, 4)), "o": ("c (h e)", (4, 9))}, {"d": ["h"], "e": ["h"]}
    ),
    "experts": from_shapes({"w": ("e c f", (4, 3, 5)), "b": ("f e", (5, 4))}, {"f": ["e"]}),
    "over a pinned axis": from_shapes({"w": ("p! f", (3, 4)), "v": ("f _ p", (4, 2, 3))}, {"f": ["p"]}),
    "square": from_shapes({"w": ("h h", (4, 4)), "v": ("(g=2 d=3) (g d)", (6, 6))}, {"d": ["g"]}),
    "repeated": from_shapes({"w": ("(h=4 + 2 + h)", (10,))}, {}),
}
"""Every way in which factors stand beside each other, written by hand."""

NAMES = [*BY_HAND, *NETWORKS]


@pytest.fixture
def spec(request: pytest.FixtureRequest, traced: Trace) -> PermutationSpec:
    return BY_HAND.get(request.param) or traced(request.param).spec


every_spec = pytest.mark.parametrize("spec", NAMES, indirect=True)


def check_equal(a: State, b: State) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# --- the action, written out slowly -------------------------------------------------------------------------------


def decode(
    spec: PermutationSpec, term: Term, place: int
) -> tuple[list[tuple[str, int]], Callable[[dict[str, int]], int]]:
    """Read a place on an axis as places of factors.

    Returns:
        The factors with their places, and the function that reads other places of the same factors as one on the axis.
    """
    if isinstance(term, Name):
        return [(term.name, place)], lambda places: places[term.name]
    if isinstance(term, Pinned):
        return [], lambda places: place
    sizes = [spec.size(inner) for inner in term.terms]
    if isinstance(term, Sum):
        start = 0
        for inner, size in zip(term.terms, sizes, strict=True):
            if place < start + size:
                found, back = decode(spec, inner, place - start)
                return found, lambda places, start=start, back=back: start + back(places)
            start += size
    assert isinstance(term, Product)
    found, backs = [], []
    for inner, size in reversed(list(zip(term.terms, sizes, strict=True))):
        place, here = divmod(place, size)
        inside, back = decode(spec, inner, here)
        found += inside
        backs.append((size, back))

    def encode(places: dict[str, int]) -> int:
        total = 0
        for size, back in reversed(backs):
            total = total * size + back(places)
        return total

    return found, encode


def slowly(permutation: Permutation, name: str, tensor: Tensor) -> Tensor:
    """``out[i, j] = in[h[i], d[i, j]]``, one element at a time."""
    spec, result = permutation.spec, torch.empty_like(tensor)
    pattern = spec.patterns[name]
    for element in itertools.product(*map(range, tensor.shape)):
        axes = [decode(spec, term, place) for term, place in zip(pattern, element, strict=True)]
        anywhere = {factor: place for found, _ in axes for factor, place in found}
        source = []
        for found, encode in axes:
            known = {**anywhere, **dict(found)}  # what a factor varies over is looked for in its own axis first
            moved = {}
            for factor, place in found:
                index = permutation[factor]
                for outer in spec.factors[factor].over:
                    index = index[known[outer]]
                moved[factor] = int(index[place])
            source.append(encode(moved))
        result[element] = tensor[tuple(source)]
    return result


@pytest.mark.parametrize("name", BY_HAND)
def test_the_action_is_the_documented_one(name: str) -> None:
    spec, state = BY_HAND[name], random_state(BY_HAND[name])
    for seed in range(3):
        permutation = spec.random(seed)
        moved = permutation.apply(state)
        check_equal(moved, {tensor: slowly(permutation, tensor, value) for tensor, value in state.items()})
        assert any(not torch.equal(moved[tensor], value) for tensor, value in state.items())


@given(specs(), st.integers(0, 9))
def test_the_action_on_random_specifications_is_the_documented_one(spec: PermutationSpec, seed: int) -> None:
    permutation, state = spec.random(seed), random_state(spec)
    check_equal(permutation.apply(state), {name: slowly(permutation, name, value) for name, value in state.items()})


# --- the group ----------------------------------------------------------------------------------------------------


def check_group(spec: PermutationSpec) -> None:
    state = random_state(spec)
    p, q, r = (spec.random(seed) for seed in range(3))
    check_equal(p.compose(q).apply(state), p.apply(q.apply(state)))
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    check_equal(spec.identity().apply(state), state)
    assert p.compose(spec.identity()) == p == spec.identity().compose(p)
    assert p.compose(p.inverse()) == spec.identity() == p.inverse().compose(p)
    check_equal(p.inverse().apply(p.apply(state)), state)
    assert p.inverse().inverse() == p
    assert p.compose(q).inverse() == q.inverse().compose(p.inverse())


@every_spec
def test_permutations_are_a_group(spec: PermutationSpec) -> None:
    check_group(spec)


@given(specs())
def test_permutations_of_random_specifications_are_a_group(spec: PermutationSpec) -> None:
    check_group(spec)


def test_compositions_of_wreath_products_do_not_commute() -> None:
    """If they did, the laws above would not notice a composition in the wrong order."""
    spec = BY_HAND["three levels"]
    p, q = spec.random(0), spec.random(1)
    assert p.compose(q) != q.compose(p)


def test_permutations_of_different_specifications_do_not_compose() -> None:
    with pytest.raises(SpecError, match="different specifications"):
        BY_HAND["plain"].identity().compose(BY_HAND["heads"].identity())


# --- equality -----------------------------------------------------------------------------------------------------


@every_spec
def test_equal_permutations_are_equal_and_have_one_hash(spec: PermutationSpec) -> None:
    p, again, other = spec.random(0), spec.random(0), spec.random(1)
    assert p == again
    assert hash(p) == hash(again)
    assert p != other
    assert p != "a permutation"
    assert len({p, again, other}) == 2


def test_the_identity_is_the_same_whether_written_out_or_not() -> None:
    spec = BY_HAND["heads"]
    written = Permutation(spec, {"h": torch.arange(3), "d": torch.arange(4).expand(3, 4)})
    assert written == spec.identity()
    assert hash(written) == hash(spec.identity())
    assert written.is_identity
    assert not spec.random(0).is_identity
    assert written["d"].tolist() == [[0, 1, 2, 3]] * 3


# --- what is no permutation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index", "says"),
    [
        ("z", [0, 1], "'z' is no factor"),
        ("p", [1, 0, 2], "'p' is pinned"),
        ("f", [0, 1, 2, 3], r"'f' have shape \[4\], expected \[3, 4\]"),
        ("f", [[0, 1, 2]] * 3, r"shape \[3, 3\], expected \[3, 4\]"),
        ("f", [[0, 1, 2, 2]] * 3, r"not a permutation of 0\.\.3"),
        ("f", [[1, 2, 3, 4]] * 3, r"not a permutation of 0\.\.3"),
        ("f", [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, -1]], r"not a permutation of 0\.\.3"),
    ],
)
def test_index_arrays_are_checked(name: str, index: list[object], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Permutation(BY_HAND["over a pinned axis"], {name: torch.tensor(index)})


def test_index_arrays_may_come_from_elsewhere() -> None:
    spec = BY_HAND["plain"]
    assert Permutation(spec, {"h": [1, 0, 2, 3]}) == Permutation(spec, {"h": torch.tensor([1, 0, 2, 3]).int().numpy()})


def test_a_factor_away_from_what_it_varies_over_is_an_error() -> None:
    spec = from_shapes({"w": ("e f", (2, 3)), "b": ("f", (3,))}, {"f": ["e"]})
    with pytest.raises(SpecError, match="'f' varies over 'e'"):
        Permutation(spec, {"f": torch.tensor([[1, 0, 2], [0, 1, 2]])}).apply(random_state(spec))


# --- what a permutation may be applied to -------------------------------------------------------------------------


def test_unknown_tensors_are_passed_on(traced: Trace) -> None:
    net = traced("vgg")
    state = net.model.state_dict()
    state["1.num_batches_tracked"] = torch.tensor(7)
    state["extra"] = torch.arange(3)
    moved = net.spec.random(0).apply(state)
    assert list(moved) == list(state)
    assert moved["1.num_batches_tracked"] is state["1.num_batches_tracked"]
    assert moved["extra"] is state["extra"]
    assert not torch.equal(moved["1.running_mean"], state["1.running_mean"])


def test_neither_the_tensors_nor_the_model_are_changed(traced: Trace) -> None:
    net = traced("vgg")
    state = net.model.state_dict()
    before = copy.deepcopy(state)
    permutation = net.spec.random(0)
    permutation.apply(state)
    for tensor in permutation.apply(net.model).state_dict().values():
        tensor.fill_(3)  # a model that comes back shares no memory with the one that was given
    check_equal(dict(net.model.state_dict()), dict(before))


def test_a_module_gives_a_module(traced: Trace) -> None:
    net = traced("vgg")
    model = copy.deepcopy(net.model)
    model[0].weight.requires_grad_(False)
    model[1].train()
    permutation = net.spec.random(0)
    moved = permutation.apply(model)
    assert type(moved) is type(model)
    assert moved is not model
    assert [module.training for module in moved.modules()] == [module.training for module in model.modules()]
    assert [p.requires_grad for p in moved.parameters()] == [p.requires_grad for p in model.parameters()]
    check_equal(dict(moved.state_dict()), permutation.apply(dict(model.state_dict())))


def test_tied_weights_stay_tied(traced: Trace) -> None:
    net = traced("tied_embedding")
    permutation = net.spec.random(0)
    model = permutation.apply(net.model)
    assert model.head.weight is model.emb.weight
    moved = permutation.apply(net.model.state_dict())
    assert moved["head.weight"] is moved["emb.weight"]
    assert not torch.equal(moved["emb.weight"], net.model.emb.weight)


def test_tied_names_with_tensors_of_their_own_are_both_moved(traced: Trace) -> None:
    """Such as gradients or a checkpoint that was saved without the tie."""
    net = traced("tied_embedding")
    state = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    state["head.weight"] += 1
    moved = net.spec.random(0).apply(state)
    torch.testing.assert_close(moved["head.weight"], moved["emb.weight"] + 1)


@pytest.mark.parametrize("name", ["plain", "three levels", "fused", "over a pinned axis", "square"])
def test_the_result_is_differentiable_in_what_is_permuted(name: str) -> None:
    """The gradient of <c, p(x)> is the inverse of p applied to c."""
    spec = BY_HAND[name]
    permutation, cotangents = spec.random(0), random_state(spec, 1)
    state = {tensor: value.requires_grad_() for tensor, value in random_state(spec).items()}
    sum((cotangents[tensor] * value).sum() for tensor, value in permutation.apply(state).items()).backward()
    check_equal({tensor: value.grad for tensor, value in state.items()}, permutation.inverse().apply(cotangents))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64, torch.int8, torch.bool]
)
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    spec = BY_HAND["fused"]
    state = {name: (10 * tensor).to(dtype) for name, tensor in random_state(spec).items()}
    permutation = spec.random(0)
    moved = permutation.apply(state)
    assert {tensor.dtype for tensor in moved.values()} == {dtype}
    check_equal(moved, {name: slowly(permutation, name, tensor) for name, tensor in state.items()})


def test_tensors_that_are_not_contiguous() -> None:
    spec = BY_HAND["heads"]
    state = random_state(spec)
    strided = {name: tensor.t().contiguous().t() for name, tensor in state.items()}
    check_equal(spec.random(0).apply(strided), spec.random(0).apply(state))


def test_meta_tensors_are_permuted_in_name_only() -> None:
    spec = BY_HAND["heads"]
    moved = spec.random(0).apply({name: torch.empty(shape, device="meta") for name, shape in spec.shapes.items()})
    assert {name: (tensor.device.type, tuple(tensor.shape)) for name, tensor in moved.items()} == {
        name: ("meta", shape) for name, shape in spec.shapes.items()
    }


def test_missing_tensors_and_wrong_shapes_are_named(traced: Trace) -> None:
    net = traced("mlp")
    state = dict(net.model.state_dict())
    with pytest.raises(SpecError, match=r"lacks 1 tensors.*2\.bias"):
        net.spec.random(0).apply({name: tensor for name, tensor in state.items() if name != "2.bias"})
    with pytest.raises(SpecError, match=r"2\.bias has shape \[11\].*\[10\] in the specification"):
        net.spec.random(0).apply({**state, "2.bias": torch.zeros(11)})
    with pytest.raises(SpecError, match="lacks"):
        net.spec.random(0).apply(nn.Linear(2, 2))


def test_the_group_has_as_many_elements_as_the_order_says() -> None:
    """All different, and closed under composition, so that it is the group itself."""
    spec = from_shapes({"w": ("(g=2 d=3)", (6,))}, {"d": ["g"]})
    every = list(elements(spec))
    state = random_state(spec)
    seen = {tuple(p.apply(state)["w"].tolist()) for p in every}
    assert len(seen) == len(every) == round(10**spec.log10_order) == 72
    for p, q in itertools.product(every[::7], every[::5]):
        assert tuple(p.compose(q).apply(state)["w"].tolist()) in seen

"""The dictionaries of the Git Re-Basin code: written, read, and equal to what discovery finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from conftest import Traced
from hypothesis import given
from networks import NETWORKS
from strategies import random_state, specs
from torch import nn

from autoperm import Permutation, PermutationSpec
from autoperm.errors import EquivalenceError, SpecError
from autoperm.signature import Name, Pinned

Trace = Callable[[str], Traced]
Axes = dict[str, tuple[str | None, ...]]

# --- the published specifications, in PyTorch's layout and with the names of the networks here --------------------


def dense(name: str, inputs: str | None, outputs: str | None) -> Axes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name: str, inputs: str | None, outputs: str | None) -> Axes:
    return {f"{name}.weight": (outputs, inputs, None, None)}


def norm(name: str, channels: str) -> Axes:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def basic_block(name: str, inputs: str, outputs: str) -> Axes:
    inner = f"P_{name}_inner"
    shortcut = {**conv(f"{name}.shortcut.0", inputs, outputs), **norm(f"{name}.shortcut.1", outputs)}
    return {
        **conv(f"{name}.body.0", inputs, inner), **norm(f"{name}.body.1", inner),
        **conv(f"{name}.body.3", inner, outputs), **norm(f"{name}.body.4", outputs),
        **(shortcut if inputs != outputs else {}),
    }  # fmt: skip


def published_mlp() -> Axes:
    return {
        **dense("1", None, "P_0"),
        **dense("3", "P_0", "P_1"),
        **dense("5", "P_1", "P_2"),
        **dense("7", "P_2", None),
    }


def published_vgg16() -> Axes:
    """Convolutions and dense layers in one chain; a pooling layer stands after 2, 2, 3, 3 and 3 convolutions."""
    convs = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    axes: Axes = {}
    before = None
    for i, place in enumerate(convs):
        axes |= {**conv(str(place), before, f"P_{i}"), f"{place}.bias": (f"P_{i}",)}
        before = f"P_{i}"
    return {**axes, **dense("32", "P_12", "P_13"), **dense("34", "P_13", "P_14"), **dense("36", "P_14", None)}


def published_resnet20() -> Axes:
    axes = {**conv("0", None, "P_bg0"), **norm("1", "P_bg0")}
    for i in range(9):
        group = f"P_bg{i // 3}"
        axes |= basic_block(str(i + 3), f"P_bg{(i - 1) // 3}" if i else group, group)
    return {**axes, **dense("13", "P_bg2", None)}


PUBLISHED = {"mlp3x512": (published_mlp, 3), "vgg16": (published_vgg16, 15), "resnet20": (published_resnet20, 12)}


def renamed(axes: Mapping[str, Sequence[str | None]]) -> dict[str, tuple[int | None, ...]]:
    """Number names in the order of the tensors' names, so that dictionaries can be compared."""
    numbers: dict[str, int] = {}
    return {
        tensor: tuple(None if name is None else numbers.setdefault(name, len(numbers)) for name in axes[tensor])
        for tensor in sorted(axes)
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_specifications_are_what_is_discovered(name: str, traced: Trace) -> None:
    publish, groups = PUBLISHED[name]
    net = traced(name)
    by_hand = PermutationSpec.from_axes_to_perm(publish(), net.model)
    assert len(by_hand.groups) == len(net.spec.groups) == groups
    assert by_hand.log10_order == pytest.approx(net.spec.log10_order, rel=1e-12)
    assert renamed(publish()) == renamed(net.spec.to_axes_to_perm())
    assert by_hand.verify(net.model, net.inputs, draws=1, tolerance=1e-9) < 1e-9


def test_a_wrong_dictionary_fits_the_shapes_and_is_caught_by_verification(traced: Trace) -> None:
    net = traced("residual_cnn")
    axes = {**net.spec.to_axes_to_perm(), "0.weight": ("other", None, None, None)}
    with pytest.raises(EquivalenceError, match=r"other on 0\.weight"):
        PermutationSpec.from_axes_to_perm(axes, net.model).verify(net.model, net.inputs)


# --- round trips --------------------------------------------------------------------------------------------------


def is_plain(spec: PermutationSpec) -> bool:
    whole = all(isinstance(term, (Name, Pinned)) for pattern in spec.patterns.values() for term in pattern)
    return whole and not any(factor.over for factor in spec.free)


def test_enough_networks_are_plain(traced: Trace) -> None:
    plain = {name for name in NETWORKS if is_plain(traced(name).spec)}
    assert {"mlp", "residual_cnn", "layernorm_mlp", "tied_embedding", "prelu"} <= plain
    assert not {"grouped_conv", "gpt", "lstm", "dense_concat", "groupnorm"} & plain


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_written_and_read(name: str, traced: Trace) -> None:
    net = traced(name)
    if is_plain(net.spec):
        axes = net.spec.to_axes_to_perm()
        assert axes == net.spec.to_axes_to_perm(lossy=True)
        again = PermutationSpec.from_axes_to_perm(axes, net.model)
        assert {f.name: f.size for f in again.free} == {f.name: f.size for f in net.spec.free}
        assert again.to_axes_to_perm() == axes
        assert dict(again.tied) == dict(net.spec.tied)
        for factor in again.free:
            assert sorted(again.carriers[factor.name]) == sorted(net.spec.carriers[factor.name])
    else:
        axes = net.spec.to_axes_to_perm(lossy=True)
        again = PermutationSpec.from_axes_to_perm(axes, net.model)
        assert again.verify(net.model, net.inputs, tolerance=1e-9) < 1e-9
        with pytest.raises(SpecError, match="axes_to_perm cannot say"):
            net.spec.to_axes_to_perm()


@given(specs())
def test_what_is_written_is_a_subgroup(spec: PermutationSpec) -> None:
    """Each element of it is the element of the whole group that has the same indices at all positions."""
    state = random_state(spec)
    part = PermutationSpec.from_axes_to_perm(spec.to_axes_to_perm(lossy=True), state)
    assert {factor.name for factor in part.free} <= {factor.name for factor in spec.free}
    for seed in range(3):
        p = part.random(seed)
        shapes = {name: [spec.factors[outer].size for outer in spec.factors[name].over] for name in p.indices}
        whole = Permutation(spec, {name: index.expand(*shapes[name], -1) for name, index in p.indices.items()})
        torch.testing.assert_close(p.apply(state), whole.apply(state), rtol=0, atol=0)


@given(specs())
def test_nothing_is_lost_without_a_word(spec: PermutationSpec) -> None:
    state = random_state(spec)
    try:
        axes = spec.to_axes_to_perm()
    except SpecError:
        assert not is_plain(spec)
    else:
        assert PermutationSpec.from_axes_to_perm(axes, state).log10_order == pytest.approx(spec.log10_order)


def test_a_factor_is_left_out_everywhere_or_nowhere() -> None:
    """The heads stand alone on one axis, but beside their channels on another."""
    like = {"scale": torch.empty(4), "weight": torch.empty(12, 5)}
    spec = PermutationSpec.from_patterns({"scale": "h", "weight": "(h d) c"}, like)
    with pytest.raises(SpecError, match=r"weight, axis 0, is \(h d\): more than one name.*to_json.*lossy=True"):
        spec.to_axes_to_perm()
    assert spec.to_axes_to_perm(lossy=True) == {"scale": (None,), "weight": (None, "c")}


def test_what_varies_is_permuted_alike() -> None:
    experts = PermutationSpec.from_patterns({"w": "e h _"}, {"w": torch.empty(3, 4, 2)}, over={"h": ["e"]})
    with pytest.raises(SpecError, match="w, axis 1, is permuted differently for each e, which axes_to_perm cannot say"):
        experts.to_axes_to_perm()
    assert experts.to_axes_to_perm(lossy=True) == {"w": ("e", "h", None)}


# --- faults -------------------------------------------------------------------------------------------------------

LIKE = {"a.weight": torch.empty(5, 3), "a.bias": torch.empty(5), "b.weight": torch.empty(2, 5)}


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"c.weight": ("P", None)}, r"no tensor is called 'c.weight'; there are a.weight, a.bias, b.weight"),
        ({"a.weight": ("P",)}, r'a.weight: "P" has 1 axes, the tensor has shape \[5, 3\]'),
        ({"a.bias": "P_0"}, r"a.bias: 'P_0' is no tuple; write .*: \('P_0',\)"),
        ({"a.bias": None}, r"a.bias: None is no tuple"),
        ({"a.bias": (0,)}, r"a.bias: 0 is neither a name nor None"),
        ({"a.bias": ("P/0",)}, r"a.bias: 'P/0' cannot be the name of a factor"),
        ({"a.bias": ("(P q)",)}, r"a.bias: '\(P q\)' cannot be"),
        ({"a.bias": ("_",)}, r"a.bias: '_' cannot be"),
        ({"a.bias": ("P=5",)}, r"a.bias: 'P=5' cannot be"),
        ({"a.bias": ("P q",)}, r"a.bias: 'P q' cannot be"),
        ({"a.bias": ("",)}, r"a.bias: '' cannot be"),
        (
            {"a.weight": (None, "P"), "a.bias": ("P",)},
            r"'P' stands on axes of different lengths: a.weight, axis 1, of shape \[5, 3\], and a.bias, axis 0, of "
            r"shape \[5\]. PyTorch's weights are \(out, in, ...\)",
        ),
    ],
)
def test_faults_are_named(axes: Mapping[str, tuple[str | None, ...]], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        PermutationSpec.from_axes_to_perm(axes, LIKE)


def test_tensors_that_are_left_out_are_pinned() -> None:
    spec = PermutationSpec.from_axes_to_perm({"a.weight": ("P", None)}, LIKE)
    moved = spec.random(0).apply({name: torch.rand_like(tensor) for name, tensor in LIKE.items()})
    assert set(moved) == set(LIKE)
    assert list(spec.patterns) == ["a.weight"]


def test_tensors_are_in_the_order_of_the_model() -> None:
    spec = PermutationSpec.from_axes_to_perm({"b.weight": (None, "P"), "a.bias": ("P",), "a.weight": ("P", None)}, LIKE)
    assert list(spec.patterns) == list(spec.shapes) == list(LIKE)


# --- two names of one tensor --------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("given_name", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_names_of_a_tensor_have_its_pattern(given_name: str, device: str) -> None:
    with torch.device(device):
        model = Tied()
    spec = PermutationSpec.from_axes_to_perm({given_name: (None, "c")}, model)
    assert spec.patterns["embed.weight"] == spec.patterns["head.weight"] == (Pinned(), Name("c"))
    assert dict(spec.tied) == {"head.weight": "embed.weight"}
    assert spec == PermutationSpec.from_patterns({given_name: "_ c"}, model)


def test_other_names_are_found_in_a_state_dict() -> None:
    spec = PermutationSpec.from_patterns({"embed.weight": "_ c"}, Tied().state_dict())
    assert dict(spec.tied) == {"head.weight": "embed.weight"}


def test_two_patterns_for_one_tensor_are_refused() -> None:
    with pytest.raises(SpecError, match=r'embed.weight and head.weight are two names of one tensor.*"_ c" and "_ d"'):
        PermutationSpec.from_axes_to_perm({"embed.weight": (None, "c"), "head.weight": (None, "d")}, Tied())

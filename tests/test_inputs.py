"""Inputs that are found for a model when none are given."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import NETWORKS
from torch import Tensor, nn

from autoperm import discover
from autoperm.errors import TraceError
from autoperm.inputs import find_inputs, resolve_inputs


class Last(nn.Module):
    """The output of a recurrent layer, or the mean of its features over time."""

    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0].mean(1)


class Two(nn.Module):
    """Two inputs that are needed and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0, *, flag: bool = False) -> Tensor:
        return self.a(x) + scale * self.b(y)


class Tokens(nn.Module):
    """Positions are learnt for 8 tokens, fewer than what is tried first."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(11, 6), nn.Parameter(torch.zeros(8, 6)), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tokens(ids) + self.positions[: ids.shape[1]])


class NamedByFlatten(nn.Module):
    """An image that only its number of pixels tells: the first layer with weights sees it flat."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        return self.net(x) * (channels + height + width)


class Bare(nn.Module):
    """A parameter without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


# model, first input's shape, what discovery must be able to do with it
FOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (2, 6)),
    "linear of images": (NamedByFlatten, (2, 3, 8, 8)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 5), nn.ReLU(), nn.Conv1d(4, 2, 3)), (2, 3, 16)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 3)), (2, 3, 64, 64)),
    "conv2d of one size": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 3)),
        (2, 1, 28, 28),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 3)), (2, 3, 16, 16, 16)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 2)), (2, 16)),
    "short embedding": (Tokens, (2, 8)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(6, 8, batch_first=True), Last(), nn.Linear(8, 2)), (2, 5, 6)),
    "gru": (lambda: nn.Sequential(nn.GRU(6, 8, batch_first=True), Last(), nn.Linear(8, 2)), (2, 5, 6)),
    "two inputs": (Two, (2, 6)),
    "bfloat16": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16(), (2, 6)),
    "bare parameter": (Bare, (2, 3)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), (2, 6)),
}


@pytest.mark.parametrize("name", FOUND)
def test_inputs_are_found_and_the_model_runs_on_them(name: str) -> None:
    build, shape = FOUND[name]
    model = build().eval()
    args, kwargs = find_inputs(model)
    assert tuple(args[0].shape) == shape
    assert kwargs == {}
    if args[0].is_floating_point():
        assert args[0].dtype == next(model.parameters()).dtype
        assert args[0].std() > 0, "equal values would not tell units apart"
    else:
        assert 0 <= args[0].min() < args[0].max() < 11
    model(*args)


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "tied_embedding", "lstm", "transformer_pre"])
def test_discovery_without_inputs_finds_the_same(name: str) -> None:
    network = NETWORKS[name]
    assert discover(network.build()) == discover(network.build(), network.inputs())


def test_every_needed_input_gets_values_of_its_own() -> None:
    args, _ = find_inputs(Two())
    assert len(args) == 2
    assert not torch.equal(args[0], args[1])


def test_found_inputs_are_the_same_in_every_run() -> None:
    before = torch.get_rng_state()
    first, again = (find_inputs(FOUND["two inputs"][0]())[0] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    find_inputs(Tokens())
    del before  # building the models draws numbers; looking for inputs is what must not
    model = Two()
    state = torch.get_rng_state()
    find_inputs(model)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)


# --- what the model says of itself --------------------------------------------------------------------------------


class Picky(nn.Module):
    """Runs on rows of 6 of which there are 3."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(3, 6))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("dummy_inputs", {"x": torch.ones(3, 6)}),
        ("dummy_inputs", torch.ones(3, 6)),
        ("dummy_inputs", (torch.ones(3, 6),)),
        ("example_input_array", torch.ones(3, 6)),
    ],
)
def test_a_model_may_bring_its_inputs(attribute: str, value: object) -> None:
    model = Picky()
    setattr(model, attribute, value)
    args, kwargs = find_inputs(model)
    torch.testing.assert_close([*args, *kwargs.values()], [torch.ones(3, 6)], rtol=0, atol=0)
    assert discover(model).unknown == ()


@pytest.mark.parametrize("attribute", ["default_cfg", "pretrained_cfg"])
@pytest.mark.parametrize("wrap", [dict, SimpleNamespace])
def test_a_configuration_may_have_the_size_of_images(attribute: str, wrap: Callable[..., object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 38 * 18, 2))
    setattr(model, attribute, wrap(input_size=(3, 40, 20)))
    (x,), _ = find_inputs(model)
    assert x.shape == (2, 3, 40, 20)


def test_what_a_model_says_is_tried_before_guesses_and_not_trusted() -> None:
    model = nn.Linear(6, 2)
    model.dummy_inputs = torch.zeros(4, 6)
    assert find_inputs(model)[0][0].shape == (4, 6)
    model.dummy_inputs = torch.zeros(4, 7)
    assert find_inputs(model)[0][0].shape == (2, 6)


def test_a_property_that_raises_is_no_answer() -> None:
    class Broken(nn.Linear):
        @property
        def dummy_inputs(self) -> Tensor:
            raise NotImplementedError

    assert find_inputs(Broken(6, 2))[0][0].shape == (2, 6)


# --- what is given ------------------------------------------------------------------------------------------------


def test_given_inputs_are_taken_as_they_are() -> None:
    x, y = torch.zeros(1, 6), torch.ones(1, 6)
    assert resolve_inputs(Two(), x) == ((x,), {})
    for given in [(x, y), [x, y]]:
        args, kwargs = resolve_inputs(Two(), given)
        assert args[0] is x
        assert args[1] is y
        assert kwargs == {}
    assert resolve_inputs(Two(), {"x": x, "y": y}) == ((), {"x": x, "y": y})


# --- nothing is found ---------------------------------------------------------------------------------------------


def test_the_error_lists_what_was_tried_and_what_to_pass() -> None:
    with pytest.raises(TraceError) as caught:
        discover(Picky())
    message = str(caught.value)
    assert "no example inputs were found that Picky runs on" in message
    assert "float32[2, 6]: RuntimeError" in message
    assert "float32[2, 5, 6]" in message
    assert "forward takes: example_inputs=(x,) or example_inputs={'x': x}" in message


def test_a_model_with_nothing_to_go_by() -> None:
    with pytest.raises(TraceError, match="no layer whose inputs can be guessed"):
        find_inputs(nn.ReLU())


def test_looking_for_inputs_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_inputs(model)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)

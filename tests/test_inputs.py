"""Inputs that are found for a model when none are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


# --- several inputs, and inputs that the first layer does not see as they are ---------------------------------------


def build(forward: Callable[..., object], **layers: nn.Module) -> nn.Module:
    """A module of some layers with a forward of its own."""
    model = type(forward.__name__, (nn.Module,), {"forward": forward})()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.eval()


def towers(self: Any, user: Tensor, item: Tensor) -> Tensor:
    return (self.users(user) * self.items(item)).sum(-1)


def question(self: Any, image: Tensor, words: Tensor) -> Tensor:
    return self.head(torch.cat([self.see(image).mean((2, 3)), self.read(words).mean(1)], 1))


def critic(self: Any, state: Tensor, action: Tensor) -> Tensor:
    return self.value(self.hidden(torch.cat([state, action], 1)).relu())


def denoiser(self: Any, x: Tensor, t: Tensor) -> Tensor:
    return self.out(self.hidden(torch.cat([x, t], -1)).relu())


def translator(self: Any, source: Tensor, target: Tensor) -> Tensor:
    _, state = self.encode(self.sources(source))
    return self.head(self.decode(self.targets(target), state)[0])


def wave(self: Any, x: Tensor) -> Tensor:
    return self.head(self.conv(x.unsqueeze(1)).relu().mean(-1))


def film(self: Any, x: Tensor) -> Tensor:
    frames = self.see(x.flatten(0, 1)).mean((2, 3))
    return self.time(frames.view(*x.shape[:2], -1))[0]


def mixer(self: Any, x: Tensor) -> Tensor:
    return self.channels(self.patches(x.transpose(1, 2)).transpose(1, 2))


def graph(self: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    h = self.a(x)
    return self.b(torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]]).relu())


def conditional(self: Any, x: Tensor, condition: Tensor | None = None) -> Tensor:
    h = self.a(x) if condition is None else self.a(x) + self.c(condition)
    return self.b(h.relu())


def by_keyword(self: Any, *, x: Tensor, y: Tensor) -> Tensor:
    return self.a(x) + self.b(y)


def any_number(self: Any, *inputs: Tensor) -> Tensor:
    return self.a(inputs[0])


SHAPES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "indices and features": (lambda: build(towers, users=nn.Embedding(9, 4), items=nn.Linear(7, 4)), [(2,), (2, 7)]),
    "image and text": (
        lambda: build(question, see=nn.Conv2d(3, 6, 3), read=nn.Embedding(11, 5), head=nn.Linear(11, 3)),
        [(2, 3, 64, 64), (2, 16)],
    ),
    "joined": (lambda: build(critic, hidden=nn.Linear(23, 8), value=nn.Linear(8, 1)), [(2, 11), (2, 12)]),
    "joined with time": (lambda: build(denoiser, hidden=nn.Linear(3, 8), out=nn.Linear(8, 2)), [(2, 1), (2, 2)]),
    "two vocabularies": (
        lambda: build(
            translator,
            sources=nn.Embedding(9, 4),
            encode=nn.GRU(4, 6, batch_first=True),
            targets=nn.Embedding(5, 4),
            decode=nn.GRU(4, 6, batch_first=True),
            head=nn.Linear(6, 5),
        ),
        [(2, 16), (2, 16)],
    ),
    "axis added": (lambda: build(wave, conv=nn.Conv1d(1, 8, 10, 5), head=nn.Linear(8, 2)), [(2, 16)]),
    "axes merged": (
        lambda: build(film, see=nn.Conv2d(3, 6, 3), time=nn.LSTM(6, 8, batch_first=True)),
        [(2, 4, 3, 64, 64)],
    ),
    "axes swapped": (lambda: build(mixer, patches=nn.Linear(16, 16), channels=nn.Linear(10, 10)), [(2, 16, 10)]),
    "graph": (lambda: build(graph, a=nn.Linear(5, 8), b=nn.Linear(8, 3)), [(2, 5), (2, 8)]),
    "optional": (
        lambda: build(conditional, a=nn.Linear(6, 8), c=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        [(2, 6), (2, 5)],
    ),
    "by keyword": (lambda: build(by_keyword, a=nn.Linear(6, 8), b=nn.Linear(5, 8)), [(2, 6), (2, 5)]),
    "any number": (lambda: build(any_number, a=nn.Linear(6, 8)), [(2, 6)]),
    "codes": (lambda: nn.Sequential(nn.ConvTranspose2d(10, 6, 4), nn.Conv2d(6, 3, 3)), [(2, 10, 1, 1)]),
    "normed": (lambda: nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 3)), [(2, 7)]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_input_is_as_its_layer_takes_it(name: str) -> None:
    make, shapes = SHAPES[name]
    model = make()
    args, kwargs = find_inputs(model)
    assert [tuple(value.shape) for value in [*args, *kwargs.values()]] == shapes
    model(*args, **kwargs)


@given(side=st.integers(20, 120), kernel=st.integers(1, 7), stride=st.integers(1, 3), axes=st.integers(1, 2))
def test_an_image_of_any_size_is_found_from_the_layer_behind_it(side: int, kernel: int, stride: int, axes: int) -> None:
    conv = [nn.Conv1d, nn.Conv2d][axes - 1](2, 1, kernel, stride)
    positions = conv(torch.zeros(1, 2, *[side] * axes)).numel()
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(positions, 3))
    (x,), _ = find_inputs(model)
    assert model(x).shape == (2, 3)


def test_one_example_where_two_do_not_run() -> None:
    def single(self: Any, x: Tensor) -> Tensor:
        return self.a(x.view(6))

    (x,), _ = find_inputs(build(single, a=nn.Linear(6, 3)))
    assert x.shape == (1, 6)


def test_indices_lie_in_every_table_they_are_looked_up_in() -> None:
    """Fake tensors have no values, so a run under them does not see an index that is too large."""

    def both(self: Any, ids: Tensor) -> Tensor:
        return self.many(ids) + self.few(ids)

    model = build(both, many=nn.Embedding(1000, 4), few=nn.Embedding(3, 4))
    (ids,), _ = find_inputs(model)
    assert ids.max() < 3
    model(ids)


def test_what_depends_on_values_runs() -> None:
    def routed(self: Any, x: Tensor) -> Tensor:
        out, choice = torch.zeros_like(x), self.router(x).argmax(-1)
        for index, expert in enumerate(self.experts):
            rows = (choice == index).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return out

    experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    (x,), _ = find_inputs(build(routed, router=nn.Linear(6, 3), experts=experts))
    assert x.shape == (2, 6)


def test_a_model_that_takes_no_fake_tensors_runs_for_real() -> None:
    def foreign(self: Any, x: Tensor) -> Tensor:
        return self.a(torch.from_numpy(x.numpy() * 2))

    (x,), _ = find_inputs(build(foreign, a=nn.Linear(6, 3)))
    assert x.shape == (2, 6)


def test_a_model_without_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(50_000, 512), nn.Linear(512, 1 << 20), nn.Linear(1 << 20, 1 << 20))
    (ids,), _ = find_inputs(model)
    assert ids.device.type == "meta"
    assert ids.shape == (2, 16)


# --- customs: names of inputs, and configurations -------------------------------------------------------------------


def space(**values: object) -> SimpleNamespace:
    return SimpleNamespace(**values)


class Language(nn.Module):
    """In the customs of a library of language models: all inputs are optional, and forward says what it misses."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.config = space(vocab_size=23, pad_token_id=0, bos_token_id=1, eos_token_id=[2, 5], use_cache=True)
        self.words, self.types, self.head = nn.Embedding(23, 6), nn.Embedding(2, 6), nn.Linear(6, 23)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(3, 5, dtype=torch.int64)}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> dict[str, Any]:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        h = self.words(input_ids)
        if token_type_ids is not None:
            h = h + self.types(token_type_ids)
        return {"logits": self.head(h), "past": h if use_cache is None else None}


class Pair(Language):
    """An encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        del self.types

    def forward(
        self, input_ids: Tensor | None = None, decoder_input_ids: Tensor | None = None, use_cache: bool | None = None
    ) -> Tensor:
        if decoder_input_ids is None:
            raise ValueError("You have to specify either decoder_input_ids or decoder_inputs_embeds")
        return self.head(self.words(decoder_input_ids) + self.words(input_ids).mean(1, keepdim=True))


class Seeing(nn.Module):
    """Text and images, both optional, each with a configuration of its own."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.config = space(
            text_config=space(vocab_size=23), vision_config=space(image_size=24, patch_size=8, num_channels=1)
        )
        self.words, self.patches = nn.Embedding(23, 6), nn.Conv2d(1, 6, 8, 8)
        self.places = nn.Parameter(torch.zeros(9, 6))

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> list[Tensor]:
        outputs = []
        if input_ids is not None:
            outputs.append(self.words(input_ids))
        if pixel_values is not None:
            outputs.append(self.patches(pixel_values).flatten(2).mT + self.places)
        return outputs


class Player(nn.Module):
    """All inputs are optional, all are needed, and it does not say so."""

    main_input_name = "states"

    def __init__(self) -> None:
        super().__init__()
        self.config = space(state_dim=5, act_dim=3)
        self.states, self.actions, self.rewards = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(1, 6)

    def forward(
        self, states: Tensor | None = None, actions: Tensor | None = None, rewards: Tensor | None = None
    ) -> Tensor:
        return self.states(states) + self.actions(actions) + self.rewards(rewards)


class Denoiser(nn.Module):
    """In the customs of a library of diffusion models: the configuration is a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"sample_size": 12, "in_channels": 4, "cross_attention_dim": 7}
        self.conv, self.time, self.text = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(1, 8), nn.Linear(7, 8)
        self.out, self.size = nn.Conv2d(8, 4, 3, padding=1), nn.Parameter(torch.zeros(12, 12))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Tensor:
        h = self.conv(sample) + self.time(timestep[:, None].to(sample.dtype))[..., None, None] + self.size
        return self.out(h + scale * self.text(encoder_hidden_states).mean(1)[..., None, None])


def reader(config: object, name: str, layer: nn.Module, adapt: Callable[[Tensor], Tensor]) -> nn.Module:
    """One optional input of a customary name, and one layer."""
    scope: dict[str, Any] = {}
    source = f"def forward(self, {name}=None, labels=None):\n    return self.layer(self.adapt({name}))"
    exec(source, {}, scope)
    model = build(scope["forward"], layer=layer)
    model.main_input_name, model.config, model.adapt = name, config, adapt
    return model


def same(x: Tensor) -> Tensor:
    return x


def check(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    def adapt(x: Tensor) -> Tensor:
        if x.shape[1:] != shape:
            raise ValueError(f"expected {shape}, got {tuple(x.shape[1:])}")
        return x

    return adapt


CUSTOMARY: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = {
    "text": (Language, {"input_ids": (2, 16), "token_type_ids": (2, 16)}),
    "encoder and decoder": (Pair, {"input_ids": (2, 16), "decoder_input_ids": (2, 16)}),
    "text and images": (Seeing, {"input_ids": (2, 16), "pixel_values": (2, 1, 24, 24)}),
    "all or nothing": (Player, {"states": (2, 16, 5), "actions": (2, 16, 3), "rewards": (2, 16, 1)}),
    "choice": (
        lambda: reader(
            space(vocab_size=9), "input_ids", nn.Embedding(9, 4), lambda x: x.view(-1, *check((2, 16))(x).shape[2:])
        ),
        {"input_ids": (2, 2, 16)},
    ),
    "diffusion": (
        Denoiser,
        {"sample": (2, 4, 12, 12), "timestep": (2,), "encoder_hidden_states": (2, 8, 7)},
    ),
    "image of a size": (
        lambda: reader(space(image_size=[20, 12]), "pixel_values", nn.Conv2d(3, 4, 3), check((3, 20, 12))),
        {"pixel_values": (2, 3, 20, 12)},
    ),
    "size by name": (
        lambda: reader({"image_size": {"height": 20, "width": 12}}, "pixel_values", nn.Conv2d(3, 4, 3), same),
        {"pixel_values": (2, 3, 20, 12)},
    ),
    "video": (
        lambda: reader(space(num_frames=3, image_size=10), "pixel_values", nn.Linear(10, 4), check((3, 3, 10, 10))),
        {"pixel_values": (2, 3, 3, 10, 10)},
    ),
    "sound": (
        lambda: reader(space(conv_stride=[5, 4]), "input_values", nn.Conv1d(1, 4, 10, 5), lambda x: x[:, None]),
        {"input_values": (2, 320)},
    ),
    "spectrogram": (
        lambda: reader(
            space(num_mel_bins=10, max_source_positions=9), "input_features", nn.Conv1d(10, 4, 3), check((10, 18))
        ),
        {"input_features": (2, 10, 18)},
    ),
    "series": (
        lambda: reader(space(context_length=9, num_input_channels=3), "past_values", nn.Linear(3, 4), check((9, 3))),
        {"past_values": (2, 9, 3)},
    ),
}


@pytest.mark.parametrize("name", CUSTOMARY)
def test_names_and_configurations_say_what_the_inputs_are(name: str) -> None:
    make, shapes = CUSTOMARY[name]
    model = make().eval()
    args, kwargs = find_inputs(model)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    assert {name: tuple(value.shape) for name, value in bound.items() if isinstance(value, Tensor)} == shapes
    model(*args, **kwargs)
    assert "never uses" not in str(discover(model).reasons)


def test_tokens_are_words_and_end_as_a_text_does() -> None:
    _, kwargs = find_inputs(Language())
    ids = kwargs["input_ids"]
    assert set(ids[:, :-1].flatten().tolist()) <= set(range(23)) - {0, 1, 2, 5}
    assert (ids[:, -1] == 2).all()
    assert kwargs["use_cache"] is False


def test_a_refused_input_is_left_out() -> None:
    def strict(self: Any, input_ids: Tensor, **options: object) -> Tensor:
        if options:
            raise TypeError(f"forward() got an unexpected keyword argument '{next(iter(options))}'")
        return self.words(input_ids)

    model = build(strict, words=nn.Embedding(9, 4))
    model.config = space(vocab_size=9, use_cache=True)
    assert find_inputs(model)[1] == {}


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
    for pair in [(x, y), [x, y]]:
        args, kwargs = resolve_inputs(Two(), pair)
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

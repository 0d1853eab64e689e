"""Customary names of inputs, and what is customarily passed under them.

Each maker looks at the configuration and returns sketches, likelier first; none if it cannot say. Sizes that nothing
fixes come from a *scale*, so that all inputs of a candidate grow together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .facts import Facts
from .layers import BATCH, LENGTHS, SIDES
from .sketch import Sketch


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes to try where nothing fixes them."""

    length: int
    side: int

    @property
    def samples(self) -> int:
        """The length of a sound."""
        return 250 * self.length


SCALES = [Scale(length, side) for length, side in zip(LENGTHS[:8], SIDES[:8], strict=True)]

Maker = Callable[[Facts, Scale], list[Sketch]]


def _tokens(inside: str = "", *names: str) -> Maker:
    def make(facts: Facts, scale: Scale) -> list[Sketch]:
        high = facts.number(*names, "vocab_size", inside=inside) or _embedded(facts.model)
        if not high:
            return []
        special = facts.special_tokens
        end = facts.get("eos_token_id", inside=inside)
        end = end[0] if isinstance(end, (list, tuple)) and end else end
        last = end if isinstance(end, int) and 0 <= end < high else -1
        avoid = frozenset(i for i in special if i < high)
        shapes = [(BATCH, scale.length), (BATCH, 2, scale.length)]  # the second for a choice between texts
        return [Sketch(shape, "indices", high, avoid, last) for shape in shapes]

    return make


def _embedded(model: nn.Module) -> int:
    """How many tokens the model's own input layer knows, or else the first table that it has."""
    try:
        layer = model.get_input_embeddings()  # type: ignore[operator]
    except Exception:  # few models have it, and of those some only raise
        layer = None
    if not isinstance(layer, nn.Embedding):
        layer = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    return layer.num_embeddings if layer is not None else 0


def _ones(facts: Facts, scale: Scale) -> list[Sketch]:
    return [Sketch((BATCH, scale.length), "ones")]


def _indices(high: int, *names: str) -> Maker:
    def make(facts: Facts, scale: Scale) -> list[Sketch]:
        return [Sketch((BATCH, scale.length), "indices", facts.number(*names, default=high))]

    return make


def _pixels(facts: Facts, scale: Scale) -> list[Sketch]:
    channels = facts.number("num_channels", "in_channels", "in_chans", "num_input_channels", inside="vision", default=3)
    sizes = []
    declared = facts.pair("image_size", "img_size", "input_size", inside="vision")
    if declared is not None:
        sizes.append(declared)
    sizes.append((scale.side, scale.side))
    images = [(channels, *size) for size in sizes]
    frames = facts.number("num_frames", "frames", inside="vision")
    shapes: list[tuple[int, ...]] = [(BATCH, *image) for image in images]
    if frames:
        shapes = [(BATCH, frames, *image) for image in images] + shapes
    return [Sketch(shape) for shape in shapes]


def _pixel_mask(facts: Facts, scale: Scale) -> list[Sketch]:
    return [Sketch((sketch.shape[0], *sketch.shape[-2:]), "ones") for sketch in _pixels(facts, scale)]


def _sound(facts: Facts, scale: Scale) -> list[Sketch]:
    """A wave, or for a model that has the number of its frequencies a spectrogram."""
    bands, frames = facts.number("num_mel_bins"), facts.number("max_length")
    sketches = [Sketch((BATCH, frames, bands))] if bands and frames else []
    strides = facts.get("conv_stride", "upsampling_ratios", "downsampling_ratios")
    hop = math.prod(strides) if isinstance(strides, (list, tuple)) and strides else 0
    samples = hop * scale.length if hop else scale.samples
    channels = facts.number("audio_channels", default=1)
    return [*sketches, Sketch((BATCH, samples)), Sketch((BATCH, channels, samples))]


def _spectrogram(facts: Facts, scale: Scale) -> list[Sketch]:
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size", "input_dim")
    bands = facts.number(*names, inside="audio", default=80)
    frames = 4 * scale.length
    sketches = [Sketch((BATCH, frames, bands)), Sketch((BATCH, 1, frames, bands)), Sketch((BATCH, bands, frames))]
    positions = facts.number("max_source_positions", inside="audio")
    if positions:  # two positions of the spectrogram for each of the encoder, whose convolution has a stride of 2
        sketches.append(Sketch((BATCH, bands, 2 * positions)))
    return sketches


def _latents(facts: Facts, scale: Scale) -> list[Sketch]:
    """What a diffusion model removes noise from."""
    channels = facts.number("in_channels", "num_channels")
    if not channels:
        return []
    height, width = facts.pair("sample_size", "image_size") or (scale.side, scale.side)
    frames = facts.number("sample_frames", "num_frames", "sample_num_frames", default=4)
    return [
        Sketch((BATCH, channels, height, width)),
        Sketch((BATCH, scale.length, channels)),
        Sketch((BATCH, channels, scale.length)),
        Sketch((BATCH, channels, frames, height, width)),
        Sketch((BATCH, frames, channels, height, width)),
    ]


def _moment(facts: Facts, scale: Scale) -> list[Sketch]:
    return [Sketch((BATCH,), "indices", 1000), Sketch((BATCH, 1), "uniform")]


def _states(*names: str, length: int = 8) -> Maker:
    def make(facts: Facts, scale: Scale) -> list[Sketch]:
        size = facts.number(*names)
        return [Sketch((BATCH, length, size))] if size else []

    return make


def _vector(*names: str) -> Maker:
    def make(facts: Facts, scale: Scale) -> list[Sketch]:
        size = facts.number(*names)
        return [Sketch((BATCH, size))] if size else []

    return make


def _series(*, kind: str, future: bool = False) -> Maker:
    """A time series: its values, what is known of each moment, which values were seen."""

    def make(facts: Facts, scale: Scale) -> list[Sketch]:
        length = facts.number("context_length", default=scale.length)
        lags = facts.get("lags_sequence")
        if isinstance(lags, (list, tuple)) and lags:
            length += max(lags)
        if future:
            length = facts.number("prediction_length", default=1)
        if kind == "features":
            return [Sketch((BATCH, length, facts.number("num_time_features", "num_dynamic_real_features", default=1)))]
        channels = facts.number("num_input_channels", "input_size", default=1)
        shapes = [(BATCH, length, channels)] if channels > 1 else [(BATCH, length), (BATCH, length, 1)]
        if facts.get("num_input_channels") is not None:
            shapes = [(BATCH, length, channels)]
        return [Sketch(shape, "ones" if kind == "mask" else "normal") for shape in shapes]

    return make


def _episode(size: int, *names: str) -> Maker:
    return lambda facts, scale: [Sketch((BATCH, scale.length, facts.number(*names, default=size)))]


def _boxes(facts: Facts, scale: Scale) -> list[Sketch]:
    high = facts.number("max_2d_position_embeddings", default=1000)
    return [Sketch((BATCH, scale.length, 4), "boxes", high)]


def _inputs(facts: Facts, scale: Scale) -> list[Sketch]:
    """Text where the model has a vocabulary, else an array of features."""
    return [*_tokens()(facts, scale), *_states("d_model", "input_size")(facts, scale)]


CUSTOMS: dict[str, Maker] = {
    # text
    "input_ids": _tokens("text", "src_vocab_size"),
    "decoder_input_ids": _tokens("decoder", "tgt_vocab_size"),
    "inputs": _inputs,
    "attention_mask": _ones,
    "decoder_attention_mask": _ones,
    "token_type_ids": _indices(2, "type_vocab_size"),
    "position_ids": lambda facts, scale: [Sketch((BATCH, scale.length), "range")],
    "bbox": _boxes,
    # images and films
    "pixel_values": _pixels,
    "pixel_values_videos": _pixels,
    "pixel_mask": _pixel_mask,
    "visual_feats": _states("visual_feat_dim"),
    "visual_pos": _states("visual_pos_dim"),
    "visual_embeds": _states("visual_embedding_dim"),
    # sound
    "input_values": _sound,
    "input_features": _spectrogram,
    # diffusion
    "sample": _latents,
    "hidden_states": _latents,
    "timestep": _moment,
    "t": _moment,
    "time": _moment,
    "timesteps": lambda facts, scale: [Sketch((BATCH, scale.length), "range"), *_moment(facts, scale)],
    "encoder_hidden_states": _states(
        "cross_attention_dim", "encoder_hid_dim", "joint_attention_dim", "caption_channels", "text_embed_dim"
    ),
    "pooled_projections": _vector("pooled_projection_dim"),
    "class_labels": lambda facts, scale: [
        Sketch((BATCH,), "indices", facts.number("num_class_embeds", "num_embeds_ada_norm", default=2))
    ],
    "guidance": lambda facts, scale: [Sketch((BATCH,), "uniform")],
    # time series
    "past_values": _series(kind="values"),
    "past_time_features": _series(kind="features"),
    "past_observed_mask": _series(kind="mask"),
    "future_values": _series(kind="values", future=True),
    "future_time_features": _series(kind="features", future=True),
    # graphs
    "edge_index": lambda facts, scale: [Sketch((2, 4 * BATCH), "indices", BATCH)],
    # decisions
    "states": _episode(1, "state_dim"),
    "actions": _episode(1, "act_dim"),
    "rewards": _episode(1),
    "returns_to_go": _episode(1),
}
"""How to make an input of each customary name."""

MAIN = (
    "input_ids", "pixel_values", "input_values", "input_features", "decoder_input_ids", "inputs", "sample",
    "encoder_hidden_states", "past_values", "pixel_values_videos", "bbox",
)  # fmt: skip
"""Inputs that a model may need even if its ``forward`` does without them, in the order in which to add them."""

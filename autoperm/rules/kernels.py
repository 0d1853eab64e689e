"""Rows of the kernels that composite operations are made of: what a recorder below the exporter's level sees.

They say what the composite operation's row says, with the kernel's own arguments and its further results (the mean and
the scale of a normalisation, the log-sum of an attention), so each is written as that row, extended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..graph import Value
from .contract import CONTRACTIONS, attention, conv, convolution
from .reduce import cumulate, group_norm, layer_norm, weight_norm
from .text import Row, letters, optional, put


def _native_layer_norm(
    input: Value, normalized_shape: Sequence[int], weight: Value | None = None, bias: Value | None = None, *_: object
) -> str:
    ones = " 1" * len(normalized_shape)
    return f"{layer_norm(input, normalized_shape, weight, bias)}, ...{ones}, ...{ones}"


def _fused_rms_norm(input: Value, normalized_shape: Sequence[int], weight: Value | None = None, *_: object) -> str:
    return f"{layer_norm(input, normalized_shape, weight)}, ...{' 1' * len(normalized_shape)}"


def _native_group_norm(
    input: Value,
    weight: Value | None,
    bias: Value | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    *_: object,
) -> str:
    return f"{group_norm(input, groups, weight, bias)}, b g, b g"


def _native_batch_norm(
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    *_: object,
) -> str:
    """The statistics of a batch are results too; where kept ones are used, those results are empty."""
    operands = (("c", weight), ("c", bias), ("c", running_mean), ("c", running_var))
    results = "-> c -> b c ..., c, c" if training else "-> b c ..."
    return optional(f"b c ...{{}} {results}", *operands)


def _batch_norm_legit(input: Value, weight: Value | None, bias: Value | None, *rest: object) -> str:
    """One overload has kept statistics, the other has none."""
    mean, var, training, *_ = rest if isinstance(rest[0], Value) else (None, None, *rest)
    return _native_batch_norm(input, weight, bias, mean, var, bool(training))  # type: ignore[arg-type]


def _batch_norm_functional(*args: Any) -> str:
    """What becomes of the kept statistics is a result."""
    return f"{_native_batch_norm(*args)}{'' if args[5] else ', 0, 0'}, c, c"


def _flash_attention(
    query: Value,
    key: Value,
    value: Value,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Value | None = None,
    **_: object,
) -> str:
    row = attention(query, key, value, attn_mask, dropout_p, is_causal)
    return f"{row}, ... {'s!' if is_causal else 's'}"


def _attention_math(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: object,
    **options: object,
) -> str:
    row = attention(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa=options.get("enable_gqa") is True)
    heads = "... (h g)" if " g " in row else "..."
    return f"{row}, {heads} {'s! t!' if is_causal else 's t'}"


def _weight_norm_interface(v: Value, g: Value, dim: int = 0) -> str:
    row = weight_norm(v, g, dim)
    return f"{row}, {row.partition(', ')[2].partition(' ->')[0]}"


def _slow_conv(
    input: Value,
    weight: Value,
    kernel_size: object,
    bias: Value | None = None,
    stride: object = 1,
    padding: object = 0,
) -> str:
    return conv(input, weight, bias, stride, padding)


def _fft(input: Value, dim: Sequence[int], *_: object) -> str:
    return cumulate(input, dim)


def _edge_pad(dims: int) -> Row:
    """Pads of an image with values of the image itself."""

    def row(input: Value, padding: Sequence[int]) -> str:
        axes = letters(input)
        for i in range(dims):
            if padding[2 * i] or padding[2 * i + 1]:
                axes = put(axes, input.ndim - 1 - i, "_")
        return f"{' '.join(axes)} -> {' '.join(axes)}"

    return row


def _mkldnn_rnn(input: Value, *args: Any) -> str:
    """One layer and direction of an LSTM, the one kind that this kernel is called for."""
    state = f"{'_ ' * (args[4].ndim - 2)}b h"
    operands = f"s! b i, (4 h) i, (4 h) h, (4 h), (4 h), {state}, {state}"
    return f"{operands} -> b h -> s! b h, {state}, {state}"


KERNELS: dict[str, Row] = {
    "aten.native_layer_norm": _native_layer_norm,
    "aten._fused_rms_norm": _fused_rms_norm,
    "aten.native_group_norm": _native_group_norm,
    "aten.native_batch_norm": _native_batch_norm,
    "aten._native_batch_norm_legit": _batch_norm_legit,
    "aten._native_batch_norm_legit_functional": _batch_norm_functional,
    "aten._scaled_dot_product_flash_attention_for_cpu": _flash_attention,
    "aten._scaled_dot_product_attention_math": _attention_math,
    "aten._weight_norm_interface": _weight_norm_interface,
    "aten._convolution": convolution,
    "aten.slow_conv3d": _slow_conv,
    "aten._fft_r2c": _fft,
    "aten._fft_c2r": _fft,
    "aten._fft_c2c": _fft,
    **{f"aten.{kind}_pad{n}d": _edge_pad(n) for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "aten.mkldnn_rnn_layer": _mkldnn_rnn,
    "aten._prelu_kernel": "..., ... -> ...",
    "aten._addmm_activation": CONTRACTIONS["aten.addmm"],
    "aten._euclidean_dist": "... n d, ... m d -> ... n m",
    "aten._cdist_forward": "... n d, ... m d -> ... n m",
    "aten.native_channel_shuffle": lambda input, groups: f"b (g={groups} c) ... -> b (c g) ...",
}

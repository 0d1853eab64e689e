"""The table: operation -> signature. A row is a string, or a function of the operation's arguments that returns one.

Sources of truth are the operations' documentation and the tests: for every row, ``op(P x) == P op(x)`` on random
operands and permutations, and every ``_`` must matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..graph import Value
from .contract import CONTRACTIONS
from .kernels import KERNELS
from .reduce import REDUCTIONS
from .text import Row as Row
from .text import each, letters, optional, put

# --- images


def _pool(dims: int, results: int = 1) -> Callable[..., str]:
    """Windows read neighbours, except one that is the whole image, or a single position."""

    def row(input: Value, kernel_size: object, stride: object = (), padding: object = 0, *_: object) -> str:
        shape = input.shape[input.ndim - dims :]
        kernel = each(kernel_size, dims)
        steps = each(stride, dims) if stride not in ([], (), None) else kernel
        before, after = [], []
        for i, (size, window, step, pad) in enumerate(zip(shape, kernel, steps, each(padding, dims), strict=True)):
            whole, alone = window == size and pad == 0, (window, step, pad) == (1, 1, 0)
            before.append(f"x{i}" if whole or alone else "_")
            after.append("1" if whole else before[-1])
        return _pooled(before, after, results)

    return row


def _adaptive_pool(dims: int, results: int = 1) -> Callable[..., str]:
    def row(input: Value, output_size: object) -> str:
        sizes = zip(input.shape[input.ndim - dims :], each(output_size, dims), strict=True)
        before, after = [], []
        for i, (size, result) in enumerate(sizes):
            before.append(f"x{i}" if result in (1, size, None) else "_")
            after.append("1" if result == 1 else before[-1])
        return _pooled(before, after, results)

    return row


def _pooled(before: Sequence[str], after: Sequence[str], results: int) -> str:
    """The second result, if there is one, has positions in the image: it can be told only where none may move."""
    result = "... " + " ".join(after)
    return f"... {' '.join(before)} -> {', '.join([result] * (results if set(before) == {'_'} else 1))}"


def _resample(input: Value, *_: object, **__: object) -> str:
    image = " _" * (input.ndim - 2)
    return f"b c{image} -> b c{image}"


def _pixel_shuffle(input: Value, upscale_factor: int) -> str:
    return f"... (c {upscale_factor} {upscale_factor}) _ _ -> ... c _ _"


def _pixel_unshuffle(input: Value, downscale_factor: int) -> str:
    return f"... c _ _ -> ... (c {downscale_factor} {downscale_factor}) _ _"


def _channel_shuffle(input: Value, groups: int) -> str:
    return f"b (g={groups} c) ... -> b (c g) ..."


def _im2col(input: Value, kernel_size: Sequence[int], *_: object) -> str:
    return f"... c _ _ -> ... (c {kernel_size[0] * kernel_size[1]}) _"


def _col2im(input: Value, output_size: object, kernel_size: Sequence[int], *_: object) -> str:
    return f"... (c {kernel_size[0] * kernel_size[1]}) _ -> ... c _ _"


# --- lookups


def _index(self: Value, indices: Sequence[Value | None]) -> str:
    """Looked-up axes are ordered. The looked-up places stand where they were if they are neighbours, else first."""
    places = [i for i, index in enumerate(indices) if index is not None]
    axes = ["_" if i in places else axis for i, axis in enumerate(letters(self))]
    kept = [axis for axis in axes if axis != "_"]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    result = [*kept[:first], "...", *kept[first:]]
    return f"{' '.join(axes)}{', ...' * len(places)} -> {' '.join(result)}"


def _index_select(input: Value, dim: int, index: Value) -> str:
    """The axis that is looked up is ordered; the places in the index are free."""
    axes = letters(input) or ["_"]
    place = dim % len(axes)
    return f"{' '.join(put(axes, place, '_')[: input.ndim])}, {'s' * index.ndim} -> " + (
        " ".join(put(axes, place, "s" if index.ndim else "1")[: input.ndim])
    )


def _gather(input: Value, dim: int, index: Value, **_: object) -> str:
    """Along the other axes each place of the index reads its own place of the input, as far as it reaches."""
    pairs = zip(letters(input), input.shape, index.shape, strict=True)
    row = ["_" if n != m else axis for axis, n, m in pairs]
    places = " ".join(put(row, dim % len(row), "s"))
    return f"{' '.join(put(row, dim % len(row), '_'))}, {places} -> {places}"


def _index_add(input: Value, dim: int, index: Value, source: Value, **_: object) -> str:
    axes = letters(input)
    row = " ".join(put(axes, dim % input.ndim, "_"))
    return f"{row}, s, {' '.join(put(axes, dim % input.ndim, 's'))} -> {row}"


def _index_put(
    input: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False, *_: object
) -> str:
    """What is written to one place twice depends on the order, unless it is added up."""
    places = [i for i, index in enumerate(indices) if index is not None]
    found = [index for index in indices if index is not None]
    # An index of several axes may be a mask over as many axes of the input: a value does not tell its dtype.
    at = zip(places, found, strict=True)
    if any(index.ndim > 1 and index.shape == input.shape[i : i + index.ndim] for i, index in at):
        pinned = [" ".join("_" * value.ndim) for value in (input, *found, values)]
        return f"{', '.join(pinned)} -> {pinned[0]}"
    axes = ["_" if i in places else axis for i, axis in enumerate(letters(input))]
    kept = [axis for i, axis in enumerate(axes) if i not in places]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    ndim = max(index.ndim for index in found)
    looked_up = [f"s{i}" if accumulate else "_" for i in range(ndim)]
    written = [*kept[:first], *looked_up, *kept[first:]]
    operands = [axes, *(looked_up[ndim - index.ndim :] for index in found), written[len(written) - values.ndim :]]
    return f"{', '.join(map(' '.join, operands))} -> {' '.join(axes)}"


def _embedding_bag(
    weight: Value,
    indices: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    *_: object,
) -> str:
    return optional("_ d, _, _{} -> _ d", ("_", per_sample_weights))


def _prelu(input: Value, weight: Value) -> str:
    shared = weight.ndim == 0 or weight.shape == (1,)
    return f"..., {'1' * weight.ndim} -> ..." if shared else "b c ..., c -> b c ..."


def _glu(input: Value, dim: int = -1) -> str:
    axes = letters(input)
    place = dim % input.ndim
    halves = [f"({axis} + {axis})" if i == place else axis for i, axis in enumerate(axes)]
    return f"{' '.join(halves)} -> {' '.join(axes)}"


_SAME = (
    "clone alias detach contiguous dropout feature_dropout alpha_dropout lift_fresh lift_fresh_copy _to_copy to "
    "positive view_as conj resolve_conj resolve_neg real imag nan_to_num hardtanh logit log_sigmoid "
    "_conj _neg_view mish softplus hardswish silu gelu"
).split()

SIGNATURES: dict[str, Row] = {
    **{f"aten.{name}": "... -> ..." for name in _SAME},
    **CONTRACTIONS,
    **REDUCTIONS,
    **KERNELS,
    # images
    **{f"aten.{kind}_pool{n}d": _pool(n) for n in (1, 2, 3) for kind in ("avg", "max")},
    **{f"aten.max_pool{n}d_with_indices": _pool(n, results=2) for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": _adaptive_pool(n) for n in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{n}d": _adaptive_pool(n, results=2) for n in (1, 2, 3)},
    "aten.max_unpool2d": "... x y, ... x y -> ... _ _",
    "aten.max_unpool3d": "... x y z, ... x y z -> ... _ _ _",
    **{
        f"aten.upsample_{kind}": _resample
        for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
    },
    **{f"aten._upsample_nearest_exact{n}d": _resample for n in (1, 2, 3)},
    **{f"aten._upsample_{kind}_aa": _resample for kind in ("bilinear2d", "bicubic2d")},
    **{f"aten.{name}": "b c _ _, b x y 2 -> b c x y" for name in ("grid_sampler", "grid_sampler_2d")},
    "aten.pixel_shuffle": _pixel_shuffle,
    "aten.pixel_unshuffle": _pixel_unshuffle,
    "aten.channel_shuffle": _channel_shuffle,
    "aten.im2col": _im2col,
    "aten.col2im": _col2im,
    # lookups
    "aten.embedding": "_ d, ... -> ... d",
    "aten.embedding_bag": _embedding_bag,
    "aten.one_hot": "... -> ... _",
    "aten.index": _index,
    "aten.index_put": _index_put,
    "aten.index_add": _index_add,
    "aten.index_select": _index_select,
    "aten.gather": _gather,
    # gates
    "aten.prelu": _prelu,
    "aten.glu": _glu,
}

"""The table: operation -> signature. A row is a string, or a function of the operation's arguments that returns one.

Sources of truth are the operations' documentation and the tests: for every row, ``op(P x) == P op(x)`` on random
operands and permutations, and every ``_`` must matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..graph import Value
from .algebra import ALGEBRA
from .contract import CONTRACTIONS
from .kernels import KERNELS
from .lookup import READS, WRITES, Numbers
from .reduce import REDUCTIONS
from .text import Row as Row
from .text import each, letters, optional

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


def _all_ordered(*operands: Value) -> str:
    """What reads every place of its operands in their order, and makes something in an order of its own."""
    return f"{', '.join(' '.join('_' * value.ndim) for value in operands)} -> _"


def _nonzero(input: Value) -> str:
    return f"{_all_ordered(input)} _"


def _masked_scatter(input: Value, mask: Value, source: Value) -> str:
    ndim = max(input.ndim, mask.ndim)
    return f"{_all_ordered(input, mask, source)}{' _' * (ndim - 1)}"


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


def _grouped_mm(input: Value, matrices: Value, offs: Value | None = None, *_: Any, **__: Any) -> str:
    """Each row is multiplied with the matrix of its group; where groups end are numbers."""
    return "_ i, _ i o, _ -> _ o"


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
    "positive conj resolve_conj resolve_neg real imag nan_to_num hardtanh logit log_sigmoid "
    "_conj _neg_view mish softplus hardswish silu gelu detach_copy alias_copy lift pin_memory"
).split()

SIGNATURES: dict[str, Row] = {
    **{f"aten.{name}": "... -> ..." for name in _SAME},
    **CONTRACTIONS,
    **REDUCTIONS,
    **KERNELS,
    **ALGEBRA,
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
    "aten.embedding_bag": _embedding_bag,
    "aten.one_hot": "... -> ... _",
    # places that values decide
    "aten.nonzero": _nonzero,
    "aten.masked_select": _all_ordered,
    "aten.masked_scatter": _masked_scatter,
    **{name: partial(row, Numbers()) for name, row in {**READS, **WRITES}.items()},
    "aten._grouped_mm": _grouped_mm,
    "transformers.grouped_mm_fallback": _grouped_mm,
    # gates
    "aten.prelu": _prelu,
    "aten.glu": _glu,
}

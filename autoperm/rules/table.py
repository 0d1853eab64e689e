"""The table: operation -> signature. A row is a string, or a function of the operation's arguments that returns one.

Sources of truth are the operations' documentation and the tests: for every row, ``op(P x) == P op(x)`` on random
operands and permutations, and every ``_`` must matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..graph import Value

Row = str | Callable[..., str]

def _letters(value: Value) -> list[str]:
    return [f"a{i}" for i in range(value.ndim)]


def _dims(dim: int | Sequence[int] | None, ndim: int) -> set[int]:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return set(range(ndim))
    return {d % max(ndim, 1) for d in ([dim] if isinstance(dim, int) else dim)}


def _pinned_along(value: Value, dim: int | Sequence[int] | None) -> str:
    dims = _dims(dim, value.ndim)
    return " ".join("_" if i in dims else letter for i, letter in enumerate(_letters(value)))


# --- contractions


def _optional(row: str, *operands: tuple[str, object]) -> str:
    """Put the patterns of the operands that are there into a row."""
    return row.format("".join(f", {pattern}" for pattern, operand in operands if operand is not None))


def _linear(input: Value, weight: Value, bias: Value | None = None) -> str:
    out = "o" if weight.ndim == 2 else ""
    return _optional(f"... i, {out} i{{}} -> ... {out}", (out, bias))


def _matmul(a: Value, b: Value) -> str:
    left = "k" if a.ndim == 1 else "i k" if a.ndim == 2 else "... i k"
    right = "k" if b.ndim == 1 else "k j" if b.ndim == 2 else "... k j"
    rest = "... " if max(a.ndim, b.ndim) > 2 else ""
    return f"{left}, {right} -> {rest}{'i ' if a.ndim > 1 else ''}{'j' if b.ndim > 1 else ''}"


def _addmm(input: Value, a: Value, b: Value, **_: object) -> str:
    return f"{' '.join(['i', 'j'][2 - input.ndim :])}, i k, k j -> i j"


def _baddbmm(input: Value, a: Value, b: Value, **_: object) -> str:
    return f"{' '.join(['b', 'i', 'j'][3 - input.ndim :])}, b i k, b k j -> b i j"


def _tensordot(a: Value, b: Value, dims_self: Sequence[int], dims_other: Sequence[int]) -> str:
    left, right = [f"a{i}" for i in range(a.ndim)], [f"b{i}" for i in range(b.ndim)]
    for k, (i, j) in enumerate(zip(dims_self, dims_other, strict=True)):
        left[i] = right[j] = f"k{k}"
    kept = [axis for axis in [*left, *right] if not axis.startswith("k")]
    return f"{' '.join(left)}, {' '.join(right)} -> {' '.join(kept)}"


def _kron(a: Value, b: Value) -> str:
    ndim = max(a.ndim, b.ndim)
    axes = [(f"a{i}" if i >= ndim - a.ndim else "", f"b{i}" if i >= ndim - b.ndim else "") for i in range(ndim)]
    operands = (" ".join(filter(None, side)) for side in zip(*axes, strict=True))
    return f"{', '.join(operands)} -> {' '.join('(' + f'{x} {y}'.strip() + ')' for x, y in axes)}"


def _cosine_similarity(a: Value, b: Value, dim: int = 1, eps: float = 1e-8) -> str:
    ndim = max(a.ndim, b.ndim)
    axes = [f"a{i}" for i in range(ndim)]
    kept = [axis for i, axis in enumerate(axes) if i != dim % ndim]
    return f"{' '.join(axes[ndim - a.ndim :])}, {' '.join(axes[ndim - b.ndim :])} -> {' '.join(kept)}"


def _bilinear(a: Value, b: Value, weight: Value, bias: Value | None = None) -> str:
    return _optional("... i, ... j, o i j{} -> ... o", ("o", bias))


def _addbmm(input: Value, a: Value, b: Value, **_: object) -> str:
    return f"{' '.join(['i', 'j'][2 - input.ndim :])}, b i k, b k j -> i j"


def _addmv(input: Value, a: Value, b: Value, **_: object) -> str:
    return f"{'i' * input.ndim}, i k, k -> i"


def _einsum(equation: str, operands: Sequence[Value], **_: object) -> str:
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = [c for c in left if c.isalpha()]
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))

    def pattern(subscripts: str) -> str:
        # A capital letter is another index than the small one, and both are names.
        return " ".join("..." if c == "." else c for c in subscripts.replace("...", "."))

    return f"{', '.join(map(pattern, left.split(',')))} -> {pattern(right)}"


def _each(value: object, dims: int) -> list[object]:
    """Write an argument that may be one number for all dimensions as one for each."""
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    return found * dims if len(found) == 1 else found


def _image(kernel: Sequence[int], stride: object, padding: object, output_padding: object = 0) -> tuple[str, str]:
    """The patterns of image and kernel: ordered, except along a dimension in which each position stands for itself."""
    dims = len(kernel)
    padding = 0 if isinstance(padding, str) else padding  # "same" and "valid" are 0 where the kernel has length 1
    arguments = zip(kernel, _each(stride, dims), _each(padding, dims), _each(output_padding, dims), strict=True)
    alone = [step == (1, 1, 0, 0) for step in arguments]
    image = [f" x{i}" if free else " _" for i, free in enumerate(alone)]
    return "".join(image), "".join(" 1" if size == 1 else " _" for size in kernel)


def _conv(
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    *_: object,
) -> str:
    """Kernel and image axes are ordered; channels are free within a group, and groups among themselves."""
    image, kernel = _image(weight.shape[2:], stride, padding)
    batch = "b " if input.ndim == weight.ndim else ""
    if groups == 1:
        return _optional(f"{batch}i{image}, o i{kernel}{{}} -> {batch}o{image}", ("o", bias))
    row = f"{batch}(g={groups} i){image}, (g o) i{kernel}{{}} -> {batch}(g o){image}"
    return _optional(row, ("(g o)", bias))


def _conv_transpose(
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: object = 1,
    padding: object = 0,
    output_padding: object = 0,
    groups: int = 1,
    *_: object,
) -> str:
    image, kernel = _image(weight.shape[2:], stride, padding, output_padding)
    batch = "b " if input.ndim == weight.ndim else ""
    if groups == 1:
        return _optional(f"{batch}i{image}, i o{kernel}{{}} -> {batch}o{image}", ("o", bias))
    row = f"{batch}(g={groups} i){image}, (g i) o{kernel}{{}} -> {batch}(g o){image}"
    return _optional(row, ("(g o)", bias))


def _convolution(
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
) -> str:
    if transposed:
        return _conv_transpose(input, weight, bias, stride, padding, output_padding, groups)
    return _conv(input, weight, bias, stride, padding, dilation, groups)


# --- attention


def _attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    enable_gqa: bool = False,
    **_: object,
) -> str:
    """Scores have heads, queries, keys and channels before they are summed; the softmax has no keys or channels."""
    s, t = ("s!", "t!") if is_causal else ("s", "t")
    mask = [("... s t", attn_mask)]
    if not enable_gqa or query.shape[-3] == key.shape[-3]:
        inside = "... s t d, ... s t, ... s, ... s t e"
        return _optional(f"... {s} d, ... {t} d, ... t e{{}} -> {inside} -> ... s e", *mask)
    inside = "... h g s t d, ... h g s t, ... h g s, ... h g s t e"
    row = f"... (h g) {s} d, ... h={key.shape[-3]} {t} d, ... h t e{{}} -> {inside} -> ... (h g) s e"
    if attn_mask is not None and attn_mask.ndim > 2:
        mask = [("... (h g) s t" if attn_mask.shape[-3] > 1 else "... 1 s t", attn_mask)]
    return _optional(row, *mask)


# --- normalisation


def _batch_norm(
    input: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    *_: object,
) -> str:
    operands = (("c", weight), ("c", bias), ("c", running_mean), ("c", running_var))
    inside = "" if running_mean is not None else " -> c"
    return _optional(f"b c ...{{}}{inside} -> b c ...", *operands)


def _instance_norm(
    input: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    use_input_stats: bool = True,
    *_: object,
) -> str:
    operands = (("c", weight), ("c", bias), ("c", running_mean), ("c", running_var))
    inside = " -> b c" if use_input_stats else ""
    return _optional(f"b c ...{{}}{inside} -> b c ...", *operands)


def _layer_norm(
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *_: object,
) -> str:
    axes = " ".join(f"c{i}" for i in range(len(normalized_shape)))
    return _optional(f"... {axes}{{}} -> ... -> ... {axes}", (axes, weight), (axes, bias))


def _rms_norm(
    input: Value, normalized_shape: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> str:
    return _layer_norm(input, normalized_shape, weight)


def _group_norm(
    input: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, *_: object
) -> str:
    # The second tensor says that no position within a group is a position in the batch, should both have one factor.
    row = f"b (g={num_groups} c) ...{{}} -> b g, b g c ... -> b (g c) ..."
    return _optional(row, ("(g c)", weight), ("(g c)", bias))


def _weight_norm(v: Value, g: Value, dim: int = 0) -> str:
    axes = _letters(v)
    if dim == -1:  # one norm of all, not one for each unit of the last axis
        return f"{' '.join(axes)}, {' '.join('1' * g.ndim)} -> {' '.join('1' * g.ndim)} -> {' '.join(axes)}"
    kept = [axis if i == dim % v.ndim else "1" for i, axis in enumerate(axes)]
    return f"{' '.join(axes)}, {' '.join(kept)} -> {axes[dim % v.ndim]} -> {' '.join(axes)}"


def _softmax(input: Value, dim: int, *_: object, **__: object) -> str:
    axes = _letters(input)
    rest = [axis for i, axis in enumerate(axes) if i not in _dims(dim, input.ndim)]
    return f"{' '.join(axes)} -> {' '.join(rest)} -> {' '.join(axes)}"


# --- reductions


def _reduce(
    input: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False, *_: object, **__: object
) -> str:
    dims = _dims(dim, input.ndim)
    axes = _letters(input)
    kept = [("1" if keepdim else "") if i in dims else axis for i, axis in enumerate(axes)]
    return f"{' '.join(axes)} -> {' '.join(filter(None, kept))}"


def _reduce_all(input: Value, *_: object, **__: object) -> str:
    return f"{' '.join(_letters(input))} -> "


def _variance(input: Value, *args: object, **kwargs: object) -> str:
    dim = args[0] if args else kwargs.get("dim")
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if isinstance(dim, bool):
        return _reduce_all(input)
    return _reduce(input, dim, bool(keep))  # type: ignore[arg-type]


def _two(row: Callable[..., str]) -> Callable[..., str]:
    """Of two results that have the same axes."""

    def twice(*args: object, **kwargs: object) -> str:
        operands, _, result = row(*args, **kwargs).rpartition(" ->")
        return f"{operands} ->{result},{result}"

    return twice


def _aminmax(input: Value, *, dim: int | None = None, keepdim: bool = False) -> str:
    return _reduce(input, dim, keepdim)


def _norm(
    input: Value, ord: object = None, dim: int | Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> str:
    """A matrix's norms look at rows and columns as such: columns may not vary along rows, or rows along columns."""
    row = _reduce(input, dim, keepdim)
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    if ord is None or ord == "fro" or len(dims) != 2:
        return row
    rows, columns = (d % input.ndim for d in dims)
    gone = {1: [rows], -1: [rows], math.inf: [columns], -math.inf: [columns]}.get(ord, [rows, columns])  # type: ignore[call-overload]
    inside = [" ".join(axis for i, axis in enumerate(_letters(input)) if i != place) for place in gone]
    operand, _arrow, result = row.partition(" ->")
    return f"{operand} -> {', '.join(inside)} ->{result}"


def _vector_norm(
    input: Value, ord: object = 2, dim: int | Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> str:
    return _reduce(input, dim, keepdim)


def _cumulate(input: Value, dim: int | Sequence[int] | None, *_: object, **__: object) -> str:
    row = _pinned_along(input, dim)
    return f"{row} -> {row}"


def _ordered_along(first: int | None) -> Callable[..., str]:
    """Operations with one ``dim`` or several, after the input; None: along all axes."""

    def row(input: Value, dim: int | Sequence[int] | None = first, *_: object, **__: object) -> str:
        return _cumulate(input, dim)

    return row


def _unfold(input: Value, dimension: int, size: int, step: int) -> str:
    row = _pinned_along(input, dimension)
    return f"{row} -> {row} _"


def _cross(input: Value, other: Value, *, dim: int = -1) -> str:
    axes = _put(_letters(input), dim % input.ndim, "_")
    return f"{' '.join(axes)}, {' '.join(axes)} -> {' '.join(axes)}"


def _diagonal(input: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    first, second = dim1 % input.ndim, dim2 % input.ndim
    square = offset == 0 and input.shape[first] == input.shape[second]
    axes = _put(_put(_letters(input), first, "i" if square else "_"), second, "i" if square else "_")
    kept = [axis for i, axis in enumerate(axes) if i not in (first, second)]
    return f"{' '.join(axes)} -> {' '.join([*kept, 'i' if square else '_'])}"


def _diag_embed(input: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> str:
    *axes, last = _letters(input)
    ndim = input.ndim + 1
    rest = iter(axes)
    places = {dim1 % ndim, dim2 % ndim}
    result = [(last if offset == 0 else "_") if i in places else next(rest) for i in range(ndim)]
    return f"{' '.join([*axes, last if offset == 0 else '_'])} -> {' '.join(result)}"


def _diag(input: Value, diagonal: int = 0) -> str:
    return _diag_embed(input, diagonal) if input.ndim == 1 else _diagonal(input, diagonal)


def _flip(input: Value, dims: Sequence[int]) -> str:
    return _cumulate(input, dims)


def _roll(input: Value, shifts: object, dims: Sequence[int] = ()) -> str:
    return _cumulate(input, dims)


# --- images


def _pool(dims: int, results: int = 1) -> Callable[..., str]:
    """Windows read neighbours, except one that is the whole image, or a single position."""

    def row(input: Value, kernel_size: object, stride: object = (), padding: object = 0, *_: object) -> str:
        shape = input.shape[input.ndim - dims :]
        kernel = _each(kernel_size, dims)
        steps = _each(stride, dims) if stride not in ([], (), None) else kernel
        before, after = [], []
        for i, (size, window, step, pad) in enumerate(zip(shape, kernel, steps, _each(padding, dims), strict=True)):
            whole, alone = window == size and pad == 0, (window, step, pad) == (1, 1, 0)
            before.append(f"x{i}" if whole or alone else "_")
            after.append("1" if whole else before[-1])
        return _pooled(before, after, results)

    return row


def _adaptive_pool(dims: int, results: int = 1) -> Callable[..., str]:
    def row(input: Value, output_size: object) -> str:
        sizes = zip(input.shape[input.ndim - dims :], _each(output_size, dims), strict=True)
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
    axes = ["_" if i in places else axis for i, axis in enumerate(_letters(self))]
    kept = [axis for axis in axes if axis != "_"]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    result = [*kept[:first], "...", *kept[first:]]
    return f"{' '.join(axes)}{', ...' * len(places)} -> {' '.join(result)}"


def _index_select(input: Value, dim: int, index: Value) -> str:
    """The axis that is looked up is ordered; the places in the index are free."""
    axes = _letters(input) or ["_"]
    place = dim % len(axes)
    return f"{' '.join(_put(axes, place, '_')[: input.ndim])}, {'s' * index.ndim} -> " + (
        " ".join(_put(axes, place, "s" if index.ndim else "1")[: input.ndim])
    )


def _put(axes: Sequence[str], place: int, axis: str) -> list[str]:
    return [*axes[:place], axis, *axes[place + 1 :]]


def _gather(input: Value, dim: int, index: Value, **_: object) -> str:
    """Along the other axes each place of the index reads its own place of the input, as far as it reaches."""
    pairs = zip(_letters(input), input.shape, index.shape, strict=True)
    row = ["_" if n != m else axis for axis, n, m in pairs]
    places = " ".join(_put(row, dim % len(row), "s"))
    return f"{' '.join(_put(row, dim % len(row), '_'))}, {places} -> {places}"


def _index_add(input: Value, dim: int, index: Value, source: Value, **_: object) -> str:
    axes = _letters(input)
    row = " ".join(_put(axes, dim % input.ndim, "_"))
    return f"{row}, s, {' '.join(_put(axes, dim % input.ndim, 's'))} -> {row}"


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
    axes = ["_" if i in places else axis for i, axis in enumerate(_letters(input))]
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
    return _optional("_ d, _, _{} -> _ d", ("_", per_sample_weights))


def _prelu(input: Value, weight: Value) -> str:
    shared = weight.ndim == 0 or weight.shape == (1,)
    return f"..., {'1' * weight.ndim} -> ..." if shared else "b c ..., c -> b c ..."


def _glu(input: Value, dim: int = -1) -> str:
    axes = _letters(input)
    place = dim % input.ndim
    halves = [f"({axis} + {axis})" if i == place else axis for i, axis in enumerate(axes)]
    return f"{' '.join(halves)} -> {' '.join(axes)}"


def _diff(input: Value, n: int = 1, dim: int = -1, *_: object) -> str:
    return _cumulate(input, dim)


def _fft(default: int | Sequence[int] | None) -> Callable[..., str]:
    def row(
        input: Value, n: object = None, dim: int | Sequence[int] | None = default, *_: object, **__: object
    ) -> str:
        return _cumulate(input, default if dim is None else dim)

    return row


def _triangle(input: Value, *_: object) -> str:
    """What is kept depends on the place, but nothing moves: other axes may vary along these."""
    return "... i! j! -> ... i! j!"


_SAME = (
    "clone alias detach contiguous dropout feature_dropout alpha_dropout lift_fresh lift_fresh_copy _to_copy to "
    "positive view_as conj resolve_conj resolve_neg real imag nan_to_num hardtanh logit log_sigmoid "
    "_conj _neg_view mish softplus hardswish silu gelu"
).split()

SIGNATURES: dict[str, Row] = {
    **{f"aten.{name}": "... -> ..." for name in _SAME},
    # contractions: a name shared by two operands and gone from the result is summed over
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.mm": "i k, k j -> i j",
    "aten.bmm": "b i k, b k j -> b i j",
    "aten.mv": "i k, k -> i",
    "aten.dot": "k, k -> ",
    "aten.vdot": "k, k -> ",
    "aten.outer": "i, j -> i j",
    "aten.addmm": _addmm,
    "aten.baddbmm": _baddbmm,
    "aten.einsum": _einsum,
    "aten.addbmm": _addbmm,
    "aten.addmv": _addmv,
    "aten.addr": "i j, i, j -> i j",
    "aten.tensordot": _tensordot,
    "aten.kron": _kron,
    "aten.bilinear": _bilinear,
    "aten.cosine_similarity": _cosine_similarity,
    "aten.trace": "i i -> ",
    "aten.cdist": "... n d, ... m d -> ... n m",
    "aten.conv1d": _conv,
    "aten.conv2d": _conv,
    "aten.conv3d": _conv,
    "aten.conv_transpose1d": _conv_transpose,
    "aten.conv_transpose2d": _conv_transpose,
    "aten.conv_transpose3d": _conv_transpose,
    "aten.convolution": _convolution,
    "aten.scaled_dot_product_attention": _attention,
    # normalisation: the intermediate is what the mixed axis is gone from
    "aten.batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten.instance_norm": _instance_norm,
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten.group_norm": _group_norm,
    "aten._weight_norm": _weight_norm,
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten._safe_softmax": _softmax,
    "aten.log_softmax": _softmax,
    "aten._log_softmax": _softmax,
    # reductions
    **{f"aten.{name}": _reduce for name in ("sum", "mean", "amax", "amin", "logsumexp", "prod", "any", "all")},
    "aten.linalg_vector_norm": _vector_norm,
    "aten.norm": _vector_norm,
    "aten.var": _variance,
    "aten.std": _variance,
    "aten.var_mean": _two(_variance),
    "aten.std_mean": _two(_variance),
    "aten.aminmax": _two(_aminmax),
    "aten.linalg_norm": _norm,
    "aten.count_nonzero": _reduce,
    # order along an axis
    **{f"aten.{name}": _cumulate for name in ("cumsum", "cumprod", "logcumsumexp")},
    **{f"aten.{name}": _two(_cumulate) for name in ("cummax", "cummin")},
    "aten.diff": _diff,
    "aten.unfold": _unfold,
    "aten.linalg_cross": _cross,
    "aten.diagonal": _diagonal,
    "aten.diag_embed": _diag_embed,
    "aten.diag": _diag,
    "aten.flip": _flip,
    "aten.roll": _roll,
    "aten.triu": _triangle,
    "aten.tril": _triangle,
    **{f"aten.fft_{name}": _fft(-1) for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")},
    **{f"aten.fft_{name}": _fft((-2, -1)) for name in ("fft2", "ifft2", "rfft2", "irfft2")},
    **{f"aten.fft_{name}": _fft(None) for name in ("fftn", "ifftn", "rfftn", "irfftn")},
    **{f"aten.fft_{name}": _ordered_along(None) for name in ("fftshift", "ifftshift")},
    "aten.view_as_real": "... -> ... 2",
    "aten.view_as_complex": "... 2 -> ...",
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

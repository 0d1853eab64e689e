"""Rows of what multiplies operands and sums: dense layers, convolutions, attention.

A name that two operands share and the result does not have is summed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Value
from .text import Row, each, optional


def _linear(input: Value, weight: Value, bias: Value | None = None) -> str:
    out = "o" if weight.ndim == 2 else ""
    return optional(f"... i, {out} i{{}} -> ... {out}", (out, bias))


def _matmul(a: Value, b: Value) -> str:
    left = "k" if a.ndim == 1 else "i k" if a.ndim == 2 else "... i k"
    right = "k" if b.ndim == 1 else "k j" if b.ndim == 2 else "... k j"
    rest = "... " if max(a.ndim, b.ndim) > 2 else ""
    return f"{left}, {right} -> {rest}{'i ' if a.ndim > 1 else ''}{'j' if b.ndim > 1 else ''}"


def _addmm(input: Value, a: Value, b: Value, *_: object, **__: object) -> str:
    return f"{' '.join(['i', 'j'][2 - input.ndim :])}, i k, k j -> i j"


def _baddbmm(input: Value, a: Value, b: Value, *_: object, **__: object) -> str:
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
    return optional("... i, ... j, o i j{} -> ... o", ("o", bias))


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


def _image(kernel: Sequence[int], stride: object, padding: object, output_padding: object = 0) -> tuple[str, str]:
    """The patterns of image and kernel: ordered, except along a dimension in which each position stands for itself."""
    dims = len(kernel)
    padding = 0 if isinstance(padding, str) else padding  # "same" and "valid" are 0 where the kernel has length 1
    arguments = zip(kernel, each(stride, dims), each(padding, dims), each(output_padding, dims), strict=True)
    alone = [step == (1, 1, 0, 0) for step in arguments]
    image = [f" x{i}" if free else " _" for i, free in enumerate(alone)]
    return "".join(image), "".join(" 1" if size == 1 else " _" for size in kernel)


def _channels(input: Value, weight: Value, bias: Value | None, groups: int, kernel: str, image: str) -> str:
    """The row of a convolution, whose kernel's pattern has one of the channel axes whole, the other within a group."""
    batch = "b " if input.ndim == weight.ndim else ""
    i, o = ("i", "o") if groups == 1 else (f"(g={groups} i)", "(g o)")
    return optional(f"{batch}{i}{image}, {kernel.format(i=i, o=o)}{{}} -> {batch}{o}{image}", (o, bias))


def conv(
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
    return _channels(input, weight, bias, groups, "{o} i" + kernel, image)


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
    return _channels(input, weight, bias, groups, "{i} o" + kernel, image)


def convolution(
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    *_: object,
) -> str:
    """The one form that all convolutions have below the exporter's level."""
    if transposed:
        return _conv_transpose(input, weight, bias, stride, padding, output_padding, groups)
    return conv(input, weight, bias, stride, padding, dilation, groups)


# --- attention


def attention(
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
        return optional(f"... {s} d, ... {t} d, ... t e{{}} -> {inside} -> ... s e", *mask)
    inside = "... h g s t d, ... h g s t, ... h g s, ... h g s t e"
    row = f"... (h g) {s} d, ... h={key.shape[-3]} {t} d, ... h t e{{}} -> {inside} -> ... (h g) s e"
    if attn_mask is not None and attn_mask.ndim > 2:
        mask = [("... (h g) s t" if attn_mask.shape[-3] > 1 else "... 1 s t", attn_mask)]
    return optional(row, *mask)


CONTRACTIONS: dict[str, Row] = {
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
    "aten.conv1d": conv,
    "aten.conv2d": conv,
    "aten.conv3d": conv,
    "aten.conv_transpose1d": _conv_transpose,
    "aten.conv_transpose2d": _conv_transpose,
    "aten.conv_transpose3d": _conv_transpose,
    "aten.convolution": convolution,
    "aten.scaled_dot_product_attention": attention,
}

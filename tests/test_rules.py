"""Every row of the table holds, and says no less than what holds.

Each row is tested by existing: an example call for each operation (several where the arguments decide the row) is run
on random operands. What is then checked follows from the notation alone, and is computed here without the code that
discovery uses:

* *sound*: one random permutation for each factor, on the operands and on the results, changes nothing;
* *tight*: each pinned axis matters: moved alone, or with other pinned axes, it changes what comes out;
* *presence*: a factor may be permuted differently for each position of another one exactly if the other is present in
  every tensor in which it is, those inside the operation included. A missing intermediate shows as an unsound
  permutation, one too many as a permutation that the row forbids in vain. Since the rest of a model may make two
  factors one (queries and keys of one sequence), what is allowed is also tried for each pair of factors made equal.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import autoperm
from autoperm import rules
from autoperm.errors import SignatureError
from autoperm.graph import Value
from autoperm.rules import SIGNATURES
from autoperm.signature import Name, Pattern, Pinned, Product, Rest, Signature, Sum, implied_intermediate, parse
from autoperm.signature import Term as Notation

torch.set_num_threads(1)

# ------------------------------------------------------------------------------------------------ example calls

_random = torch.Generator().manual_seed(0)


def real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_random, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return 0.5 + torch.rand(shape, generator=_random, dtype=torch.float64)


def cplx(*shape: int) -> Tensor:
    return torch.complex(real(*shape), real(*shape))


def ints(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=_random)


def bools(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_random) > 0.5


@dataclass(frozen=True)
class Example:
    """One call of an operation, with its arguments as they stand in a traced graph."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        return list(_tensors([*self.args, *self.kwargs.values()]))

    def row(self) -> str:
        row = SIGNATURES[self.op]
        if isinstance(row, str):
            return row
        args = _replace(self.args, lambda tensor: Value("x", tuple(tensor.shape)))
        kwargs = _replace(self.kwargs, lambda tensor: Value("x", tuple(tensor.shape)))
        return row(*args, **kwargs)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        source = iter(tensors)
        args = _replace(self.args, lambda _: next(source))
        kwargs = _replace(self.kwargs, lambda _: next(source))
        namespace, name = self.op.split(".")
        result = getattr(getattr(torch.ops, namespace), name)(*args, **kwargs)
        return [result] if isinstance(result, Tensor) else list(result)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _replace(value: Any, new: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return new(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, new) for item in value)
    if isinstance(value, dict):
        return {key: _replace(item, new) for key, item in value.items()}
    return value


EXAMPLES: list[Example] = []


def call(ops: str, *args: Any, **kwargs: Any) -> None:
    """Add an example call of one operation, or of several that take the same arguments."""
    EXAMPLES.extend(Example(f"aten.{op}", args, kwargs) for op in ops.split())


# the same axes out as in
call("clone alias detach contiguous lift_fresh lift_fresh_copy positive conj resolve_conj resolve_neg", real(2, 3))
call("nan_to_num hardtanh log_sigmoid _neg_view mish softplus hardswish silu gelu", real(2, 3))
call("logit", torch.rand(2, 3, generator=_random, dtype=torch.float64), 0.1)
call("dropout feature_dropout alpha_dropout", real(2, 3), 0.5, False)
call("_to_copy", real(2, 3), dtype=torch.complex128)
call("to", real(2, 3), torch.complex128)
call("_conj real imag", cplx(2, 3))
# contractions
call("linear", real(2, 3, 4), real(5, 4))
call("linear", real(2, 3, 4), real(5, 4), real(5))
call("linear", real(4), real(5, 4), real(5))
call("linear", real(3, 3), real(3, 3), real(3))
call("linear", real(2, 3, 4), real(4))
call("matmul", real(4), real(4))
call("matmul", real(3, 4), real(4))
call("matmul", real(4), real(4, 3))
call("matmul", real(2, 3, 4), real(4))
call("matmul", real(4), real(2, 4, 3))
call("matmul", real(3, 4), real(4, 5))
call("matmul", real(2, 6, 3, 4), real(6, 4, 5))
call("matmul", real(2, 1, 3, 4), real(6, 4, 5))
call("matmul", real(3, 3, 3), real(3, 3, 3))
call("mm", real(3, 4), real(4, 5))
call("mm", real(3, 3), real(3, 3))
call("bmm", real(2, 3, 4), real(2, 4, 5))
call("bmm", real(3, 3, 3), real(3, 3, 3))
call("mv", real(3, 4), real(4))
call("mv", real(3, 3), real(3))
call("dot", real(4), real(4))
call("vdot", cplx(4), cplx(4))
call("outer", real(3), real(4))
call("outer", real(3), real(3))
call("addmm", real(3, 5), real(3, 4), real(4, 5))
call("addmm", real(5), real(3, 4), real(4, 5), beta=0.5)
call("addmm", real(3, 1), real(3, 4), real(4, 5))
call("addmm", real(3, 3), real(3, 3), real(3, 3))
call("baddbmm", real(2, 3, 5), real(2, 3, 4), real(2, 4, 5), alpha=0.5)
call("baddbmm", real(5), real(2, 3, 4), real(2, 4, 5))
call("baddbmm", real(3, 3, 3), real(3, 3, 3), real(3, 3, 3))
call("addbmm", real(3, 5), real(2, 3, 4), real(2, 4, 5))
call("addbmm", real(3), real(3, 3, 3), real(3, 3, 3))
call("addmv", real(3), real(3, 4), real(4))
call("addr", real(3, 4), real(3), real(4))
call("tensordot", real(2, 3, 4), real(3, 2, 5), [0, 1], [1, 0])
call("tensordot", real(3, 3, 3), real(3, 3), [1], [0])
call("kron", real(2, 3), real(4, 5))
call("kron", real(3), real(2, 5))
call("bilinear", real(2, 3), real(2, 4), real(5, 3, 4), real(5))
call("bilinear", real(3, 3), real(3, 3), real(3, 3, 3))
call("cosine_similarity", real(2, 3, 4), real(2, 3, 4), -1)
call("cosine_similarity", real(2, 3, 4), real(1, 4))
call("cosine_similarity", real(3, 3, 3), real(3, 3, 3))
call("trace", real(4, 4))
call("cdist", real(2, 3, 4), real(2, 5, 4))
call("cdist", real(3, 3, 3), real(3, 3, 3), 1.0)
call("einsum", "bij,bjk->bik", [real(2, 3, 4), real(2, 4, 5)])
call("einsum", "ij,j", [real(3, 4), real(4)])
call("einsum", "iI,Ij", [real(3, 4), real(4, 5)])
call("einsum", "b i, o i -> b o", [real(2, 3), real(4, 3)])
call("einsum", "ii->i", [real(4, 4)])
call("einsum", "ii", [real(4, 4)])
call("einsum", "iij,jk->ik", [real(3, 3, 4), real(4, 5)])
call("einsum", "...ij,...jk->...ik", [real(6, 2, 3, 4), real(2, 4, 5)])
call("einsum", "...i,...i->i", [real(2, 3, 4), real(2, 3, 4)])
call("einsum", "b...,bo->o...", [real(2, 3, 4), real(2, 5)])
call("einsum", "bchw,chd,hd->bdw", [real(2, 3, 4, 5), real(3, 4, 6), real(4, 6)])
call("einsum", "bhid,bhjd->bhij", [real(3, 3, 3, 3), real(3, 3, 3, 3)])
call("einsum", "bc,bc->bc", [real(3, 3), real(3, 3)])
for dims in (1, 2, 3):
    image = (6, 7, 8)[:dims]
    kernel = (2, 3, 2)[:dims]
    call(f"conv{dims}d", real(2, 3, *image), real(4, 3, *kernel), real(4))
    call(f"conv{dims}d", real(2, 6, *image), real(8, 3, *kernel), None, [2] * dims, [1], [1] * dims, 2)
    call(f"conv_transpose{dims}d", real(2, 3, *image), real(3, 4, *kernel), real(4))
    call(f"conv_transpose{dims}d", real(2, 6, *image), real(6, 4, *kernel), real(8), [2], [1], [1], 2)
call("conv2d", real(3, 6, 7), real(4, 3, 2, 3))
call("conv2d", real(1, 6, 6, 7), real(6, 1, 2, 3), real(6), [1], "same", [1], 6)
call("conv2d", real(2, 3, 3, 3), real(3, 3, 1, 1), real(3))
call("conv2d", real(2, 3, 4, 5), real(6, 3, 1, 1), real(6), [2, 1])
call("conv2d", real(2, 3, 4, 5), real(6, 3, 1, 1), real(6), [1], [0, 1])
call("conv2d", real(2, 3, 4, 5), real(6, 3, 1, 2), real(6), [1, 1], "same")
call("conv1d", real(3, 5), real(4, 3, 1))
call("conv1d", real(2, 6, 5), real(6, 3, 1), real(6), [1], [0], [1], 2)
call("conv_transpose2d", real(2, 3, 4, 5), real(3, 4, 1, 1))
call("conv_transpose2d", real(2, 3, 4, 5), real(3, 4, 1, 1), None, [2], [0], [1])
call("conv_transpose1d", real(3, 5), real(3, 4, 2))
call("convolution", real(2, 6, 5, 7), real(4, 3, 2, 3), real(4), [1, 1], [0, 0], [1, 1], False, [0, 0], 2)
call("convolution", real(2, 6, 5, 7), real(6, 4, 2, 3), None, [1, 1], [0, 0], [1, 1], True, [0, 0], 2)
# attention
call("scaled_dot_product_attention", real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 7))
call("scaled_dot_product_attention", real(4, 5), real(6, 5), real(6, 7))
call("scaled_dot_product_attention", real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 7), real(4, 6))
call("scaled_dot_product_attention", real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 7), real(2, 1, 1, 6))
call("scaled_dot_product_attention", real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 7), None, 0.0, True)
call("scaled_dot_product_attention", real(3, 3, 3), real(3, 3, 3), real(3, 3, 3))
call("scaled_dot_product_attention", real(3, 3, 3, 3), real(3, 3, 3, 3), real(3, 3, 3, 3), real(3, 3, 3, 3))
gqa = real(2, 6, 4, 5), real(2, 3, 7, 5), real(2, 3, 7, 8)
call("scaled_dot_product_attention", *gqa, enable_gqa=True)
call("scaled_dot_product_attention", *gqa, None, 0.0, True, enable_gqa=True)
call("scaled_dot_product_attention", *gqa, real(4, 7), enable_gqa=True, scale=0.5)
call("scaled_dot_product_attention", *gqa, real(2, 1, 4, 7), enable_gqa=True)
call("scaled_dot_product_attention", *gqa, real(6, 4, 7), enable_gqa=True)
call("scaled_dot_product_attention", *(real(2, n, 3, 4) for n in (3, 3, 3)), enable_gqa=True)
call("scaled_dot_product_attention", real(9, 3, 3), real(3, 3, 3), real(3, 3, 3), enable_gqa=True)
# normalisation
stats = real(3), positive(3)
call("batch_norm", real(2, 3, 4, 5), real(3), real(3), *stats, False, 0.1, 1e-5, True)
call("batch_norm", real(6, 3), None, None, *stats, False, 0.1, 1e-5, True)
call("batch_norm", real(2, 3, 4), real(3), None, None, None, True, 0.1, 1e-5, True)
call("batch_norm", real(3, 3, 3), None, None, None, None, True, 0.1, 1e-5, True)
call("_native_batch_norm_legit_no_training", real(2, 3, 4), real(3), real(3), *stats, 0.1, 1e-5)
call("instance_norm", real(2, 3, 4, 5), None, None, None, None, True, 0.1, 1e-5, True)
call("instance_norm", real(2, 3, 4), real(3), real(3), None, None, True, 0.1, 1e-5, True)
call("instance_norm", real(2, 3, 4), real(3), real(3), *stats, False, 0.1, 1e-5, True)
call("instance_norm", real(3, 3, 3), None, None, None, None, True, 0.1, 1e-5, True)
call("layer_norm", real(2, 3, 4), [4])
call("layer_norm", real(2, 3, 4), [3, 4], real(3, 4), real(3, 4))
call("layer_norm", real(2, 3, 4), [4], real(4), None, 1e-5)
call("layer_norm", real(3, 3, 3), [3])
call("rms_norm", real(2, 3, 4), [4])
call("rms_norm", real(2, 3, 4), [3, 4], real(3, 4), 1e-6)
call("group_norm", real(2, 6, 4, 5), 3)
call("group_norm", real(2, 6, 4), 2, real(6), real(6), 1e-5, False)
call("group_norm", real(2, 6, 4), 6, None, real(6))
call("group_norm", real(3, 9, 3), 3)
call("_weight_norm", real(3, 4, 5), positive(3, 1, 1))
call("_weight_norm", real(3, 4, 5), positive(1, 4, 1), 1)
call("_weight_norm", real(3, 4, 5), positive(1, 1, 5), 2)
call("_weight_norm", real(3, 4), positive(), -1)
call("softmax log_softmax", real(2, 3, 4), -1)
call("softmax log_softmax", real(3, 3, 3), 1)
call("softmax", real(4), 0, torch.float64)
call("_softmax _log_softmax", real(2, 3, 4), 1, False)
call("_safe_softmax", real(2, 3, 4), 1)
# kernels below the composite operations
call("native_layer_norm", real(2, 3, 4), [4], real(4), real(4), 1e-5)
call("native_layer_norm", real(2, 3, 4), [3, 4], None, None, 1e-5)
call("_fused_rms_norm", real(2, 3, 4), [4], real(4), 1e-5)
call("native_group_norm", real(2, 6, 4, 5), real(6), real(6), 2, 6, 20, 3, 1e-5)
call("native_group_norm", real(3, 9, 3), None, None, 3, 9, 3, 3, 1e-5)
call("native_batch_norm _native_batch_norm_legit", real(2, 3, 4, 5), real(3), real(3), *stats, False, 0.1, 1e-5)
call("native_batch_norm _native_batch_norm_legit", real(2, 3, 4), real(3), None, *stats, True, 0.0, 1e-5)
call("_native_batch_norm_legit", real(3, 3, 3), None, None, True, 0.1, 1e-5)
call("_native_batch_norm_legit_functional", real(2, 3, 4), real(3), real(3), *stats, True, 0.1, 1e-5)
qkv = real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 5)
call("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math", *qkv)
call("_scaled_dot_product_flash_attention_for_cpu", *qkv, 0.0, True)
call("_scaled_dot_product_flash_attention_for_cpu", *qkv, attn_mask=real(2, 1, 4, 6))
call("_scaled_dot_product_attention_math", *qkv, real(4, 6))
call("_scaled_dot_product_attention_math", *qkv, None, 0.0, True)
call("_scaled_dot_product_attention_math", *gqa, enable_gqa=True)
call("_scaled_dot_product_attention_math", *gqa, real(6, 4, 7), enable_gqa=True)
call("_weight_norm_interface", real(3, 4, 5), positive(3, 1, 1))
call("_weight_norm_interface", real(3, 4, 5), positive(1, 1, 5), 2)
old = [False, [0, 0], 2, False, False, False, False]
call("_convolution", real(2, 6, 5, 7), real(4, 3, 2, 3), real(4), [1, 1], [0, 0], [1, 1], *old)
call("slow_conv3d", real(2, 3, 4, 5, 4), real(6, 3, 2, 1, 3), [2, 1, 3], real(6))
call("_fft_r2c", real(2, 4, 5), [0, 2], 0, True)
call("_fft_c2r", cplx(2, 4, 5), [2], 0, 8)
call("_fft_c2c", cplx(2, 4, 5), [1], 0, True)
for dims in (1, 2, 3):
    call(f"reflection_pad{dims}d replication_pad{dims}d", real(2, 3, *(4, 5, 3)[:dims]), [1, 2] * dims)
call("reflection_pad2d replication_pad2d", real(3, 4, 5), [0, 0, 1, 2])
call("_prelu_kernel", real(2, 3, 4), real(1, 3, 1))
call("_addmm_activation", real(5), real(3, 4), real(4, 5), use_gelu=True)
call("_euclidean_dist", real(2, 3, 4), real(2, 5, 4))
call("_cdist_forward", real(2, 3, 4), real(2, 5, 4), 1.0, None)
call("native_channel_shuffle", real(2, 6, 4, 5), 3)
# reductions
for op in ("sum", "mean", "amax", "amin", "any", "all", "count_nonzero"):
    call(op, bools(3, 4) if op in ("any", "all") else real(3, 4))
    if op != "mean":
        call(op, ints(3, 3, 4, 5), 1)
call("_is_all_true _is_any_true", bools(3, 4))
for op in ("sum", "mean", "amax", "amin", "logsumexp"):
    call(op, real(3, 4, 5), [1], True)
    call(op, real(3, 4, 5), [-1, 0])
call("sum amax", real(3, 4), [])
call("prod", real(3, 4))
call("prod", real(3, 4), 1, True)
call("linalg_vector_norm", real(3, 4))
call("linalg_vector_norm", real(3, 4), 1, [-1], True)
call("norm", real(3, 4))
call("norm", real(3, 4), 2, [0])
call("linalg_norm", real(3, 4))
call("linalg_norm", real(2, 3, 4), None, [0, 2])
call("linalg_norm", real(2, 3, 4), 1, [0, 2], True)
call("linalg_norm", real(3, 4), 2)
call("linalg_norm", real(3, 4), 1, [1])
call("var std var_mean std_mean", real(3, 4))
call("var std var_mean std_mean", real(3, 4), False)
call("var std var_mean std_mean", real(3, 4), [1])
call("var std var_mean std_mean", real(3, 4, 5), [0, 2], True, True)
call("var std var_mean std_mean", real(3, 4), [1], correction=0, keepdim=True)
call("aminmax", real(3, 4))
call("aminmax", real(3, 4), dim=1, keepdim=True)
call("histc", real(3, 4), 5, -1, 1)
call("bincount", torch.tensor([0, 3, 3, 1]), real(4))
call("bincount", torch.tensor([0, 3, 3, 1]), None, 6)
# order along an axis
call("cumsum cumprod logcumsumexp cummax cummin", real(3, 4, 5), 1)
call("cumsum", real(3, 3), -1)
call("diff", real(3, 4, 5))
call("diff", real(3, 4, 5), 1, 0)
call("flip", real(3, 4, 5), [1])
call("flip", real(3, 4, 5), [0, -1])
call("roll", real(3, 4, 5), [1], [1])
call("roll", real(3, 4, 5), [1, 2], [0, 2])
call("roll", real(3, 4), [1])
call("unfold", real(3, 4, 5), 1, 2, 1)
call("linalg_cross", real(3, 4), real(3, 4), dim=0)
call("linalg_cross", real(4, 3), real(4, 3))
call("triu tril", real(2, 4, 5))
call("triu tril", real(4, 4), 1)
call("diagonal", real(4, 4))
call("diagonal", real(2, 4, 3, 4), 0, 1, -1)
call("diagonal", real(2, 4, 4), 1, 1, 2)
call("diagonal", real(4, 5))
call("diag_embed", real(3, 4))
call("diag_embed", real(3, 4), 0, 0, 2)
call("diag_embed", real(3, 4), 1)
call("diag", real(4))
call("diag", real(4, 4))
for name in ("fft", "ifft", "hfft", "irfft", "fft2", "ifft2", "irfft2", "fftn", "ifftn", "irfftn", "hfft2", "hfftn"):
    call(f"fft_{name}", cplx(2, 4, 5))
for name in ("rfft", "ihfft", "rfft2", "rfftn", "ihfft2", "ihfftn"):
    call(f"fft_{name}", real(2, 4, 5))
call("fft_fft", real(2, 4, 5), 3, 1)
call("fft_rfft2", real(4, 2, 5), None, [0, 2])
call("fft_fftn", real(2, 4, 5), None, [1])
call("fft_fftshift fft_ifftshift", real(3, 4))
call("fft_fftshift fft_ifftshift", real(3, 4), [1])
call("view_as_real", cplx(3, 4))
call("view_as_complex", real(3, 4, 2))
# images
for dims in (1, 2, 3):
    image = (6, 7, 8)[:dims]
    call(f"avg_pool{dims}d max_pool{dims}d", real(2, 3, *image), [2] * dims)
    call(f"avg_pool{dims}d max_pool{dims}d", real(2, 3, *image), [3], [1], [1])
    call(f"avg_pool{dims}d max_pool{dims}d", real(3, *image), list(image), [], 0)
    call(f"avg_pool{dims}d max_pool{dims}d", real(2, 3, *image), [1], [1])
    call(f"avg_pool{dims}d max_pool{dims}d", real(2, 3, *image), [1], [2])
    call(f"max_pool{dims}d_with_indices", real(2, 3, *image), [2] * dims)
    call(f"max_pool{dims}d_with_indices", real(2, 3, *image), list(image))
    call(f"adaptive_avg_pool{dims}d adaptive_max_pool{dims}d", real(2, 3, *image), [2] * dims)
    call(f"adaptive_avg_pool{dims}d adaptive_max_pool{dims}d", real(2, 3, *image), [1] * dims)
    call(f"adaptive_avg_pool{dims}d adaptive_max_pool{dims}d", real(3, *image), [*image[:-1], 1])
    call(f"_upsample_nearest_exact{dims}d upsample_nearest{dims}d", real(2, 3, *image), None, [2.0] * dims)
call("avg_pool2d", real(2, 3, 4, 5), [4, 2])
call("max_pool2d", real(2, 3, 4, 5), [1, 5])
call("max_unpool2d", real(2, 3, 2, 1), torch.tensor([0, 8]).expand(2, 3, 2)[..., None], [3, 4])
places = torch.tensor([0, 8]).expand(2, 2, 2)[..., None, None]
call("max_unpool3d", real(2, 2, 2, 1, 1), places, [3, 4, 2], [1] * 3, [0] * 3)
call("upsample_linear1d", real(2, 3, 4), [7], False, None)
call("upsample_bilinear2d upsample_bicubic2d", real(2, 3, 4, 5), [7, 3], False, None)
call("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", real(2, 3, 4, 5), [3, 6], False, None)
call("upsample_trilinear3d", real(2, 3, 4, 5, 2), [7, 6, 3], True, None)
grid = 2 * torch.rand(2, 6, 7, 2, generator=_random, dtype=torch.float64) - 1
call("grid_sampler grid_sampler_2d", real(2, 3, 4, 5), grid, 0, 0, False)
call("pixel_shuffle", real(2, 12, 3, 5), 2)
call("pixel_unshuffle", real(2, 3, 4, 6), 2)
call("channel_shuffle", real(2, 6, 4), 3)
call("im2col", real(2, 3, 4, 5), [2, 3], [1, 1], [0, 0], [1, 1])
call("im2col", real(3, 4, 5), [2, 2], [1, 1], [1, 1], [1, 1])
call("col2im", real(2, 18, 6), [4, 4], [2, 3], [1, 1], [0, 0], [1, 1])
# lookups
call("embedding", real(6, 4), ints(6, 2, 3))
call("embedding", real(6, 3), ints(6, 3, 3), 0)
call("embedding_bag", real(6, 4), ints(6, 5), torch.tensor([0, 2]), False, 1)
bags = torch.tensor([0, 3, 1, 5, 2]), torch.tensor([0, 2])
call("embedding_bag", real(6, 4), *bags, False, 0, False, real(5), False, -1)
call("one_hot", ints(4, 2, 3), 4)
call("index", real(5, 3, 4), [ints(5, 2, 6)])
call("index", real(3, 5, 4), [None, ints(5, 6)])
call("index", real(2, 5, 6, 3), [None, ints(5, 7, 4), ints(6, 4)])
call("index", real(5, 2, 6, 3), [ints(5, 7), None, ints(6, 7)])
call("index", real(3, 5, 4), [None, torch.tensor(2)])
call("index_select", real(3, 5, 4), 1, ints(5, 6))
call("index_select", real(3, 5, 4), -1, torch.tensor(2))
call("gather", real(3, 5, 4), 1, ints(5, 3, 6, 4))
call("gather", real(3, 5, 4), -1, ints(4, 2, 5, 6))
call("nonzero", bools(4, 5))
call("nonzero", bools(6))
call("masked_select", real(4, 5), bools(4, 5))
call("masked_select", real(4, 5), torch.tensor([True, False, True, True, False]))
call("masked_scatter", real(4, 5), bools(4, 5), real(20))
call("masked_scatter", real(4, 5), bools(4, 5), real(4, 6))
call("index_add", real(3, 5, 4), 1, torch.tensor([0, 3, 0]), real(3, 3, 4), alpha=0.5)
call("index_put", real(5, 3, 4), [torch.tensor([1, 3, 1])], real(3, 3, 4), True)
call("index_put", real(5, 3, 4), [torch.tensor([1, 3, 1])], real(3, 3, 4))
call("index_put", real(3, 5, 4), [None, torch.tensor([1, 3])], real(4), True)
call("index_put", real(3, 5, 6, 4), [None, torch.tensor([[1], [2], [1]]), torch.tensor([4, 0, 4])], real(3, 3, 4))
call("index_put", real(3, 5, 6, 4), [None, torch.tensor([[1], [2]]), torch.tensor([4, 0])], real(2, 2, 4), True)
call("index_put", real(5, 3, 6), [torch.tensor([1, 2, 1]), None, torch.tensor([4, 0, 4])], real(3, 3))
call("index_put", real(3, 4, 2), [torch.eye(4, dtype=torch.bool)[:3]], real())
call("index_put", real(2, 3, 4), [None, torch.eye(4, dtype=torch.bool)[:3]], real(3))
call("_unsafe_index", real(3, 5, 4), [None, ints(5, 6)])
call("_unsafe_index_put", real(5, 3, 4), [torch.tensor([1, 3, 1])], real(3, 3, 4))
call("take_along_dim", real(3, 5, 4), ints(5, 3, 6, 4), 1)
call("take_along_dim", real(3, 5, 4), ints(5, 1, 6, 4), 1)
call("take_along_dim", real(5), ints(5, 6))
call("take_along_dim", real(5, 2), ints(10, 6))
twice = torch.tensor([[0, 3, 0], [1, 4, 1]])
call("scatter", real(2, 5), 1, twice, real(2, 3))
call("scatter", real(2, 5), 1, twice, 0.5)
call("scatter", real(2, 5), -1, twice, real(2, 3), reduce="add")
call("scatter", real(3, 5), 1, twice, real(2, 4))
call("scatter_add", real(2, 5), 1, twice, real(2, 3))
call("scatter_add", real(3, 5, 4), 1, ints(5, 3, 6, 4), real(3, 6, 4))
for how in ("sum", "prod", "mean", "amax", "amin"):
    call("scatter_reduce", real(2, 5), 1, twice, real(2, 3), how)
    call("index_reduce", real(2, 5, 3), 1, torch.tensor([0, 3, 0]), real(2, 3, 3), how) if how != "sum" else None
call("index_copy", real(2, 5, 3), 1, torch.tensor([0, 3, 0]), real(2, 3, 3))
call("index_fill", real(2, 5, 3), 1, torch.tensor([0, 3]), 0.5)
call("index_fill", real(2, 5, 3), 1, torch.tensor([0, 3]), real())
call("gather", real(), 0, torch.tensor(0))
call("scatter_add", real(), -1, torch.tensor(0), real())
call("scatter", real(), 0, torch.tensor(0), 0.5)
call("prelu", real(2, 3, 4), real(3))
call("prelu", real(2, 3, 4), real(1))
call("glu", real(2, 6))
call("glu", real(6, 2), 0)
# linear algebra
square = real(2, 4, 4)
symmetric = square @ square.mT + torch.eye(4)
call("inverse linalg_inv linalg_inv_ex matrix_exp linalg_matrix_exp", square)
call("linalg_pinv pinverse", real(3, 4))
call("det linalg_det _linalg_det slogdet linalg_slogdet _linalg_slogdet", square)
call("logdet linalg_cholesky linalg_cholesky_ex cholesky", symmetric)
call("matrix_power linalg_matrix_power", square, 3)
call("linalg_svdvals", real(2, 3, 4))
call("linalg_eigvalsh", symmetric)
call("linalg_solve linalg_solve_ex _linalg_solve_ex", square, real(2, 4, 3))
call("linalg_solve _linalg_solve_ex", square, real(2, 4))
call("linalg_solve", square, real(2, 3, 4), left=False)
call("linalg_solve_triangular", square, real(2, 4, 3), upper=True)
call("linalg_solve_triangular", square, real(2, 3, 4), upper=False, left=False)
call("cholesky_solve", real(2, 4, 3), torch.linalg.cholesky(symmetric))
call("renorm", real(3, 4, 5), 2, 1, 1.0)
call("quantile nanquantile", real(3, 4), torch.tensor([0.2, 0.6], dtype=torch.float64), 1)
call("quantile", real(3, 4), 0.3, -1, True)
call("quantile", real(3, 4), torch.tensor(0.3, dtype=torch.float64))
call("cross", real(4, 3, 5), real(4, 3, 5))
call("cross", real(3, 4, 3), real(3, 4, 3), -1)
rising = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
call("searchsorted", rising, real(4, 5))
call("searchsorted", real(2, 3).cumsum(1), real(2, 5))
call("searchsorted", real(2, 3), real(2, 5), sorter=torch.tensor([[0, 2, 1], [1, 0, 2]]))
call("bucketize", real(4, 5), rising)
call("dist", real(3, 4), real(4))
call("pdist _pdist_forward", real(4, 3))
call("pairwise_distance", real(2, 3, 4), real(3, 4))
call("pairwise_distance", real(2, 3, 4), real(2, 3, 4), 1.0, 1e-6, True)
for reduction in (0, 1, 2):
    call("mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss", real(3, 4), real(3, 4), reduction)
    call("kl_div", real(3, 4), positive(3, 4), reduction)
    call("binary_cross_entropy", real(3, 4).sigmoid(), positive(3, 4).fmod(1), positive(3, 4), reduction)
    call("binary_cross_entropy_with_logits", real(3, 4), positive(3, 4).fmod(1), None, positive(4), reduction)
    call("nll_loss nll_loss_nd nll_loss_forward", real(3, 4), torch.tensor([0, 3, 1]), positive(4), reduction, -100)
    call("nll_loss2d nll_loss2d_forward", real(2, 4, 3, 2), ints(4, 2, 3, 2), positive(4), reduction, -100)
    call("cross_entropy_loss", real(3, 4), real(3, 4).softmax(-1), positive(4), reduction)
    call("cross_entropy_loss", real(3, 4, 2), ints(4, 3, 2), None, reduction, -100, 0.1)
call("nll_loss cross_entropy_loss", real(4), torch.tensor(2))
call("affine_grid_generator", real(2, 2, 3), [2, 1, 3, 4], False)
call("affine_grid_generator", real(2, 3, 4), [2, 1, 3, 4, 2], True)
solid = 2 * torch.rand(2, 6, 7, 2, 3, generator=_random, dtype=torch.float64) - 1
call("grid_sampler_3d", real(2, 3, 4, 5, 3), solid, 0, 0, False)
call("nansum nanmean", real(3, 4), [1], True)
call("frobenius_norm", real(3, 4), [1])
call("linalg_matrix_norm", real(2, 3, 4))
call("linalg_matrix_norm", real(2, 3, 4), "nuc", [0, 2], True)
call("detach_copy alias_copy lift", real(2, 3))
# recurrent cells
for op, gates in (("gru_cell", 3), ("rnn_tanh_cell", 1), ("rnn_relu_cell", 1)):
    call(op, real(2, 3), real(2, 4), real(gates * 4, 3), real(gates * 4, 4), real(gates * 4), real(gates * 4))
    call(op, real(3, 3), real(3, 3), real(gates * 3, 3), real(gates * 3, 3))
call("lstm_cell", real(2, 3), [real(2, 4), real(2, 4)], real(16, 3), real(16, 4), real(16), real(16))
call("lstm_cell", real(3, 3), [real(3, 3), real(3, 3)], real(12, 3), real(12, 3))

NOT_CALLED: dict[str, str] = {
    "aten._grouped_mm": "no float64; see test_positions.py",
    "aten.pin_memory": "needs an accelerator",
    "aten.mkldnn_rnn_layer": "no float64; see lstm",
}
"""Rows without an example, with the reason."""

IDS = [f"{example.op}-{index}" for index, example in enumerate(EXAMPLES)]

# --------------------------------------------------------------------------------- the notation, read independently

Key = str | tuple[str, int, int]
"""A factor: its name, the place of a further axis (``...``), or the place of a pinned axis."""


@dataclass(frozen=True)
class Leaf:
    """A factor in one axis of one tensor: for each position of the axis, whether it is there and with which unit."""

    key: Key
    axis: int
    stride: int
    there: np.ndarray
    unit: np.ndarray


@dataclass(frozen=True)
class Layout:
    shape: tuple[int, ...]
    leaves: tuple[Leaf, ...]


class Reading:
    """A row applied to an example: which factors stand where, in operands, results and inside."""

    def __init__(self, example: Example, row: str | None = None) -> None:
        self.example = example
        self.signature: Signature = parse(row or example.row())
        self.tensors = example.tensors()
        if str(self.signature) == "... -> ...":  # the first operand decides; others have the same axes or none
            self.signature = Signature(self.signature.operands * len(self.tensors), (), self.signature.results)
        self.results = example.run(self.tensors)[: len(self.signature.results)]
        self.sizes: dict[Key, int] = {}
        self.pins: list[Key] = []
        assert len(self.signature.operands) == len(self.tensors)
        expanded = [self._expand(p, t.shape) for p, t in zip(self.signature.operands, self.tensors, strict=True)]
        for _ in range(3):
            for pattern, tensor in zip(expanded, self.tensors, strict=True):
                for term, size in zip(pattern, tensor.shape, strict=True):
                    self._solve(term, size)
        self.operands = [
            self._layout(pattern, tuple(tensor.shape), i)
            for i, (pattern, tensor) in enumerate(zip(expanded, self.tensors, strict=True))
        ]
        self.operand_pins = [pin for pin in self.pins if self.sizes[pin] > 1]
        self.outputs = [
            self._layout(self._expand(pattern, tensor.shape), tuple(tensor.shape), len(self.operands) + i)
            for i, (pattern, tensor) in enumerate(zip(self.signature.results, self.results, strict=True))
        ]
        self.inside = [self._inner(pattern) for pattern in self.signature.intermediates]
        implied = implied_intermediate(self.signature)
        if implied is not None:
            # Once without the pinned axes: nothing varies along them; and once with them: where elsewhere in a model a
            # pinned axis is made one with a name, it stands there twice, and so nothing varies along that name either.
            inner = self._inner(implied)
            self.inside.append(inner)
            pins = [pin for pin in self.pins if self.sizes[pin] > 1]
            shape = (*inner.shape, *(self.sizes[pin] for pin in pins))
            extra = [Leaf(pin, len(inner.shape) + i, 1, *self._everywhere(pin)) for i, pin in enumerate(pins)]
            self.inside.append(Layout(shape, (*inner.leaves, *extra)))
        every = [term for pattern in expanded for term in pattern]
        self.pinned_names = sorted({name.name for term in every for name in _names(term) if name.pinned})

    def _everywhere(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(self.sizes[key], bool), np.arange(self.sizes[key])

    def _expand(self, pattern: Pattern, shape: Sequence[int]) -> Pattern:
        """Write ``...`` as one name for each further axis, counted from the right."""
        if Rest() not in pattern:
            assert len(pattern) == len(shape)
            return pattern
        place, count = pattern.index(Rest()), len(shape) - len(pattern) + 1
        rest = tuple(Name(f"~{i}") for i in range(count, 0, -1))
        return pattern[:place] + rest + pattern[place + 1 :]

    def _inner(self, pattern: Pattern) -> Layout:
        count = max((int(str(key)[1:]) for key in self.sizes if str(key)[0] == "~"), default=0)
        shape = [1] * (len(pattern) - (Rest() in pattern) + count * (Rest() in pattern))
        expanded = self._expand(pattern, shape)
        return self._layout(expanded, tuple(self._size(term) or 1 for term in expanded), -1)

    def _size(self, term: Notation) -> int | None:
        if isinstance(term, Name):
            return self.sizes.get(term.name)
        if isinstance(term, Pinned):
            return term.size
        assert isinstance(term, (Product, Sum))
        sizes = [self._size(inner) for inner in term.terms]
        known = [size for size in sizes if size is not None]
        return None if len(known) < len(sizes) else int(np.prod(known)) if isinstance(term, Product) else sum(known)

    def _solve(self, term: Notation, size: int) -> None:
        if isinstance(term, Name):
            declared = term.size or size
            self.sizes[term.name] = max(declared, self.sizes.get(term.name, 1))
        elif isinstance(term, (Product, Sum)):
            for inner in term.terms:
                if isinstance(inner, Name) and inner.size is not None:
                    self._solve(inner, inner.size)
            unknown = {inner for inner in term.terms if self._size(inner) is None}
            known = [n for n in map(self._size, term.terms) if n is not None]
            if len(unknown) == 1:
                count = sum(inner in unknown for inner in term.terms)
                rest = size // int(np.prod(known)) if isinstance(term, Product) else (size - sum(known)) // count
                self._solve(unknown.pop(), rest)

    def _layout(self, pattern: Pattern, shape: tuple[int, ...], tensor: int) -> Layout:
        leaves = []
        for axis, (term, size) in enumerate(zip(pattern, shape, strict=True)):
            for key, stride, there, unit in self._leaves(term, size, tensor):
                if self.sizes[key] > 1 and len(there) > 1:
                    leaves.append(Leaf(key, axis, stride, there, unit))
        return Layout(shape, tuple(leaves))

    def _leaves(self, term: Notation, size: int, tensor: int) -> Iterator[tuple[Key, int, np.ndarray, np.ndarray]]:
        places = np.arange(size)
        everywhere = np.ones(size, bool)
        if isinstance(term, Name):
            yield term.name, 1, everywhere, places
        elif isinstance(term, Pinned):
            assert term.size in (None, size)
            key = ("_", tensor, len(self.pins))
            self.pins.append(key)
            self.sizes[key] = size
            yield key, 1, everywhere, places
        elif isinstance(term, Product):
            sizes = [self._size(inner) or 1 for inner in term.terms]
            assert np.prod(sizes) == size
            for i, inner in enumerate(term.terms):
                row = int(np.prod(sizes[i + 1 :], initial=1))
                digit = places // row % sizes[i]
                for key, stride, there, unit in self._leaves(inner, sizes[i], tensor):
                    yield key, stride * row, there[digit], unit[digit]
        elif isinstance(term, Sum):
            sizes = [self._size(inner) or 1 for inner in term.terms]
            assert sum(sizes) == size
            start = 0
            for inner, length in zip(term.terms, sizes, strict=True):
                here = (places >= start) & (places < start + length)
                digit = np.where(here, places - start, 0)
                for key, stride, there, unit in self._leaves(inner, length, tensor):
                    yield key, stride, there[digit] & here, unit[digit]
                start += length

    # --- permutations

    def merged(self, a: Key, b: Key) -> Reading:
        """The same row where two factors are one."""
        other = object.__new__(Reading)
        other.__dict__ |= self.__dict__

        def rename(layout: Layout) -> Layout:
            leaves = (Leaf(a if x.key == b else x.key, x.axis, x.stride, x.there, x.unit) for x in layout.leaves)
            return Layout(layout.shape, tuple(leaves))

        for side in ("operands", "outputs", "inside"):
            setattr(other, side, [rename(layout) for layout in getattr(self, side)])
        return other

    def keys(self) -> list[Key]:
        return list(dict.fromkeys(leaf.key for layout in self.operands + self.outputs for leaf in layout.leaves))

    def holds(self, tables: dict[Key, np.ndarray], over: Key | None = None) -> bool:
        """Tell whether the operation on permuted operands gives the permuted results."""
        operands = [_permute(t, layout, tables, over) for t, layout in zip(self.tensors, self.operands, strict=True)]
        expected = [_permute(t, layout, tables, over) for t, layout in zip(self.results, self.outputs, strict=True)]
        try:
            found = self.example.run(operands)[: len(expected)]
        except RuntimeError:  # such as offsets that do not rise
            return False
        return all(torch.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in zip(found, expected, strict=True))

    def varies(self, key: Key, over: Key) -> tuple[bool, bool]:
        """Tell whether ``key`` can be permuted along ``over`` in all operands and results, and whether it may be."""

        def present(layouts: Sequence[Layout]) -> bool:
            found = ((layout, leaf) for layout in layouts for leaf in layout.leaves if leaf.key == key)
            return all(_position(layout, leaf, over)[1] for layout, leaf in found)

        return present(self.operands + self.outputs), present(self.inside)


def _names(term: Notation) -> Iterator[Name]:
    if isinstance(term, Name):
        yield term
    elif isinstance(term, (Product, Sum)):
        for inner in term.terms:
            yield from _names(inner)


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _position(layout: Layout, leaf: Leaf, over: Key) -> tuple[np.ndarray, bool]:
    """The position of ``over`` wherever a factor stands, and whether it is unambiguous everywhere."""
    ndim = len(layout.shape)
    counts, units = [], []
    for own in (True, False):
        count, unit = np.zeros([1] * ndim, int), np.zeros([1] * ndim, int)
        for other in layout.leaves:
            if other.key == over and (other.axis == leaf.axis or not own) and other is not leaf:
                count = count + _along(other.there, other.axis, ndim)
                unit = unit + _along(np.where(other.there, other.unit, 0), other.axis, ndim)
        counts.append(count)
        units.append(unit)
    position = np.where(counts[0] == 1, units[0], units[1])
    clear = (counts[0] == 1) | (counts[1] == 1) | ~_along(leaf.there, leaf.axis, ndim)
    return position, bool(clear.all())


def _permute(tensor: Tensor, layout: Layout, tables: dict[Key, np.ndarray], over: Key | None) -> Tensor:
    """Permute a tensor; a table of two axes has one permutation for each position of ``over``."""
    ndim = len(layout.shape)
    places = [_along(np.arange(n), axis, ndim) for axis, n in enumerate(layout.shape)]
    for leaf in layout.leaves:
        if leaf.key in tables:
            table, unit = tables[leaf.key], _along(leaf.unit, leaf.axis, ndim)
            new = table[unit] if over is None else table[_position(layout, leaf, over)[0], unit]
            places[leaf.axis] = places[leaf.axis] + np.where(
                _along(leaf.there, leaf.axis, ndim), leaf.stride * (new - unit), 0
            )
    if not ndim:
        return tensor
    return tensor[tuple(torch.from_numpy(np.broadcast_to(place, layout.shape).copy()) for place in places)]


def draws(size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Permutations, none of them the identity, the first ones moving everything."""
    rng = np.random.default_rng(seed)
    found = [np.roll(np.arange(size), 1), np.arange(size)[::-1]]
    while len(found) < count:
        found.append(rng.permutation(size))
    return [table for table in found if (table != np.arange(size)).any()][:count]


# -------------------------------------------------------------------------------------------------- rows


def test_every_row_has_an_example() -> None:
    covered = {example.op for example in EXAMPLES} | set(NOT_CALLED)
    builtin = {name for name in SIGNATURES if name.startswith("aten.")}  # other tests register operations of their own
    assert builtin - covered == set(), "add an example call to EXAMPLES"
    assert covered - builtin == set()


def forms(op: str) -> Iterator[Any]:
    """The schemas of an operation: with tensors in and out, and without a place to write to."""
    packet = getattr(torch.ops.aten, op.removeprefix("aten."))
    for schema in (getattr(packet, overload)._schema for overload in packet.overloads()):
        tensors = ["Tensor" in str(argument.type) for argument in (*schema.arguments[:1], *schema.returns[:1])]
        if all(tensors) and len(tensors) == 2 and not any(argument.is_out for argument in schema.arguments):
            yield schema


ROWS = {name: row for name, row in {**SIGNATURES, **rules._POSITIONS}.items() if not isinstance(row, str)}


@pytest.mark.parametrize("op", [name for name in ROWS if name.startswith("aten.")])
def test_every_row_takes_the_arguments_of_its_operation(op: str) -> None:
    """A recorded call has all arguments in their places, and by name what can only be given by name."""
    first = [None] if op in rules._POSITIONS and ROWS[op] is rules._POSITIONS[op] else []
    faults = []
    for schema in forms(op):
        named = {argument.name: None for argument in schema.arguments if argument.kwarg_only}
        placed = [None for argument in schema.arguments if not argument.kwarg_only]
        try:
            inspect.signature(ROWS[op]).bind(*first, *placed, **named)
        except TypeError as error:
            faults += [f"{schema}: {error}"] if schema.overload_name not in OTHER_FORMS.get(op, ()) else []
    assert not faults


OTHER_FORMS = {"aten.einsum": ("sublist",)}
"""Overloads that a row does not stand for."""


def unsound(reading: Reading) -> Iterator[str]:
    """One random permutation for each factor, everywhere at once."""
    pinned = {*reading.pins, *reading.pinned_names}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        tables = {key: rng.permutation(reading.sizes[key]) for key in reading.keys() if key not in pinned}
        if not reading.holds(tables):
            yield "not sound"


def too_strict(reading: Reading) -> Iterator[str]:
    """Permutations of a pinned axis, alone or together with other pinned axes of its size, that change nothing."""
    pins = reading.operand_pins + [name for name in reading.pinned_names if reading.sizes[name] > 1]
    everywhere = [*dict.fromkeys([*pins, *(key for key in reading.pins if reading.sizes[key] > 1)])]
    for pin in pins:
        others = [key for key in everywhere if key != pin and reading.sizes[key] == reading.sizes[pin]]
        for count in range(len(others) + 1):
            for together in itertools.combinations(others, count):
                tables = draws(reading.sizes[pin], 4)
                if all(reading.holds({key: table for key in (pin, *together)}) for table in tables):
                    yield f"{pin} may be permuted" + (f" with {together}" if count else "")


def against_presence(reading: Reading) -> Iterator[str]:
    """Permutations that differ along another factor, and are sound if the row forbids them, or unsound if not."""
    keys = reading.keys()
    equal = [(a, b) for a, b in itertools.combinations(keys, 2) if reading.sizes[a] == reading.sizes[b]]
    pinned = {*reading.pins, *reading.pinned_names}
    for merge in [None, *equal]:
        # If one of the two is pinned then both are.
        a, b = sorted(merge, key=lambda key: key not in pinned) if merge else (None, None)
        case = reading.merged(a, b) if merge else reading
        for key, over in itertools.permutations(case.keys(), 2):
            if key in pinned or (merge and a not in (key, over)):
                continue
            possible, allowed = case.varies(key, over)
            if possible:
                rng = np.random.default_rng(0)
                table = np.stack([rng.permutation(reading.sizes[key]) for _ in range(reading.sizes[over])])
                table[:2] = np.arange(reading.sizes[key]), np.roll(np.arange(reading.sizes[key]), 1)
                holds = case.holds({key: table}, over)
                if allowed and not holds:
                    yield f"{key} along {over}{f' where {a} is {b}' if merge else ''} is allowed, but not sound"
                elif holds and not allowed and not merge and over not in pinned:
                    yield f"{key} along {over} is sound, but forbidden"


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_row_is_sound(example: Example) -> None:
    reading = Reading(example)
    assert not [*unsound(reading)], reading.signature


_MASK = "an index of several axes may be a mask, and then pins all that it covers"
TOO_STRICT = {"_ _ _, _ _,  -> _ _ _": _MASK, "_ _ _, _ _, _ -> _ _ _": _MASK}
"""Rows with pinned axes that may be permuted all the same, and why they have no names there."""


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_row_is_tight(example: Example) -> None:
    if example.row() not in TOO_STRICT:
        reading = Reading(example)
        assert not [*too_strict(reading)], reading.signature


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_row_obeys_the_law_of_presence(example: Example) -> None:
    reading = Reading(example)
    assert not [*against_presence(reading)], reading.signature


@pytest.mark.parametrize(
    ("check", "wrong", "example"),
    [
        (unsound, "a k, b -> a", Example("aten.mv", (real(3, 4), real(4)), {})),
        (unsound, "a b -> a b", Example("aten.cumsum", (real(3, 4), 1), {})),
        (
            unsound,
            "b (i g=2) _, (g o) i _ -> b (g o) _",
            Example("aten.conv1d", (real(2, 6, 5), real(8, 3, 2), None, [1], [0], [1], 2), {}),
        ),
        (too_strict, "a _ -> a _", Example("aten.softmax", (real(3, 4), 1), {})),
        (too_strict, "a! b -> a! b", Example("aten.relu", (real(3, 4),), {})),
        (too_strict, "_ k, k b -> _ b", Example("aten.mm", (real(3, 4), real(4, 5)), {})),
        (too_strict, "(2 a) -> (2 a)", Example("aten.relu", (real(6),), {})),
        (against_presence, "a b -> a b", Example("aten.softmax", (real(3, 4), 1), {})),
        (against_presence, "a b -> b -> a b", Example("aten.softmax", (real(3, 4), 1), {})),
        (against_presence, "a b -> a, b -> a b", Example("aten.softmax", (real(3, 4), 1), {})),
        (against_presence, "... c -> ... c", Example("aten.layer_norm", (real(3, 4, 5), [5]), {})),
        (against_presence, "b (g=3 c) -> b (g c)", Example("aten.group_norm", (real(2, 6), 3), {})),
        (against_presence, "b (g=3 c) -> b g -> b (g c)", Example("aten.group_norm", (real(3, 9), 3), {})),
    ],
    ids=lambda value: getattr(value, "op", None) or getattr(value, "__name__", None) or value,
)
def test_the_checks_find_a_wrong_row(check: Callable[[Reading], Iterator[str]], wrong: str, example: Example) -> None:
    assert [*check(Reading(example, wrong))]


# ------------------------------------------------------------------------------------------ rules that work on terms

Draw = Callable[[st.SearchStrategy[Any]], Any]
Step = Callable[[Draw, tuple[int, ...]], str]

STEPS: dict[str, Step] = {}
"""Draw one step of a program: an expression in ``h``, for a value of a given shape."""


def step(function: Step) -> Step:
    STEPS[function.__name__.removesuffix("_")] = function
    return function


def axis_of(draw: Draw, shape: tuple[int, ...]) -> int:
    return draw(st.integers(0, len(shape) - 1))


def bounds(draw: Draw, size: int) -> tuple[int, int]:
    start = draw(st.integers(0, size - 1))
    return start, draw(st.integers(start + 1, size))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@step
def view(draw: Draw, shape: tuple[int, ...]) -> str:
    """Any shape of as many elements."""
    rest, sizes = int(np.prod(shape)), []
    while rest > 1 and len(sizes) < 4:
        sizes.append(draw(st.sampled_from(divisors(rest)[1:])))
        rest //= sizes[-1]
    return f"h.reshape({', '.join(map(str, [*sizes, rest]))})"


@step
def unflatten(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    return f"h.unflatten({dim}, ({draw(st.sampled_from(divisors(shape[dim])))}, -1))"


@step
def flatten(draw: Draw, shape: tuple[int, ...]) -> str:
    return f"h.flatten({draw(st.integers(-len(shape), -1))})"


@step
def permute(draw: Draw, shape: tuple[int, ...]) -> str:
    return f"h.permute({draw(st.permutations(range(len(shape))))})"


@step
def transpose(draw: Draw, shape: tuple[int, ...]) -> str:
    return f"h.{draw(st.sampled_from(['transpose', 'swapaxes', 'movedim']))}({axis_of(draw, shape)}, -1)"


@step
def squeeze(draw: Draw, shape: tuple[int, ...]) -> str:
    gone = draw(st.sampled_from(["", "0", "(0, -1)"]))
    return f"h.unsqueeze({axis_of(draw, shape)}).transpose(0, -1).squeeze({gone})"


@step
def expand(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    sizes = [*shape[:dim], draw(st.integers(1, 3)), *shape[dim:]]
    return f"h.unsqueeze({dim}).expand({sizes})"


@step
def repeat(draw: Draw, shape: tuple[int, ...]) -> str:
    times = [draw(st.sampled_from([1, 1, 2])) for _ in shape]
    return f"h.{draw(st.sampled_from(['repeat', 'tile']))}({times})"


@step
def repeat_interleave(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    if draw(st.booleans()):
        return f"h.repeat_interleave(2, {draw(st.sampled_from([dim, dim - len(shape), None]))})"
    times = [draw(st.integers(0, 2)) for _ in range(shape[dim] - 1)] + [1]
    return f"h.repeat_interleave(torch.tensor({times}), {dim}, output_size={sum(times)})"


@step
def slice_(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    start, stop = bounds(draw, shape[dim])
    return f"h.transpose(0, {dim})[{start}:{stop}:{draw(st.sampled_from([1, 1, 2, 3]))}]"


@step
def every(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    row = draw(st.sampled_from(divisors(shape[dim])))
    return f"h.transpose(0, {dim})[{draw(st.integers(0, row - 1))}::{row}]"


@step
def select(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    return f"h.select({dim}, {draw(st.integers(-shape[dim], shape[dim] - 1))})"


@step
def narrow(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    start, stop = bounds(draw, shape[dim])
    return f"h.narrow({dim}, {start}, {stop - start})"


@step
def split(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    where = draw(st.integers(0, shape[dim]))
    how = draw(st.sampled_from([f"split([{where}, {shape[dim] - where}], {dim})", f"split({where or 1}, {dim})"]))
    return f"torch.cat(h.{how}[::-1], {dim})"


@step
def chunk(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    return f"gated(h.chunk(2, {dim}))"


@step
def unbind(draw: Draw, shape: tuple[int, ...]) -> str:
    return f"torch.stack(h.unbind({axis_of(draw, shape)})[::-1], {draw(st.sampled_from([0, -1]))})"


@step
def cat(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    others = ["h", "h.tanh()", "torch.zeros_like(h)", f"h.flip({dim})", f"h.narrow({dim}, 0, {axis_of(draw, (1, 1))})"]
    return f"torch.cat([h, {draw(st.sampled_from(others))}], {dim})"


@step
def stack(draw: Draw, shape: tuple[int, ...]) -> str:
    return f"torch.stack([h, {draw(st.sampled_from(['h', 'h.tanh()', '-h.roll(1, 0)']))}], {axis_of(draw, shape)})"


@step
def pad(draw: Draw, shape: tuple[int, ...]) -> str:
    mode = draw(st.sampled_from(["constant", "constant", "circular"])) if len(shape) in (2, 3) else "constant"
    low = -1 if mode == "constant" and shape[-1] > 2 else 0
    return f"F.pad(h, {[draw(st.integers(low, 1)), draw(st.integers(low, 1))]}, '{mode}')"


@step
def assign_slice(draw: Draw, shape: tuple[int, ...]) -> str:
    start, stop = bounds(draw, shape[-1])
    return f"assigned(h, slice({start}, {stop}, {draw(st.sampled_from([1, 2, 3]))}))"


@step
def assign_every(draw: Draw, shape: tuple[int, ...]) -> str:
    row = draw(st.sampled_from(divisors(shape[-1])))
    return f"assigned(h, slice({draw(st.integers(0, row - 1))}, None, {row}))"


@step
def assign_one(draw: Draw, shape: tuple[int, ...]) -> str:
    return f"assigned(h, {draw(st.integers(0, shape[-1] - 1))})"


@step
def largest(draw: Draw, shape: tuple[int, ...]) -> str:
    how = draw(st.sampled_from(["max", "min", "median"]))
    return f"extreme(h.{how}({axis_of(draw, shape)}, {draw(st.booleans())}), {draw(st.booleans())})"


@step
def meet(draw: Draw, shape: tuple[int, ...]) -> str:
    """Make axes equal that have been made different."""
    return f"torch.add(*torch.broadcast_tensors(h, {draw(st.sampled_from(['h.flip(0)', 'h[:1]', 'mixed(h)']))}))"


@step
def weigh(draw: Draw, shape: tuple[int, ...]) -> str:
    """Multiply with a parameter that has some of the axes."""
    return f"h * weight({[size if draw(st.booleans()) else 1 for size in shape]})"


@step
def reduce(draw: Draw, shape: tuple[int, ...]) -> str:
    dim = axis_of(draw, shape)
    how = draw(st.sampled_from(["softmax({})", "sum({})", "cumsum({})", "logsumexp({}, True)"]))
    return f"h.{how.format(dim)}"


def gated(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] * parts[-1].tanh() if parts[0].shape == parts[-1].shape else parts[0]


def assigned(h: Tensor, where: slice | int) -> Tensor:
    h = h.clone()
    h[..., where] = h[..., where].tanh()
    return h


def extreme(found: tuple[Tensor, Tensor], places: bool) -> Tensor:
    return found[0] * (1 + found[1]) if places else found[0]


def mixed(h: Tensor) -> Tensor:
    """Axes of equal length change places."""
    for i, j in itertools.combinations(range(h.ndim), 2):
        if h.shape[i] == h.shape[j]:
            return h.transpose(i, j)
    return h.tanh()


SCOPE = {
    "torch": torch, "F": nn.functional, "gated": gated, "assigned": assigned, "extreme": extreme, "mixed": mixed,
}  # fmt: skip


class Program(nn.Module):
    """Two dense layers, and between them steps that rearrange the hidden units."""

    def __init__(self, width: int, steps: Sequence[str]) -> None:
        super().__init__()
        self.steps = steps
        self.weights = nn.ParameterList()
        self.first = nn.Linear(3, width, dtype=torch.float64)
        size = self.between(torch.ones(2, 3, dtype=torch.float64), self.new_weight).numel()
        self.last = nn.Linear(size, 2, dtype=torch.float64)

    def new_weight(self, shape: list[int]) -> Tensor:
        self.weights.append(nn.Parameter(torch.randn(shape, dtype=torch.float64)))
        return self.weights[-1]

    def between(self, x: Tensor, weight: Callable[[list[int]], Tensor]) -> Tensor:
        h = self.first(x)
        for expression in self.steps:
            h = eval(expression, SCOPE, {"h": h, "weight": weight})
        return h

    def forward(self, x: Tensor) -> Tensor:
        weights = iter(self.weights)
        return self.last(self.between(x, lambda _: next(weights)).flatten())


@st.composite
def programs(draw: Draw, first: Sequence[str] | None = None) -> tuple[int, list[str]]:
    width = draw(st.sampled_from([4, 6, 8, 12]))
    h, steps = torch.zeros(2, width), []
    for _ in range(draw(st.integers(2, 6))):
        name = draw(st.sampled_from(first if first is not None and not steps else list(STEPS)))
        if h.ndim == 0:
            break
        expression = STEPS[name](draw, tuple(h.shape))
        new = eval(expression, SCOPE, {"h": h, "weight": torch.zeros})
        if 0 < new.numel() <= 200 and new.ndim <= 6:
            h = new
            steps.append(expression)
    return width, steps


def quick(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


def check_program(program: tuple[int, Sequence[str]]) -> autoperm.PermutationSpec:
    torch.manual_seed(0)
    model, x = Program(*program), torch.randn(2, 3, dtype=torch.float64)
    spec = autoperm.discover(model, x)
    spec.verify(model, (x,), tolerance=1e-9)
    return spec


@quick(25)
@given(programs())
def test_any_program_of_shape_operations_is_sound(program: tuple[int, list[str]]) -> None:
    check_program(program)


KNOWN: list[tuple[Sequence[str], list[tuple[int, int]]]] = [
    # Eight hidden units, and which of them may be permuted: (size, copies)
    (["h.tanh()"], [(8, 1)]),
    (["h.unflatten(1, (2, 4)).transpose(1, 2)"], [(2, 1), (4, 2)]),
    (["h.view_as(torch.zeros(2, 2, 4)).transpose(1, 2)"], [(2, 1), (4, 2)]),
    (["h.unflatten(1, (2, 4)).max(2)[0]"], [(2, 1), (4, 2)]),
    (["extreme(h.unflatten(1, (2, 4)).max(2), True)"], [(2, 1)]),
    (["h.unflatten(1, (2, 4)).median(1)[0]"], [(2, 4), (4, 1)]),
    (["gated(h.chunk(2, 1))"], [(4, 1)]),
    (["h[:, 2:6]"], [(2, 1), (2, 1), (4, 1)]),
    (["h[:, ::2]"], [(4, 1), (4, 1)]),
    (["h.split([3, 5], 1)[1]"], [(3, 1), (5, 1)]),
    (["torch.cat([h.narrow(1, 3, 5), h.narrow(1, 0, 3)], 1)"], [(3, 1), (5, 1)]),
    (["torch.cat([h, h.tanh()], 1)"], [(8, 1)]),
    (["torch.cat([h, h[:, :0]], 1)"], [(8, 1)]),
    (["torch.stack([h, h.tanh()], 2)"], [(8, 1)]),
    (["torch.stack(h.unflatten(1, (2, 4)).unbind(1)[::-1], 2)"], [(4, 1), (4, 1)]),
    (["assigned(h, slice(1, 5))"], [(4, 1), (3, 1)]),
    (["assigned(h, slice(0, None, 2))"], [(4, 1), (4, 1)]),
    (["assigned(h, 7)"], [(7, 1)]),
    (["F.pad(h, [1, 0])"], [(8, 1)]),
    (["F.pad(h, [-3, 0])"], [(3, 1), (5, 1)]),
    (["F.pad(h[None], [1, 1], 'circular')"], []),
    (["torch.where(h > 0, h, torch.zeros(()))"], [(8, 1)]),
    (["h.flip(1)", "h + h.roll(1, 1)"], []),
]


@pytest.mark.parametrize(("steps", "groups"), KNOWN, ids=[steps[0] for steps, _ in KNOWN])
def test_shape_operations_lose_nothing(steps: Sequence[str], groups: list[tuple[int, int]]) -> None:
    spec = check_program((8, steps))
    hidden = {name for name in autoperm.signature.names(spec.patterns["first.bias"])}
    assert sorted((f.size, spec.copies(f)) for f in spec.free if f.name in hidden) == sorted(groups)


class Between(nn.Module):
    """Something between two dense layers; ``take`` reads its output."""

    def __init__(self, inner: nn.Module, width: int, take: Callable[[Any], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.first, self.inner, self.take = nn.Linear(3, 6), inner, take
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.take(self.inner(self.first(x))))


def groups_of(model: nn.Module, x: Tensor) -> list[tuple[int, int]]:
    """Sizes and copies of the factors, all found to be sound."""
    model = model.double().eval()
    spec = autoperm.discover(model, x.double())
    assert not spec.unknown
    spec.verify(model, (x.double(),), tolerance=1e-9)
    return sorted((factor.size, spec.copies(factor)) for factor in spec.free)


@pytest.mark.parametrize(
    ("make", "per_direction"),
    [
        (nn.LSTM, [(5, 1)]),
        (nn.GRU, [(5, 1)]),
        (nn.RNN, [(5, 1)]),
        (lambda *sizes, **options: nn.LSTM(*sizes, proj_size=4, **options), [(4, 1), (5, 1)]),
    ],
)
@pytest.mark.parametrize(
    ("options", "shape", "cells"),
    [
        ({}, (7, 2, 3), 1),
        ({"num_layers": 2, "batch_first": True, "bias": False}, (2, 7, 3), 2),
        ({"bidirectional": True}, (7, 3), 2),
        ({"bidirectional": True, "num_layers": 2, "bias": False}, (7, 2, 3), 4),
    ],
)  # fmt: skip
def test_recurrent_layers(
    make: Callable[..., nn.Module],
    per_direction: list[tuple[int, int]],
    options: dict[str, Any],
    shape: tuple[int, ...],
    cells: int,
) -> None:
    inner = make(6, 5, **options)
    width = per_direction[0][0] * (2 if "bidirectional" in options else 1)
    found = groups_of(Between(inner, width, lambda y: y[0]), torch.randn(shape))
    assert found == sorted([(6, 1), *cells * per_direction])


class Learnt(nn.Module):
    """A recurrent layer whose initial states are parameters and whose final states are read."""

    def __init__(self, kind: type[nn.RNNBase], states: int) -> None:
        super().__init__()
        self.rnn = kind(6, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.states = nn.ParameterList([nn.Parameter(torch.randn(1, 5)) for _ in range(4 * states)])

    def forward(self, x: Tensor) -> Tensor:
        each = [state.expand(x.shape[0], -1) for state in self.states]
        states = tuple(torch.stack(each[i : i + 4]) for i in range(0, len(each), 4))
        output, final = self.rnn(x, states if len(states) > 1 else states[0])
        final = final if isinstance(final, tuple) else (final,)
        return torch.cat([output.mean(1), *(state.transpose(0, 1).flatten(1) for state in final)], dim=1)


@pytest.mark.parametrize(("kind", "states"), [(nn.LSTM, 2), (nn.GRU, 1)])
def test_recurrent_states(kind: type[nn.RNNBase], states: int) -> None:
    width = 10 + 20 * states
    assert groups_of(Between(Learnt(kind, states), width), torch.randn(2, 7, 3)) == [(5, 1)] * 4 + [(6, 1)]


class Loop(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("cell", [nn.LSTMCell(6, 5), nn.GRUCell(6, 5, bias=False), nn.RNNCell(6, 5)])
def test_recurrent_cells(cell: nn.Module) -> None:
    assert groups_of(Between(Loop(cell), 5), torch.randn(2, 3, 3)) == [(5, 1), (6, 1)]


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *shapes: Sequence[int]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(*shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def unpooled(x: Tensor) -> Tensor:
    pooled, places = nn.functional.max_pool1d(x[:, None], 2, return_indices=True)
    return nn.functional.max_unpool1d(pooled, places, 2)[:, 0]


F = nn.functional
AT = torch.tensor([0, 3])
BAGS = torch.tensor([[0, 2], [1, 1]])
FUNCTIONS: list[tuple[str, Function, int, list[tuple[int, int]]]] = [
    # what stands between the layers, how many units come out, and the groups (6 units come in)
    ("bilinear", Function(lambda x, w: F.bilinear(x, x.tanh(), w), (5, 6, 6)), 5, [(5, 1), (6, 1)]),
    ("tensordot", Function(lambda x, w: torch.tensordot(x, w, 1).flatten(1), (6, 4, 5)), 20, [(4, 1), (5, 4), (6, 1)]),
    ("cosine", Function(lambda x, w: torch.cosine_similarity(x[:, None], w, dim=-1), (4, 6)), 4, [(4, 1), (6, 1)]),
    ("unfold", Function(lambda x: x.unfold(1, 2, 2).flatten(1)), 6, []),
    ("diagonal", Function(lambda x, w: (x[:, :, None] * w).diagonal(dim1=1, dim2=2), (6, 6)), 6, [(6, 1)]),
    ("diag_embed", Function(lambda x: x.diag_embed().flatten(1)), 36, [(6, 1)]),
    ("norm", Function(lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True)), 6, [(6, 1)]),
    ("frobenius", Function(lambda x, w: x / torch.linalg.norm(w), (6, 6)), 6, [(6, 1), (6, 1), (6, 6)]),
    ("var_mean", Function(lambda x: torch.cat(torch.var_mean(x.unflatten(1, (3, 2)), 2), 1)), 6, [(2, 3), (3, 1)]),
    ("rms_norm", Function(lambda x, w: F.rms_norm(x, (6,), w, 1e-6), (6,)), 6, [(6, 1)]),
    ("max_unpool", Function(unpooled), 6, []),
    ("mean_pool", Function(lambda x: F.adaptive_avg_pool1d(x.unflatten(1, (2, 3)), 1)[..., 0]), 2, [(2, 1), (3, 2)]),
    ("meshgrid", Function(lambda x: torch.meshgrid(x[0], x[1], indexing="xy")[0]), 6, [(6, 1)]),
    ("embedding_bag", Function(lambda x, w: x * F.embedding_bag(BAGS, w), (3, 6)), 6, [(6, 1)]),
    (
        "conv_as_dense",
        Function(lambda x, w: F.conv1d(x.unflatten(1, (2, 3)), w).flatten(1), (5, 2, 1)),
        15,
        [(2, 1), (3, 1), (5, 1)],
    ),
    ("prelu", Function(lambda x, w: F.prelu(x, w), (6,)), 6, [(6, 1)]),
    ("index_put", Function(lambda x, w: w.index_put((AT,), x), (5, 6)), 6, [(6, 1)]),
    ("index_add", Function(lambda x, w: w.index_add(0, AT, x), (5, 6)), 6, [(6, 1)]),
]


@pytest.mark.parametrize(("name", "inner", "width", "groups"), FUNCTIONS, ids=[name for name, *_ in FUNCTIONS])
def test_functions(name: str, inner: Function, width: int, groups: list[tuple[int, int]]) -> None:
    assert groups_of(Between(inner, width), torch.randn(2, 3)) == groups


# ----------------------------------------------------------------------------------------------------- register


@pytest.fixture(autouse=True)
def _table_as_it_was() -> Iterator[None]:
    tables = (rules.SIGNATURES, rules._RULES, rules._POSITIONS)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@torch.library.custom_op("autoperm_test::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor) -> Tensor:
    return x.tanh() @ weight


@mix.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(mix(self.first(x), self.weight))


def test_an_unknown_operation_pins_and_says_what_to_paste() -> None:
    model, x = Mixing().double(), torch.randn(4, 3, dtype=torch.float64)
    spec = autoperm.discover(model, x)
    assert not spec.free
    (text,) = spec.unknown
    assert "self.last(mix(self.first(x), self.weight))" in text  # the user's own line
    assert "weight[6, 5]" in text
    code = text[text.index("autoperm.register") :]
    assert code.startswith('autoperm.register("autoperm_test.mix", "_ _, _ _ -> _ _")')
    exec(code.replace('"_ _, _ _ -> _ _"', '"b i, i o -> b o"'), {"autoperm": autoperm})
    spec = autoperm.discover(model, x)
    assert not spec.unknown
    assert sorted(factor.size for factor in spec.free) == [5, 6]
    spec.verify(model, (x,), tolerance=1e-9)


_MIX = torch.ops.autoperm_test.mix


@pytest.mark.parametrize("op", [mix, _MIX, _MIX.default, "autoperm_test::mix", "autoperm_test.mix"], ids=str)
def test_register_takes_an_operation_or_its_name(op: Any) -> None:
    autoperm.register(op, "b i, i o -> b o")
    assert rules.signature_for(torch.ops.autoperm_test.mix.default) == "b i, i o -> b o"
    with pytest.raises(SignatureError, match="has a rule already; pass override=True"):
        autoperm.register(op, "_ _, _ _ -> _ _")
    with pytest.raises(SignatureError, match="has 3 operands"):
        autoperm.register(op, "b i, i o, o -> b o", override=True)
    with pytest.raises(SignatureError, match="fit"):
        autoperm.register(op, "b i, i o -> b o, b", override=True)
    autoperm.register(op, "b i, i _ -> b _", override=True)
    assert sorted(f.size for f in autoperm.discover(Mixing(), torch.randn(4, 3)).free) == [6]


def test_register_shows_the_fault_with_a_caret() -> None:
    with pytest.raises(SignatureError) as error:
        autoperm.register("autoperm_test.mix", "b i, i o -> b k")
    lines = str(error.value).splitlines()
    assert lines[1].strip() == '"b i, i o -> b k"'
    assert lines[2].index("^") == lines[1].index("k")


def test_register_does_not_replace_what_is_built_in() -> None:
    for name in ("aten.linear", "aten.view", torch.ops.aten.lstm):
        with pytest.raises(SignatureError, match="has a rule already"):
            autoperm.register(name, lambda *_: "... -> ...")
    with pytest.raises(SignatureError, match="not for operations"):
        autoperm.register("autoperm_test.mix", "(a | b) -> a")
    with pytest.raises(SignatureError, match="not an operation"):
        autoperm.register(nn.functional.linear, "... -> ...")


def test_a_row_that_does_not_fit_the_call_pins_and_says_so() -> None:
    autoperm.register("autoperm_test.mix", lambda x, weight: "b i h, i o -> b o")
    spec = autoperm.discover(Mixing(), torch.randn(4, 3))
    assert not spec.free
    (text,) = spec.unknown
    assert "operand 0 has 2 axes, its pattern has 3" in text

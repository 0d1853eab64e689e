"""The level at which a run of a model is seen: operations that the rules know are whole, others are taken apart.

In inference mode PyTorch hands structured operations (``linear``, ``layer_norm``, ``scaled_dot_product_attention``) to
a dispatch mode whole. One that no rule knows is taken apart by its own decomposition, and seen in pieces. Each
operation that is seen is a *step*; runs along the same path make the same steps, but for the nameless ones.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..rules import has_rule, op_name
from .schema import masks_among, written_by

_ABOUT = frozenset(
    "aten.size aten.stride aten.dim aten.numel aten.storage_offset aten.sym_size aten.sym_stride aten.sym_numel "
    "aten.sym_storage_offset aten.is_contiguous aten.is_floating_point aten.is_complex aten.is_same_size "
    "aten.is_signed aten.is_inference aten.is_conj aten.is_neg aten.is_pinned aten.result_type aten.can_cast "
    "aten.is_non_overlapping_and_dense aten.promote_types aten.is_strides_like aten._has_compatible_shallow_copy_type "
    "prim.device prim.layout aten.detach_ aten.requires_grad_ aten.record_stream".split()
)
"""What asks for the form of tensors, not for their values, or does nothing to them."""

NAMELESS = frozenset({"aten.detach", "aten.alias"})
"""What gives its operand again. PyTorch calls it of itself, or does not, depending on who else holds a tensor."""

INDEXING = frozenset("aten.index aten.index_put aten.index_put_ aten._index_put_impl_ aten._unsafe_index".split())


@contextmanager
def seen() -> Generator[None]:
    """Let a model run so that its structured operations are seen whole."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its whole layers are operations without rules
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Level(TorchDispatchMode):
    """Hands the operations of a run to :meth:`step`, one by one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, op: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, whole or in pieces."""
        kwargs = kwargs or {}
        name = op_name(op)
        if name in _ABOUT or not (op._schema.returns or op._schema.is_mutable):
            return op(*args, **kwargs)
        if name in INDEXING and (masks := masks_among(args[1])):
            with self:  # the places that a mask means are what is used
                places = [item.nonzero().unbind(1) if i in masks else [item] for i, item in enumerate(args[1])]
                return op(args[0], [place for found in places for place in found], *args[2:], **kwargs)
        if name == "aten.lift_fresh":
            self.literals(args)
            return op(*args, **kwargs)
        written = written_by(op, args, kwargs)
        if not written and not any("Tensor" in str(result.type) for result in op._schema.returns):
            self.reads(name, args, kwargs)
            return op(*args, **kwargs)
        if not written and (not has_rule(op) or op is torch.ops.aten.where.default) and op._can_decompose():
            self.takes_apart(args, kwargs)
            with self:
                made = op.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return self.step(op, args, kwargs, written)

    def step(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> Any:
        """Run an operation of this level, which writes to some tensors, and return what it gives."""
        raise NotImplementedError

    def literals(self, args: tuple[Any, ...]) -> None:
        """See tensors that Python has just made of numbers."""

    def reads(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See an operation that gives numbers to Python."""

    def takes_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See the arguments of an operation before it is taken apart."""


def results_of(made: Any) -> list[Any]:
    """Return the results of an operation in a list."""
    return [made] if isinstance(made, Tensor) else list(made) if isinstance(made, (list, tuple)) else []

"""The graph while it is being recorded: which tensor stands for which value, and the calls so far.

Every tensor that turns up is known by where it is in memory. One that is not known comes from nowhere: if it shares
memory with a known one it is a view of that, else it is a *stranger*, a constant of which nothing is known.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Call, Value, Where
from ..rules import op_name
from .aliases import Slot, Step, as_strided, emit_as_strided, read, write
from .boundary import draws_random_numbers, identity
from .messages import NOT_THEIRS

FOLD_LIMIT = 1 << 22
"""Constants of more elements than this are not kept; their axes are pinned."""

_HERE = (*NOT_THEIRS, "<frozen", "<string>", "<eval_")
_CALL = nn.Module._call_impl.__code__


class Tape:
    """What has been recorded so far.

    Attributes:
        calls: the calls, each in the functional form.
        varying: the values that parameters, inputs or random numbers flow into.
        strangers: tensors that came from nowhere, by the place where they were met.
        given: the tensors that were there before the run.
        data_in_python: whether Python has seen values that vary. From then on a number in a call may be one of them, so
            that nothing more is folded to a constant.
    """

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.paths = paths
        self.calls: list[Call] = []
        self.varying: set[Value] = set()
        self.strangers: dict[Where, list[Tensor]] = {}
        self.given: list[Slot] = []
        self.data_in_python = False
        self._slots: dict[int, Slot] = {}
        self._memory: dict[int, list[Slot]] = {}
        self._same: dict[Any, Slot] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        """Tell whether a tensor's memory is known."""
        return id(tensor) in self._slots or memory_of(tensor) in self._memory

    # --- tensors

    def give(self, tensor: Tensor, value: Value) -> None:
        """Let a tensor that is there before the run stand for a value; two that are the same memory are one."""
        slot = self._same.setdefault(identity(tensor), Slot(tensor, value))
        if slot.tensor is tensor:
            self.given.append(slot)
            self._know(slot)
        self._slots[id(tensor)] = slot

    def add(self, tensor: Tensor, value: Value) -> None:
        """Let a new tensor stand for a value."""
        self._slots[id(tensor)] = slot = Slot(tensor, value)
        self._know(slot)

    def add_view(self, tensor: Tensor, value: Value, parent: Slot, step: Step) -> None:
        """Let a view stand for a value, which is what it has of its parent now."""
        self._slots[id(tensor)] = Slot(tensor, value, parent, step, parent.root.writes)

    def constant(self, name: str, tensor: Tensor, *, known: bool = True) -> Value:
        """Return a value for a tensor that no data flows into; what it holds counts only if that is known."""
        known = known and tensor.numel() <= FOLD_LIMIT and not tensor.is_meta
        return Value(name, tuple(tensor.shape), "constant", tensor.detach().clone() if known else None)

    def _know(self, slot: Slot) -> None:
        key = memory_of(slot.tensor)
        if key is not None:
            self._memory.setdefault(key, []).append(slot)

    def slot(self, tensor: Tensor) -> Slot:
        """Return what is known of a tensor, which may come from nowhere."""
        if id(tensor) not in self._slots:
            owners = self._memory.get(memory_of(tensor) or 0, [])
            same = [owner for owner in owners if identity(owner.tensor) == identity(tensor)]
            if same:
                self.add_view(tensor, self.read(same[0]), same[0], Step(torch.ops.aten.alias.default))
            elif owners:
                value = emit_as_strided(owners[0], self.read(owners[0]), tensor, self.emit_one)
                self.add_view(tensor, value, owners[0], as_strided(tensor))
            else:
                self.strangers.setdefault(self.where(), []).append(tensor.detach().clone())
                self.add(tensor, self.constant("stranger", tensor, known=False))
        return self._slots[id(tensor)]

    def read(self, slot: Slot) -> Value:
        """Return the value of a slot now."""
        return read(slot, self.emit_one)

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor now."""
        return self.read(self.slot(tensor))

    def write(self, tensor: Tensor, value: Value) -> None:
        """Give a tensor, and all that it shares memory with, a new value."""
        write(self.slot(tensor), value, self.emit_one)

    # --- calls

    def emit(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Sequence[Any]) -> list[Value | None]:
        """Add a call, or keep what it made as constants if no data flows into it.

        Args:
            op: an operation that writes to nothing.
            args: its arguments, with values for tensors.
            kwargs: its arguments by name.
            made: its results in this run.
        """
        base = f"{op_name(op).rpartition('.')[2]}_{len(self.calls)}"
        results = tuple(
            Value(f"{base}.{i}" if len(made) > 1 else base, tuple(item.shape)) if isinstance(item, Tensor) else None
            for i, item in enumerate(made)
        )
        call = Call(op, args, kwargs, results, Where())
        operands = list(call.operands())
        random = draws_random_numbers(call)
        size = sum(item.numel() for item in made if isinstance(item, Tensor))
        known = all(operand.kind == "constant" and operand.data is not None for operand in operands)
        if known and not random and not self.data_in_python and size <= FOLD_LIMIT:
            for value, item in zip(results, made, strict=True):
                if value is not None:
                    value.kind, value.data = "constant", item.detach().clone()
            return list(results)
        call.where = self.where()
        self.calls.append(call)
        varies = random or any(operand in self.varying for operand in operands)
        fed = any(operand.fed for operand in operands)
        for value in filter(None, results):
            value.fed = fed
            if varies:
                self.varying.add(value)
        return list(results)

    def emit_one(self, op: Any, args: tuple[Any, ...], made: Tensor) -> Value:
        """Add a call that has one result."""
        (value,) = self.emit(op, args, {}, [made])
        assert value is not None
        return value

    def where(self) -> Where:
        """Find the user's line that is being run, and the innermost module that runs it."""
        source: str = ""
        module: str | None = None
        step: Any = sys._getframe(1)
        while step is not None and (not source or module is None):
            code = step.f_code
            if not source and not code.co_filename.startswith(_HERE):
                line = linecache.getline(code.co_filename, step.f_lineno).strip()
                source = f"{code.co_filename}:{step.f_lineno}: {line}"
            if module is None and code is _CALL:
                module = self.paths.get(id(step.f_locals["self"]))
            step = step.f_back
        return Where(module or "", source)


def memory_of(tensor: Tensor) -> int | None:
    """Return what names a tensor's memory, if it has memory of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None

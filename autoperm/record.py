"""A model to a functional graph by running it once: for models whose Python looks at the values of tensors.

Every operation of one run on real tensors is recorded. In inference mode PyTorch hands structured operations
(``linear``, ``layer_norm``, ``scaled_dot_product_attention``) to a dispatch mode whole; one that no rule knows is taken
apart by its own decomposition, and recorded in pieces. Writes in place are followed by :mod:`autoperm.aliases`.

What such a graph stands for is the path that the run took. Where the model reads a value into Python (a branch, a
loop over what ``nonzero`` finds, a size), the path depends on it. What is read is held in place, so that no permutation
changes it: moved models take the same path on the same inputs, and the symmetries are those of that path. On inputs
that lead elsewhere they must be verified; the graph's notes say where this is so.

Data can leave the operations that are recorded and come back (through NumPy, a cache, a kernel of the user's). A tensor
that comes from nowhere is pinned; the model is then run again with other weights, and if the tensor has changed with
them there is no graph: what happened to the weights on the way is not known.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .aliases import Slot, Step, as_strided, emit_as_strided, read, steps_of, write
from .boundary import draws_random_numbers, finish, identity, model_tensors, model_values, some
from .copies import copy_model
from .errors import TraceError
from .graph import Call, Graph, Value, Where
from .rules import has_rule, op_name

FOLD_LIMIT = 1 << 22
"""Constants of more elements than this are not kept; their axes are pinned."""

aten = torch.ops.aten

_HERE = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep, "<")
_CALL = nn.Module._call_impl.__code__

_ABOUT = frozenset(
    "aten.size aten.stride aten.dim aten.numel aten.storage_offset aten.sym_size aten.sym_stride aten.sym_numel "
    "aten.sym_storage_offset aten.is_contiguous aten.is_floating_point aten.is_complex aten.is_same_size "
    "aten.is_signed aten.is_inference aten.is_conj aten.is_neg aten.is_pinned aten.result_type "
    "aten.is_non_overlapping_and_dense "
    "aten.can_cast aten.promote_types aten.is_strides_like aten._has_compatible_shallow_copy_type prim.device "
    "prim.layout aten.detach_ aten.requires_grad_ aten.record_stream".split()
)
"""What asks for the form of tensors, not for their values, or does nothing to them."""

_REFUSED = frozenset(("aten.resize_", "aten.resize_as_", "aten.set_", "aten.resize"))
_MASKED = frozenset(("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index"))
_NORMS = {"aten.batch_norm": 5, "aten.instance_norm": 5}
"""What may write to running statistics without saying so, and which argument tells."""

_READERS: dict[Any, str] = {
    getattr(Tensor, name): name for name in ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "__reduce_ex__")
}
"""What gives the values of a tensor to code that is not recorded."""


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], notes: Sequence[str] = ()) -> Graph:
    """Run a model once in evaluation mode, on copies, and return what it did as a functional graph.

    Args:
        model: any module with real weights; it is left as it is.
        args: positional example inputs.
        kwargs: example inputs by name.
        notes: what else is to be said of the graph.

    Raises:
        TraceError: if weights flow into the outputs in a way that cannot be recorded.

    Example:
        >>> class Branching(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x) if x.sum() > 0 else x
        >>> graph = record(Branching(3, 4), (torch.ones(2, 3),), {})
        >>> [str(call.op) for call in graph.calls]
        ['aten.sum.default', 'aten.gt.Scalar', 'aten.linear.default']
        >>> print(graph.notes[0])
        the path depends on data, and the symmetries hold on the path that was recorded; verify on inputs that ...
    """
    recorder = _Recorder(copy_model(model).eval())
    outputs = recorder.run(args, kwargs)
    if recorder.strangers:
        _check_strangers(model, args, kwargs, recorder.strangers)
    return finish(
        recorder.model, recorder.values, recorder.calls, recorder.inputs, outputs, [*notes, *recorder.path_notes()]
    )


def _check_strangers(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], strangers: Mapping[Where, list[Tensor]]
) -> None:
    """Run a model again with other weights: a tensor from nowhere that changes with them carries them."""
    other = copy_model(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.is_floating_point():
                noise = torch.rand(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
                parameter.mul_(1 + 0.1 * noise).add_(1e-3 * noise)
    again = _Recorder(other)
    again.run(args, kwargs)
    for where, tensors in strangers.items():
        for first, second in zip(tensors, again.strangers.get(where, []), strict=False):
            if first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num()):
                raise TraceError(
                    f"a tensor {list(first.shape)} that no recorded operation made changes with the weights\n"
                    f"  {where}\n  It was computed where tracing cannot see: in NumPy, in a cache that was filled "
                    "before, or in a kernel that is no operation of torch.ops. Use torch operations there, or wrap the "
                    "kernel: torch.library.custom_op"
                )


class _Recorder(TorchDispatchMode):
    """One run of a model: its tensors, what stands for each, and the calls so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self.values = model_values(model)
        self.calls: list[Call] = []
        self.inputs: list[Value] = []
        self.held: list[Value] = []
        self.slots: dict[int, Slot] = {}
        self.memory: dict[int, list[Slot]] = {}
        self.varying: set[Value] = set()
        self.places: dict[str, None] = {}
        self.strangers: dict[Where, list[Tensor]] = {}
        self.given: list[Slot] = []
        self.hollow: set[Value] = set()
        self.data_in_python = False
        self._take_model()

    # --- before and after

    def _take_model(self) -> None:
        same: dict[Any, Slot] = {}
        for name, tensor in model_tensors(self.model).items():
            value = self.values[name]
            if value.data is not None:
                value.data = tensor.detach().clone()
            else:
                self.varying.add(value)
            self._give(tensor, value, same)
        for module in self.model.modules():
            for name, tensor in [*module.named_buffers(recurse=False), *_attributes(module)]:
                if _storage(tensor) not in self.memory:
                    self._give(tensor, self._constant(name, tensor), same)

    def _give(self, tensor: Tensor, value: Value, same: dict[Any, Slot]) -> None:
        """Let a tensor that is there before the run stand for a value; tied ones are one."""
        slot = same.setdefault(identity(tensor), Slot(tensor, value))
        if slot.tensor is tensor:
            self.given.append(slot)
            self._know(slot)
        self.slots[id(tensor)] = slot

    def _constant(self, name: str, tensor: Tensor) -> Value:
        known = tensor.numel() <= FOLD_LIMIT and not tensor.is_meta
        return Value(name, tuple(tensor.shape), "constant", tensor.detach().clone() if known else None)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Value]:
        """Run the model on copies of inputs and return its outputs, and whatever else must stay as it is."""
        args, kwargs = _copy_inputs((args, dict(kwargs)))
        same: dict[Any, Slot] = {}
        for name, tensor in _named_inputs(self.model, args, kwargs):
            if id(tensor) in self.slots:
                continue
            value = Value(name, tuple(tensor.shape), "input")
            self.inputs.append(value)
            self.varying.add(value)
            self._give(tensor, value, same)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.inference_mode(), _Readers(self), self:
                result = self.model(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        found = [self._value(tensor) for tensor in _tensors_in(result)]
        found += [self._read(slot) for slot in self.given if slot.root.writes]
        return list(dict.fromkeys([*found, *self.held]))

    def path_notes(self) -> list[str]:
        """Say where the path depends on data."""
        if not self.places:
            return []
        return [
            "the path depends on data, and the symmetries hold on the path that was recorded; verify on inputs that "
            "lead elsewhere: " + some(list(self.places))
        ]

    # --- calls

    def __torch_dispatch__(
        self, op: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record it."""
        kwargs = kwargs or {}
        name = op_name(op)
        if name in _ABOUT or not (op._schema.returns or op._schema.is_mutable):
            return op(*args, **kwargs)
        if name in _REFUSED:
            raise TraceError(f"{name} gives a tensor other memory, which cannot be followed\n  {self._where()}")
        if name in _MASKED and (masks := _masks(args[1])):
            return self._with_places(op, args, kwargs, masks)
        if name == "aten.lift_fresh":  # the tensor of a literal: data if Python knows any
            for tensor in _operands(args):
                if id(tensor) not in self.slots:
                    value = self._constant("literal", tensor)
                    value.data = None if self.data_in_python else value.data
                    self._root(tensor, value)
            return op(*args, **kwargs)
        written = _written(op, args, kwargs)
        if not written and not any("Tensor" in str(result.type) for result in op._schema.returns):
            self._note(name, list(map(self._value, _operands([args, kwargs]))), hold=True)
            return op(*args, **kwargs)
        if not written and (not has_rule(op) or op is aten.where.default) and op._can_decompose():
            made = self._decompose(op, args, kwargs)
            if made is not NotImplemented:
                return made
        return self._record(op, name, args, kwargs, written)

    def _decompose(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take an operation apart. Some read sizes and places by their address, so those must not move."""
        for tensor in _operands([args, kwargs]):
            value = self._value(tensor)
            if value in self.varying and not (tensor.is_floating_point() or tensor.is_complex() or tensor.ndim == 0):
                self.held.append(value)
        with self:
            return op.decompose(*args, **kwargs)

    def _with_places(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], masks: set[int]) -> Any:
        """Say which places a mask means, and use them."""
        with self:
            places: list[Any] = []
            for index, item in enumerate(args[1]):
                places += item.nonzero().unbind(1) if index in masks else [item]
            return op(args[0], places, *args[2:], **kwargs)

    def _record(self, op: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> Any:
        operands = list(_operands([args, kwargs]))
        given, named = _replace((args, kwargs), self._value)  # before the call writes to them
        if torch.Tag.inplace_view in op.tags:  # the tensor becomes a view of what it was
            before = self._slot(args[0])
            before.tensor = args[0].detach()
            made = op(*args, **kwargs)
            self._see(op, given, named, [made], [before])
            return made
        made = op(*args, **kwargs)
        results = [made] if isinstance(made, Tensor) else list(made) if isinstance(made, (list, tuple)) else []
        if written:
            self._overwrite(op, given, named, written, results)
        elif not all(any(result is operand for operand in operands) for result in results):
            parents = [self._parent(result, operands) for result in results]
            if any(parents):
                self._see(op, given, named, results, parents)
            else:
                self._make(op, name, given, named, results)
        return made

    def _parent(self, result: Any, operands: Sequence[Tensor]) -> Slot | None:
        """Return the operand that a result is a view of."""
        key = _storage(result) if isinstance(result, Tensor) else None
        return next((self._slot(t) for t in operands if key is not None and _storage(t) == key), None)

    def _make(self, op: Any, name: str, given: tuple[Any, ...], named: dict[str, Any], results: Sequence[Any]) -> None:
        """Record a call that makes new tensors."""
        operands = list(_values_in([given, named]))
        if self.hollow.intersection(operands) and not name.endswith("_like") and ".new_" not in name:
            raise TraceError(
                f"{name} reads memory that no recorded operation has written to\n  {self._where()}\n  A kernel that is "
                "no operation of torch.ops has filled it; wrap the kernel: torch.library.custom_op"
            )
        values = self._emit(op, given, named, results)
        for tensor, value in zip(results, values, strict=True):
            if value is not None:
                self._root(tensor, value)
        if name.startswith(("aten.empty", "aten.new_empty")):
            self.hollow.update(value for value in values if value is not None and 0 not in value.shape)
        if name in _NORMS and given[_NORMS[name]]:
            self.held += [value for value in given[3:5] if isinstance(value, Value)]
        if torch.Tag.dynamic_output_shape in op.tags and name not in _MASKED:
            self._note(name, operands, hold=False)

    def _see(
        self,
        op: Any,
        given: tuple[Any, ...],
        named: dict[str, Any],
        results: Sequence[Any],
        parents: Sequence[Slot | None],
    ) -> None:
        """Record a call that makes views."""
        first = parents[0]
        values: list[Value | None]
        if op_name(op) == "aten.as_strided" and first is not None:
            values = [emit_as_strided(first, given[0], results[0], self._emit_one)]
        else:
            values = self._emit(functional(op) or op, given, named, results)
        if first is not None and all(parent is first for parent in parents):
            name = op_name(op).removesuffix("_")
            steps = steps_of(name, _positional(op, given, named)[1:], first.tensor, list(results))
        else:
            steps = [as_strided(result) for result in results]
        for tensor, value, parent, step in zip(results, values, parents, steps, strict=True):
            if value is not None and parent is None:
                self._root(tensor, value)
            elif value is not None and parent is not None:
                self.slots[id(tensor)] = Slot(tensor, value, parent, step, parent.root.writes)
                if parent.value in self.hollow:
                    self.hollow.add(value)

    def _overwrite(
        self, op: Any, given: tuple[Any, ...], named: dict[str, Any], written: list[Tensor], results: Sequence[Any]
    ) -> None:
        """Record the functional form of a write, and give what it makes to the tensors written to."""
        made, form = list(results), functional(op)
        out = {argument.name for argument in op._schema.arguments if argument.is_out}
        named = {key: item for key, item in named.items() if key not in out}
        if form is None or len(form._schema.returns) != len(results):
            made = [*(result for result in results if not any(result is tensor for tensor in written)), *written]
        for tensor, value in zip(made, self._emit(form or op, given, named, made), strict=True):
            if value is not None and any(tensor is other for other in written):
                write(self._slot(tensor), value, self._emit_one)
            elif value is not None:
                self._root(tensor, value)

    # --- values

    def _emit_one(self, op: Any, args: tuple[Any, ...], made: Tensor) -> Value:
        (value,) = self._emit(op, args, {}, [made])
        assert value is not None
        return value

    def _emit(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Sequence[Any]) -> list[Value | None]:
        """Add a call, or keep what it made as constants if no data flows into it."""
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
        call.where = self._where()
        self.calls.append(call)
        varies = random or any(operand in self.varying for operand in operands)
        fed = any(operand.fed for operand in operands)
        for value in results:
            if value is not None:
                value.fed = fed
                if varies:
                    self.varying.add(value)
        return list(results)

    def _root(self, tensor: Tensor, value: Value) -> None:
        slot = Slot(tensor, value)
        self.slots[id(tensor)] = slot
        self._know(slot)

    def _know(self, slot: Slot) -> None:
        key = _storage(slot.tensor)
        if key is not None:
            self.memory.setdefault(key, []).append(slot)

    def _slot(self, tensor: Tensor) -> Slot:
        """Return the slot of a tensor, which may come from nowhere."""
        slot = self.slots.get(id(tensor))
        if slot is not None:
            return slot
        owners = self.memory.get(_storage(tensor) or 0, [])
        same = [owner for owner in owners if identity(owner.tensor) == identity(tensor)]
        if same:
            slot = Slot(tensor, self._read(same[0]), same[0], Step(aten.alias.default), same[0].root.writes)
        elif owners:
            step = as_strided(tensor)
            value = emit_as_strided(owners[0], self._read(owners[0]), tensor, self._emit_one)
            slot = Slot(tensor, value, owners[0], step, owners[0].root.writes)
        else:
            where = self._where()
            self.strangers.setdefault(where, []).append(tensor.detach().clone())
            slot = Slot(tensor, Value("stranger", tuple(tensor.shape), "constant"))
            self._know(slot)
        self.slots[id(tensor)] = slot
        return slot

    def _read(self, slot: Slot) -> Value:
        return read(slot, self._emit_one)

    def _value(self, tensor: Tensor) -> Value:
        return self._read(self._slot(tensor))

    def read_into_python(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor in place whose values Python is given."""
        self._note(name, [self._value(tensor)], hold=True)

    def _note(self, name: str, values: Sequence[Value], *, hold: bool) -> None:
        varying = [value for value in values if value in self.varying]
        if varying:
            self.data_in_python = True
            self.places[f"{name}, {self._where()}"] = None
        if hold:
            self.held += varying

    def _where(self) -> Where:
        """Find the user's line that is being run, and the module that runs it."""
        frame = sys._getframe(1)
        source, module = "", None
        step: Any = frame
        while step is not None and (not source or module is None):
            code = step.f_code
            if not source and not code.co_filename.startswith(_HERE):
                line = linecache.getline(code.co_filename, step.f_lineno).strip()
                source = f"{code.co_filename}:{step.f_lineno}: {line}"
            if module is None and code is _CALL:
                module = self.paths.get(id(step.f_locals["self"]))
            step = step.f_back
        return Where(module or "", source)


class _Readers(TorchFunctionMode):
    """Sees what gives the values of a tensor to Python without an operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READERS:
            self.recorder.read_into_python(_READERS[func], args[0])
        return func(*args, **(kwargs or {}))


# --- tensors in things


def _operands(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _operands(item)
    elif isinstance(value, dict):
        yield from _operands(list(value.values()))


def _replace(value: Any, new: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return new(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, new) for item in value)
    if isinstance(value, dict):
        return {key: _replace(item, new) for key, item in value.items()}
    return value


def _values_in(value: Any) -> Iterator[Value]:
    if isinstance(value, Value):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _values_in(item)
    elif isinstance(value, dict):
        yield from _values_in(list(value.values()))


def _tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield the tensors in whatever a model may return."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, (str, bytes, int, float, type, nn.Module)) or value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, (list, tuple, set, frozenset)):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        value = [*getattr(value, "__dict__", {}).values(), *(getattr(value, n, None) for n in slots)]
    for item in value:
        yield from _tensors_in(item, seen)


def _attributes(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that a module keeps as plain attributes."""
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]


def _copy_inputs(inputs: Any) -> Any:
    memo: dict[int, Any] = {}
    for tensor in _tensors_in(inputs):
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(inputs, memo)
    except Exception as error:  # whatever classes the inputs may have
        raise TraceError(f"the example inputs cannot be copied: {type(error).__name__}: {error}") from error


def _named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{f"input_{i}": item for i, item in enumerate(args)}, **kwargs}
    for name, item in bound.items():
        tensors = list(_tensors_in(item))
        for i, tensor in enumerate(tensors):
            yield name if isinstance(item, Tensor) else f"{name}.{i}", tensor


def _storage(tensor: Tensor) -> int | None:
    """Return what names a tensor's memory, if it has memory of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


# --- what an operation's schema says


def _positional(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all arguments in the order of the schema, as far as they are given."""
    rest = [argument.name for argument in op._schema.arguments[len(args) :]]
    found = list(args)
    for argument in op._schema.arguments[len(args) :]:
        if argument.name in kwargs:
            found.append(kwargs[argument.name])
        elif any(name in kwargs for name in rest):
            found.append(argument.default_value)
    return tuple(found)


def _written(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a call writes to."""
    if not op._schema.is_mutable:
        return []
    given = {**dict(zip((a.name for a in op._schema.arguments), args, strict=False)), **kwargs}
    return [
        tensor
        for argument in op._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given
        for tensor in _operands(given[argument.name])
    ]


def functional(op: Any) -> Any:
    """Return the form of an operation that writes to nothing and takes the same arguments; None if there is none.

    Example:
        >>> functional(torch.ops.aten.add_.Tensor), functional(torch.ops.aten.add.out)
        (<OpOverload(op='aten.add', overload='Tensor')>, <OpOverload(op='aten.add', overload='Tensor')>)
    """
    namespace, _, name = str(op._schema.name).partition("::")
    wanted = _form(op)
    for base in dict.fromkeys((name.removesuffix("_"), f"{name.removesuffix('_')}_functional", name)):
        packet = getattr(getattr(torch.ops, namespace), base, None)
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if not found._schema.is_mutable and _form(found) == wanted:
                return found
    return None


def _form(op: Any) -> list[tuple[str, str]]:
    """The arguments of an operation, but for what it writes to; the first has any name."""
    arguments = [argument for argument in op._schema.arguments if not argument.is_out]
    return [(argument.name if i else "", str(argument.type)) for i, argument in enumerate(arguments)]


def _masks(indices: Sequence[Tensor | None]) -> set[int]:
    kinds = (torch.bool, torch.uint8)
    return {i for i, index in enumerate(indices) if index is not None and index.dtype in kinds}

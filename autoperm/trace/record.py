"""A model to a functional graph by running it once: for models whose Python looks at the values of tensors.

Every operation of one run on real tensors is recorded, whole or in pieces (:mod:`~autoperm.trace.level`). Writes in
place are followed by :mod:`~autoperm.trace.aliases`.

What such a graph stands for is the path that the run took. Where the model reads a value into Python (a branch, a
loop over what ``nonzero`` finds, a size), the path depends on it. What is read is held in place, so that no permutation
changes it: a moved model takes the same path on the same inputs, and the symmetries are those of that path. On inputs
that lead elsewhere they must be verified; the graph's notes say where this is so.

Data can leave the operations that are recorded and come back (through NumPy, a cache, a kernel of the user's). A tensor
that comes from nowhere is pinned; unless Python was seen to read what varies, and that is held, the model is run again
with other weights, and a stranger that changes with them is an error: what became of the weights is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..copies import copy_model
from ..errors import TraceError
from ..graph import Call, Graph, Value, Where
from ..rules import op_name
from ..structure import copy_inputs, named_inputs, operands_of, replace_tensors, tensors_in
from .aliases import Slot, as_strided, emit_as_strided, steps_of
from .boundary import finish, model_tensors, model_values, some
from .level import INDEXING, NAMELESS, Level, results_of, seen
from .schema import functional, in_order
from .tape import Tape, memory_of

_MOVING_MEMORY = frozenset("aten.resize_ aten.resize_as_ aten.set_".split())
_NORMS = frozenset("aten.batch_norm aten.instance_norm".split())

_READERS: dict[Any, str] = {
    getattr(Tensor, name): name for name in ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "__reduce_ex__")
}
"""What gives the values of a tensor to code that is not recorded."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was computed: the number of the step, which of its results it is, and of what type."""

    step: int
    result: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run did.

    Attributes:
        graph: its functional graph.
        steps: the operation of each step.
        places: which result of which step each value was, if it was one: views that are read anew after a write to
            what they show are not.
    """

    graph: Graph
    steps: tuple[Any, ...]
    places: Mapping[Value, Place]


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
    return rehearse(model, args, kwargs, notes).graph


def rehearse(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], notes: Sequence[str] = ()
) -> Recording:
    """Record a model as :func:`record` does, with the steps of the run.

    Raises:
        TraceError: if weights flow into the outputs in a way that cannot be recorded.
    """
    recorder = _Recorder(copy_model(model).eval())
    outputs = recorder.run(args, kwargs)
    tape = recorder.tape
    if tape.strangers and not tape.data_in_python:
        _check_strangers(model, args, kwargs, tape.strangers)
    path = (
        "the path depends on data, and the symmetries hold on the path that was recorded; verify on inputs that lead "
        "elsewhere: " + some(list(recorder.read))
    )
    notes = [*notes, *([path] if recorder.read else [])]
    graph = finish(recorder.model, recorder.values, tape.calls, recorder.inputs, outputs, notes)
    return Recording(graph, tuple(recorder.steps), recorder.places)


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
        for first, second in zip(tensors, again.tape.strangers.get(where, []), strict=False):
            if first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num()):
                raise TraceError(
                    f"a tensor {list(first.shape)} that no recorded operation made changes with the weights\n"
                    f"  {where}\n  It was computed where tracing cannot see: in a cache that was filled before, or in "
                    "a kernel that is no operation of torch.ops. Use torch operations there, or wrap the kernel: "
                    "torch.library.custom_op"
                )


class _Recorder(Level):  # type: ignore[no-untyped-call]
    """One run of a model: says of each operation what it does to the tape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.steps: list[Any] = []
        self.nameless = False
        self.places: dict[Value, Place] = {}
        self.values = model_values(model)
        self.inputs: list[Value] = []
        self.read: dict[str, None] = {}
        self.held: list[Value] = []
        self.hollow: set[Value] = set()
        self.tape = tape = Tape({id(module): path for path, module in reversed(list(model.named_modules()))})
        for name, tensor in model_tensors(model).items():
            value = self.values[name]
            if value.data is None:
                tape.varying.add(value)
            else:  # the model may write to it
                value.data = tensor.detach().clone()
            tape.give(tensor, value)
        for module in model.modules():
            for name, item in [*module.named_buffers(recurse=False), *vars(module).items()]:
                for tensor in operands_of(item) if name not in ("_parameters", "_buffers") else ():
                    if tensor not in tape:
                        tape.give(tensor, tape.constant(name, tensor))

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Value]:
        """Run the model on copies of inputs and return its outputs, and whatever else must stay as it is."""
        tape = self.tape
        args, kwargs = copy_inputs((args, dict(kwargs)))
        for name, tensor in named_inputs(self.model, args, kwargs):
            if tensor not in tape:
                value = Value(name, tuple(tensor.shape), "input")
                self.inputs.append(value)
                tape.varying.add(value)
                tape.give(tensor, value)
        with seen(), _Readers(self), self:
            result = self.model(*args, **kwargs)
        outputs = [tape.value(tensor) for tensor in tensors_in(result)]
        outputs += [slot.value for slot in tape.given if slot.writes]
        return list(dict.fromkeys([*outputs, *self.held]))

    def note_read(self, name: str, values: Sequence[Value], *, hold: bool) -> None:
        """Note that Python learns something of values, and hold them in place if it learns all."""
        varying = [value for value in values if value in self.tape.varying]
        if varying:
            self.tape.data_in_python = True
            self.read[f"{name}, {self.tape.where()}"] = None
        if hold:
            self.held += varying

    # --- operations

    def literals(self, args: tuple[Any, ...]) -> None:
        """Take in the tensors that Python has just made of numbers."""
        for tensor in operands_of(args):
            if tensor not in self.tape:
                self.tape.add(tensor, self.tape.constant("literal", tensor, known=not self.tape.data_in_python))

    def reads(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hold what Python learns."""
        self.note_read(name, list(map(self.tape.value, operands_of([args, kwargs]))), hold=True)

    def takes_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hold the sizes and places that an operation may read by their address when it is taken apart."""
        for tensor in operands_of([args, kwargs]):
            value = self.tape.value(tensor)
            if value in self.tape.varying and not (tensor.is_floating_point() or tensor.is_complex()):
                self.held.append(value)

    def step(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> Any:
        """Run an operation, and record it."""
        if op_name(op) in _MOVING_MEMORY:
            raise TraceError(
                f"{op_name(op)} gives a tensor other memory, which cannot be followed\n  {self.tape.where()}"
            )
        self.nameless = op_name(op) in NAMELESS
        if not self.nameless:
            self.steps.append(op)
        operands = list(operands_of([args, kwargs]))
        given, named = replace_tensors((args, kwargs), self.tape.value)  # as they are before the call
        if torch.Tag.inplace_view in op.tags:  # the tensor becomes a view of what it was
            before = self.tape.slot(args[0])
            before.tensor = args[0].detach()
            made = op(*args, **kwargs)
            self._see(op, given, named, [made], [before])
            return made
        made = op(*args, **kwargs)
        results = results_of(made)
        if written:
            self._overwrite(op, given, named, results, written)
        elif not all(any(result is operand for operand in operands) for result in results):
            parents = [self._parent(result, operands) for result in results]
            if any(parents):
                self._see(op, given, named, results, parents)
            else:
                self._make(op, given, named, results)
        return made

    def _parent(self, result: Any, operands: Sequence[Tensor]) -> Slot | None:
        """Return the operand that a result is a view of."""
        key = memory_of(result) if isinstance(result, Tensor) else None
        return next((self.tape.slot(t) for t in operands if key is not None and memory_of(t) == key), None)

    def _make(self, op: Any, given: tuple[Any, ...], named: dict[str, Any], results: Sequence[Any]) -> None:
        """Record a call that makes new tensors."""
        name = op_name(op)
        operands = list(Call(op, given, named, (), Where()).operands())
        if self.hollow.intersection(operands) and not name.endswith("_like") and ".new_" not in name:
            raise TraceError(
                f"{name} reads memory that no recorded operation has written to\n  {self.tape.where()}\n  A kernel "
                "that is no operation of torch.ops has filled it; wrap the kernel: torch.library.custom_op"
            )
        values = self.tape.emit(op, given, named, results)
        self._place(results, results, values)
        for tensor, value in zip(results, values, strict=True):
            if value is not None:
                self.tape.add(tensor, value)
        if name.startswith(("aten.empty", "aten.new_empty")):
            self.hollow.update(value for value in values if value is not None and 0 not in value.shape)
        if name in _NORMS and given[5]:  # it writes to running statistics without saying so
            self.held += [value for value in given[3:5] if isinstance(value, Value)]
        if torch.Tag.dynamic_output_shape in op.tags and name not in INDEXING:
            self.note_read(name, operands, hold=False)

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
        if op_name(op) == "aten.as_strided" and first is not None:
            values: list[Value | None] = [emit_as_strided(first, given[0], results[0], self.tape.emit_one)]
        else:
            values = self.tape.emit(functional(op) or op, given, named, results)
        self._place(results, results, values)
        if first is not None and all(parent is first for parent in parents):
            name = op_name(op).removesuffix("_")
            steps = steps_of(name, in_order(op, given, named)[1:], first.tensor, list(results))
        else:
            steps = [as_strided(result) for result in results]
        for tensor, value, parent, step in zip(results, values, parents, steps, strict=True):
            if value is not None and parent is None:
                self.tape.add(tensor, value)
            elif value is not None and parent is not None:
                self.tape.add_view(tensor, value, parent, step)
                if parent.value in self.hollow:
                    self.hollow.add(value)

    def _overwrite(
        self, op: Any, given: tuple[Any, ...], named: dict[str, Any], results: Sequence[Any], written: Sequence[Tensor]
    ) -> None:
        """Record the functional form of a write, and give what it makes to the tensors written to."""
        made, form = list(results), functional(op)
        out = {argument.name for argument in op._schema.arguments if argument.is_out}
        named = {key: item for key, item in named.items() if key not in out}
        if form is None or len(form._schema.returns) != len(results):
            made = [*(result for result in results if not any(result is tensor for tensor in written)), *written]
        values = self.tape.emit(form or op, given, named, made)
        self._place(results, made, values)
        for tensor, value in zip(made, values, strict=True):
            if value is not None and any(tensor is other for other in written):
                self.tape.write(tensor, value)
            elif value is not None:
                self.tape.add(tensor, value)

    def _place(self, results: Sequence[Any], made: Sequence[Any], values: Sequence[Value | None]) -> None:
        """Note which result of the step that is being recorded each value is."""
        if self.nameless:
            return
        for tensor, value in zip(made, values, strict=True):
            number = next((i for i, result in enumerate(results) if result is tensor), None)
            if value is not None and number is not None:
                self.places[value] = Place(len(self.steps) - 1, number, tensor.dtype)


class _Readers(TorchFunctionMode):
    """Sees what gives the values of a tensor to Python without an operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a read, and pass the call on."""
        if func in _READERS:
            self.recorder.note_read(_READERS[func], [self.recorder.tape.value(args[0])], hold=True)
        return func(*args, **(kwargs or {}))

"""What a model computes on the way: its activations, with the factors that their axes carry.

A model is recorded once, on one batch, and what discovery says of the recorded graph it says of every value in it. Runs
on other batches take the same steps, so that activations are known by their place in the run: not by hooks on modules,
which functions of :mod:`torch.nn.functional` and parameters of no module do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import input_in, is_mapping, to_device
from ..copies import copy_model
from ..discover import infer
from ..errors import ActivationsError, AutopermError, EvaluationError, SpecError
from ..evaluate import device_of
from ..graph import Call, Graph, Value
from ..layout import Cell, cells
from ..rules import is_pointwise, only_moves, op_name
from ..signature import Pattern, Pinned, Product, Sum, Term, format_pattern
from ..spec import PermutationSpec
from ..structure import copy_inputs
from ..trace import describe_inputs
from ..trace.boundary import draws_random_numbers
from ..trace.messages import first_line, user_line
from ..trace.record import Recording, rehearse
from ..trace.watch import watch

_NONLINEARITIES = frozenset(
    "aten." + name
    for name in (
        "relu relu6 leaky_relu prelu rrelu elu celu selu gelu silu mish tanh sigmoid hardtanh hardsigmoid hardswish "
        "softplus softsign log_sigmoid log_sigmoid_forward threshold hardshrink softshrink glu erf clamp clamp_min"
    ).split()
)


@dataclass(frozen=True, eq=False)
class Activation:
    """A value that a model computes, or a part of it.

    Attributes:
        name: of the value in the recorded graph, such as ``"relu_3"``: an operation and a number. In a value whose
            units are others at other places of an axis each part is an activation, such as ``"lstm_0.1[0:1]"``.
        op: the operation that computes it, such as ``"aten.relu"``.
        module: the path of the innermost module in which that happens.
        source: the line of the model's source that does it.
        shape: for the batch that was recorded.
        pattern: one term an axis, with the factors of the recorded graph.
        nonlinear: whether the operation is an elementwise nonlinearity.
        feeds: whether an elementwise nonlinearity takes it.
        moved: whether the operation only moves numbers of another activation.
        inside: whether it goes into a softmax, where masks may make it infinite.
        value: in the recorded graph.
        part: axis, start and length of the part of the value; None for the whole.
    """

    name: str
    op: str
    module: str
    source: str
    shape: tuple[int, ...]
    pattern: Pattern
    nonlinear: bool = False
    feeds: bool = False
    moved: bool = False
    inside: bool = False
    value: Value = field(repr=False, kw_only=True)
    part: tuple[int, int, int] | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        where = ", ".join(filter(None, [f"in {self.module}" if self.module else "", self.source]))
        return f'{self.name} {list(self.shape)} "{format_pattern(self.pattern)}"' + (f", {where}" if where else "")


@dataclass(frozen=True, eq=False)
class Capture:
    """The activations of an architecture, as one run computed them, for any run along the same path.

    Attributes:
        recording: the run.
        spec: what discovery says of it.
        activations: the floating-point values that the run computed from parameters and inputs, in order, as far as
            their axes can be written as a pattern.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> capture = Capture.of(model, torch.randn(8, 3))
        >>> for activation in capture.activations:
        ...     print(activation.name, activation.module, format_pattern(activation.pattern))
        linear_0 0 _ a
        relu_1 1 _ a
        linear_2 2 _ _
        >>> capture.run(model, torch.randn(5, 3), capture.activations[1:2], lambda activation, x: print(x.shape))
        torch.Size([5, 4])
    """

    recording: Recording
    spec: PermutationSpec
    activations: tuple[Activation, ...]
    _fitted: dict[tuple[Any, ...], list[Cell]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(model: nn.Module, batch: Any) -> Capture:
        """Record a model on a batch, in evaluation mode.

        All that the model computes for the batch is in memory at once, as in a step of training.

        Args:
            model: it is left as it is.
            batch: an input; a tuple or list that begins with it; or a mapping of inputs by name.

        Raises:
            EvaluationError: if the model does not run on the batch.
            TraceError: if the run cannot be recorded.
        """
        args, kwargs = inputs_in(batch, device_of(model))
        with _explained(model, args, kwargs):
            recording = rehearse(model, args, kwargs)
        spec = infer(recording.graph)
        return Capture(recording, spec, tuple(_activations(recording, spec)))

    def run(
        self,
        model: nn.Module,
        batch: Any,
        wanted: Iterable[Activation],
        see: Callable[[Activation, Tensor], None],
    ) -> None:
        """Run a model on a batch, and look at some of its activations as they are computed.

        Args:
            model: of the architecture that was recorded. It runs in the mode that it is in, and what its forward does
                to it is done: pass ``replica(model)`` to keep it as it is.
            batch: as in :meth:`of`, of any size; it is not changed.
            wanted: some of :attr:`activations`.
            see: is called with each of them and its tensor. The model may write to that afterwards, so what is kept
                must be copied.

        Raises:
            EvaluationError: if the model does not run on the batch.
            TraceError: if it takes another path than the recorded run.
        """
        found: dict[Value, list[Activation]] = {}
        for activation in wanted:
            found.setdefault(activation.value, []).append(activation)

        def show(value: Value, tensor: Tensor) -> None:
            for activation in found[value]:
                see(activation, tensor if activation.part is None else tensor.narrow(*activation.part))

        self.watch(model, batch, found, show)

    def watch(
        self, model: nn.Module, batch: Any, wanted: Iterable[Value], see: Callable[[Value, Tensor], None]
    ) -> None:
        """Run a model on a batch as :meth:`run` does, and look at values of the recorded graph.

        Args:
            model: of the architecture that was recorded.
            batch: as in :meth:`of`, of any size; it is not changed.
            wanted: values that have a place in the recording.
            see: is called with each of them and its tensor. The model goes on with what is written to that.
        """
        args, kwargs = inputs_in(batch, device_of(model))
        with _explained(model, args, kwargs):
            watch(model, args, kwargs, self.recording, wanted, see)

    def cells(self, activation: Activation, shape: Sequence[int]) -> list[Cell]:
        """Return the cells of an activation, which view it with one dimension for each factor.

        Args:
            activation: one of :attr:`activations`.
            shape: of its tensor in this run. Pinned axes may be longer or shorter than in the recorded one.

        Raises:
            ActivationsError: if the factors do not fit the shape.
        """
        key = (activation.name, *shape)
        if key not in self._fitted:
            try:
                pattern = tuple(self._fit(term, size) for term, size in zip(activation.pattern, shape, strict=True))
                spec = PermutationSpec({activation.name: pattern}, {activation.name: tuple(shape)}, self.spec.factors)
            except (SpecError, ValueError) as error:
                raise ActivationsError(
                    f"{activation} has shape {list(shape)} on another batch, which does not fit: {error}\n"
                    "  Use batches that differ only in the number of samples, the first one of more than one sample"
                ) from error
            self._fitted[key] = cells(spec, activation.name)
        return self._fitted[key]

    def _fit(self, term: Term, size: int) -> Term:
        """Give the pinned part of an axis the length that the other parts leave to it."""
        if isinstance(term, Pinned):
            return Pinned()
        known = self.spec.size(term)
        if known in (None, size) or not isinstance(term, (Product, Sum)):
            return term
        places = [i for i, inner in enumerate(term.terms) if isinstance(inner, Pinned)]
        old = self.spec.size(term.terms[places[0]]) if len(places) == 1 else None
        if old is None or known is None:
            return term
        new = size * old // known if isinstance(term, Product) else size - (known - old)
        inner = list(term.terms)
        inner[places[0]] = Pinned(max(new, 0))
        return type(term)(tuple(inner))


def replica(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, to run."""
    return copy_model(model).eval()


def inputs_in(batch: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return copies of the inputs in a batch, positional and by name, on a device.

    Example:
        >>> inputs_in((torch.zeros(1), "label"), torch.device("cpu"))
        ((tensor([0.]),), {})
        >>> inputs_in({"ids": torch.zeros(1)}, torch.device("cpu"))
        ((), {'ids': tensor([0.])})
    """
    inputs = copy_inputs(to_device(input_in(batch), device))
    return ((), dict(inputs)) if is_mapping(inputs) else ((inputs,), {})


@contextmanager
def _explained(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Generator[None]:
    """Say with which inputs a model failed to run."""
    try:
        yield
    except AutopermError:
        raise
    except Exception as error:  # whatever the user's forward may raise
        source = user_line(error)
        raise EvaluationError(
            f"{type(model).__name__} does not run on a batch ({describe_inputs(args, kwargs)})\n"
            f"  {type(error).__name__}: {first_line(error)}" + (f", at {source}" if source else "") + "\n"
            "  A batch is what forward takes: a tensor, a tuple that begins with it, or a dictionary of inputs by name"
        ) from error


def _activations(recording: Recording, spec: PermutationSpec) -> Iterable[Activation]:
    graph, inference = recording.graph, spec.inference
    assert inference is not None
    nonlinear = {call for call in graph.calls if op_name(call.op) in _NONLINEARITIES}
    feeding = {operand for call in nonlinear for operand in list(call.operands())[:1]}
    inside, varying = _inside_softmax(graph), _fed_by_inputs(graph)
    for call in graph.calls:
        for value in filter(None, call.results):
            place = recording.places.get(value)
            if place is None or not place.dtype.is_floating_point or not (value.fed and value in varying):
                continue
            for part, pattern in inference.patterns(value):
                shape = _shape(value, part)
                if _describes(pattern, shape, spec):
                    yield Activation(
                        value.name + _subscript(part),
                        op_name(call.op),
                        call.where.module,
                        call.where.source,
                        shape,
                        pattern,
                        call in nonlinear,
                        value in feeding,
                        only_moves(call.op),
                        value in inside,
                        value=value,
                        part=part,
                    )


def _shape(value: Value, part: tuple[int, int, int] | None) -> tuple[int, ...]:
    return tuple(part[2] if part is not None and axis == part[0] else n for axis, n in enumerate(value.shape))


def _subscript(part: tuple[int, int, int] | None) -> str:
    return "" if part is None else f"[{':, ' * part[0]}{part[1]}:{part[1] + part[2]}]"


def _describes(pattern: Pattern, shape: Sequence[int], spec: PermutationSpec) -> bool:
    """Tell whether a pattern says where each unit of a tensor is.

    An axis that repeats units has the term of one copy, which is too short. In ``(2 h 5)`` two lengths may change with
    the batch, and then the length of the whole does not tell how.
    """
    for term, size in zip(pattern, shape, strict=True):
        if isinstance(term, Product) and sum(isinstance(t, Pinned) and t.size != 1 for t in term.terms) > 1:
            return False
        if not isinstance(term, Pinned) and spec.size(term) != size:
            return False
    return True


def _fed_by_inputs(graph: Graph) -> set[Value]:
    """Return what inputs flow into, or random numbers."""
    found = set(graph.inputs)
    for call in graph.calls:
        if draws_random_numbers(call) or not found.isdisjoint(call.operands()):
            found.update(value for value in call.results if value is not None)
    return found


def _inside_softmax(graph: Graph) -> set[Value]:
    """Return what elementwise operations make on the way into a softmax, and what they begin with."""
    made: dict[Value, Call] = {value: call for call in graph.calls for value in call.results if value is not None}
    found: set[Value] = set()
    for call in graph.calls:
        pending = list(call.operands())[:1] if "softmax" in op_name(call.op) else []
        while pending:
            value = pending.pop()
            if value in made and value not in found:
                found.add(value)
                if is_pointwise(made[value].op) or only_moves(made[value].op):
                    pending += made[value].operands()
    return found

"""Graph and rules to a specification: the compiler's middle.

Every value of the graph gets one term for each of its axes. Each call's rule equates terms, once: what is learnt later
reaches back through the union-find. Model inputs and outputs are pinned. Then families settle
(:mod:`autoperm.presence`), and each parameter's terms are written as a pattern.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from . import rules
from .errors import SignatureError
from .graph import Call, Graph, Value, Where
from .inputs import resolve_inputs
from .joining import broadcast
from .rules.bind import Binding, fresh
from .rules.context import Axes
from .rules.distinct import Spreads, differs_along
from .rules.meaning import Positions, counting, counting_axis, hand_on, values_in
from .signature import parse
from .spec import PermutationSpec
from .state import check_model
from .terms import Arranged, Misfit, Pin, Term, constant, during, factor, pin
from .trace import trace
from .trace.boundary import draws_random_numbers, reads_what_it_draws_from
from .write import Tensors, conclude


@dataclass(frozen=True, slots=True)
class Unknown:
    """An operation without a rule, all axes of which were pinned."""

    op: str
    where: Where
    operands: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        shapes = "\n    ".join(self.operands)
        return f"{self.op}\n    {self.where}\n    {shapes}\n    {self.advice}"


def discover(model: nn.Module, example_inputs: Any = None) -> PermutationSpec:
    """Find which units of a model may be permuted without changing what it computes in evaluation mode.

    Args:
        model: any module; it is left as it is.
        example_inputs: a tensor, a tuple of positional inputs, or a dictionary of inputs by name. If left out, the
            model is asked for them, or its first layers are.

    Returns:
        The specification: one pattern for each parameter and floating-point buffer, one entry for each factor.

    Raises:
        ArchitectureError: if it is no model.
        TraceError: if the model cannot be traced, or no inputs were found that it runs on.

    Example:
        >>> spec = discover(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> print(spec)
        PermutationSpec: 1 group, 4 tensors, 10^4.6 permutations
        <BLANKLINE>
          factor  size    carried by
          a       8       0.weight[0], 0.bias[0], 2.weight[1]
        <BLANKLINE>
          tensor    shape  pattern
          0.weight  8x3    a _
          0.bias    8      a
          2.weight  2x8    _ a
          2.bias    2      _
        <BLANKLINE>
          pinned:
            2 axes  model output         2.weight[0], 2.bias[0]
            1 axis  model input 'input'  0.weight[1]
    """
    check_model(model)
    args, kwargs = resolve_inputs(model, example_inputs)
    return infer(trace(model, args, kwargs))


def infer(graph: Graph) -> PermutationSpec:
    """Find which units of a traced model may be permuted; see :func:`discover`."""
    # Everything that discovery makes stays alive to its end, so collecting garbage meanwhile finds nothing, but walks
    # over all that the tracer has left in memory.
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _Discovery(graph).run()
    finally:
        if enabled:
            gc.enable()


def infer_call(call: Call, meanings: Mapping[Value, Positions]) -> dict[Value, Axes]:
    """Find what one operation says of the axes of its operands and results, if nothing else is known of them.

    Args:
        call: the operation.
        meanings: which values hold positions. The axis whose positions they are comes after a value's own axes.
    """
    alone = _Discovery(Graph([call], {}, [], []))
    for value in call.operands():
        if value.kind != "constant":
            alone.terms[value] = fresh(value.shape, None)
            if value in meanings:
                alone.meanings[value] = replace(meanings[value], along=factor(meanings[value].along.size))
    alone.call = call
    with during(call):
        alone._apply(call)
    found = alone.meanings
    return {
        value: [*axes, *([said.along] if (said := found.get(value)) else [])] for value, axes in alone.terms.items()
    }


class _Discovery:
    """The state of one discovery; also the context that shape rules see."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.terms: dict[Value, Axes] = {}
        self.tensors: list[Axes] = []
        self.moved: list[Axes] = []
        self.unknown: list[Unknown] = []
        self.call: Call | None = None
        self.spreads = Spreads(graph.calls)
        self.meanings: dict[Value, Positions | None] = {}
        self.counting: dict[Value, int | None] = {}
        self.arranged: list[Arranged] = []
        self.counts: dict[Value, object] = {}

    def run(self) -> PermutationSpec:
        for name, value in self.graph.tensors.items():
            if value not in self.terms:
                self._define(value, fresh(value.shape, None))
            if not value.used:
                self._pin_value(value, Pin("the traced path never uses it"))
            elif name in self.graph.overlapping:
                self._pin_value(value, Pin("it shares memory with another tensor"))
        for value in self.graph.inputs:
            self._define(value, fresh(value.shape, Pin(f"model input {value.name!r}")))
        for call in self.graph.calls:
            self.call = call
            with during(call):
                self._apply(call)
            self.spreads.follow(rules.op_name(call.op), call, self.terms)
        self.call = None
        for value, own in self.graph.written:  # the next run reads it there
            self._keep_up(value, own)
        for value in self.graph.outputs:
            self._pin_value(value, Pin("model output"))
            meaning = self.positions(value)
            if meaning is not None:
                pin(meaning.along, Pin("the model returns positions along the axis"))
        meanings = {value: meaning for value, meaning in self.meanings.items() if meaning is not None}
        tensors = Tensors(self.tensors, self.moved)
        return conclude(self.graph, tensors, self.terms, meanings, self.unknown, self.arranged).spec()

    def _keep_up(self, value: Value, own: Value) -> None:
        """What a model writes back to one of its tensors is permuted as that tensor is."""
        self.forget(value, "they are kept")
        broadcast([self.axes(value), self.axes(own)])

    def _pin_value(self, value: Value, why: Pin) -> None:
        for term in self.axes(value):
            pin(term, why)

    def _define(self, value: Value, axes: Axes) -> None:
        self.terms[value] = axes
        moved = self.call is not None and rules.only_moves(self.call.op) and value in self.call.results
        (self.moved if moved else self.tensors).append(axes)

    def axes(self, value: Value) -> Axes:
        if value not in self.terms:
            self._define(value, _constant_axes(value))
        return self.terms[value]

    # --- what shape rules may ask

    @property
    def result(self) -> Value:
        result = self.results[0]
        if result is None:
            raise SignatureError("the call has no tensor result")
        return result

    @property
    def results(self) -> Sequence[Value | None]:
        return self.call.results if self.call is not None else ()

    def pin(self, terms: Sequence[Term], reason: str, *, gap: bool = False) -> None:
        for term in terms:
            pin(term, Pin(reason, self.call, gap))

    def relate(self, axes: Axes) -> None:
        self.tensors.append(axes)

    def bind(self, row: str, operands: Sequence[Axes], shapes: Sequence[tuple[int, ...]]) -> list[Axes]:
        call = self.call
        binding = Binding(parse(row), lambda: Pin("order matters", call))
        binding.operands(operands)
        results = [binding.read(p, s) for p, s in zip(binding.signature.results, shapes, strict=False)]
        self.tensors += binding.intermediates()
        return results

    # --- what rules on positions may ask

    def positions(self, value: Value) -> Positions | None:
        if value.kind != "constant":
            meaning = self.meanings.get(value)
            return meaning and replace(meaning, axes=tuple(self.axes(value)))
        if value not in self.counting:
            self.counting[value] = counting_axis(value)
        dim = self.counting[value]
        if dim is not None and value not in self.meanings:  # until the call is done: another may mean another axis
            self.meanings[value] = counting(value, dim)
        return self.meanings.get(value)

    def note(self, value: Value, meaning: Positions) -> None:
        self.meanings[value] = meaning

    def forget(self, value: Value, reason: str) -> None:
        meaning = self.meanings.get(value)
        if meaning is not None:
            self.pin([meaning.along], f"positions along the axis are numbers here: {reason}")

    def is_distinct(self, value: Value, axis: Term) -> bool:
        return differs_along(self.spreads.of(value, self.axes(value)), axis)

    # --- calls

    def _apply(self, call: Call) -> None:
        results = [value for value in call.results if value is not None]
        if not results:  # numbers that come out are numbers of positions too
            self._take_numbers(call)
            return
        if draws_random_numbers(call):
            self._draw(call, results)
            return
        try:
            found = self._results(call)
        except (SignatureError, Misfit, LookupError, TypeError, ValueError, ArithmeticError) as error:
            found = None
            advice = f"its rule does not fit this call: {error}"
        else:
            advice = ""
        if found is None or len(found) < sum(value.used for value in results):
            self._give_up(call, advice)
            found = []
        else:
            spare = Pin("a result that is not used")
            for index, value in enumerate(results):
                self._define(value, found[index] if index < len(found) else fresh(value.shape, spare))
        for value in call.operands():
            if value.kind == "constant":
                self.meanings.pop(value, None)
        for value in results:
            meaning = self.positions(value)
            if meaning is not None and not meaning.ends:
                self.tensors.append([*meaning.axes, meaning.along])

    def _results(self, call: Call) -> list[Axes] | None:
        """Return the axes of the results, or None if no rule knows the operation."""
        positions_rule = rules.positions_rule_for(call.op)
        found: Any = positions_rule(self, *call.args, **call.kwargs) if positions_rule is not None else None
        if found is not None:
            return found if found and isinstance(found[0], list) else [found]
        self._take_numbers(call)
        row = rules.signature_for(call.op)
        if row is not None:
            text = row if isinstance(row, str) else row(*call.args, **call.kwargs)
            operands = [self.axes(value) for value in call.operands()]
            if text == "... -> ...":
                return [list(operands[0])]
            return self.bind(text, operands, [value.shape for value in call.results if value is not None])
        rule = rules.rule_for(call.op)
        if rule is not None:
            found = rule(self, *call.args, **call.kwargs)
            return found if found and isinstance(found[0], list) else [found]
        if rules.is_pointwise(call.op):
            operands = [self.axes(value) for value in call.operands()]
            return [broadcast(operands)] if operands else [[constant(n) for n in self.result.shape]]
        return None

    def _draw(self, call: Call, results: Sequence[Value]) -> None:
        """Random numbers come in an order: each place of the result, and of what it is drawn from, has its own."""
        why = Pin("random numbers are drawn in order", call)
        if reads_what_it_draws_from(call):
            self._take_numbers(call)
            for value in call.operands():
                self._pin_value(value, why)
        for value in results:
            self._define(value, fresh(value.shape, why))

    def _take_numbers(self, call: Call) -> None:
        """Positions are handed on by what only moves them; whatever else an operation does, it does to the numbers."""
        meaning = hand_on(self, rules.op_name(call.op), call.args, call.kwargs)
        moved = values_in(call.args[:1]) if meaning is not None else []
        for value in call.operands():
            if value not in moved:
                self.forget(value, "they are computed with")
        for result in call.results:
            if result is not None and meaning is not None:
                self.note(result, meaning)

    def _give_up(self, call: Call, problem: str) -> None:
        """Pin all that an operation touches, and say so if a parameter reaches it."""
        name = rules.op_name(call.op)
        why = Pin("its rule does not fit" if problem else "no rule", call, gap=True)
        operands = list(dict.fromkeys(call.operands()))
        for value in operands:
            self.forget(value, why.reason)
            for term in self.axes(value):
                pin(term, why)
        results = [value for value in call.results if value is not None]
        for value in results:
            self._define(value, fresh(value.shape, why))
        if any(value.fed for value in operands):
            example = ", ".join(" ".join("_" * value.ndim) for value in operands)
            made = ", ".join(" ".join("_" * value.ndim) for value in results)
            code = f'autoperm.register("{name}", "{example} -> {made}")  # a name for each _ that may be permuted'
            self.unknown.append(
                Unknown(name, call.where, tuple(map(repr, operands)), "; ".join(filter(None, [problem, code])))
            )


def _constant_axes(value: Value) -> Axes:
    """Axes of values that no parameter feeds: constant where they are all the same, else pinned."""
    why = Pin("values that do not come from parameters")
    if value.data is None or value.data.numel() == 0 or value.data.is_meta:
        return fresh(value.shape, why)
    data = value.data
    found: Axes = []
    for dim, size in enumerate(value.shape):
        same = size > 1 and bool((data == data.narrow(dim, 0, 1)).all())
        found.append(constant(size) if same else factor(size, why))
    return found

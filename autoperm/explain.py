"""Why an axis is pinned, or moves with others: the shortest chain of operations that says so.

What one operation says about its axes is found by applying its rule alone, to axes of which nothing else is known. That
gives a graph whose nodes are the axes of all tensors, and whose edges are the equalities, each with the operation
that stated it. A chain is a shortest path in that graph, among the axes that carry the factor in question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import networkx as nx

from .discover import infer_call
from .errors import SpecError
from .graph import Call, Value, Where
from .rules import op_name
from .signature import format_pattern
from .spec import PermutationSpec
from .terms import FACTOR, Pin, Term, find, leaves_of
from .trees import leaves
from .write import Inference, describe_pin

Node = tuple[Value, int]
"""An axis of a value. One more than it has stands for the axis whose positions its numbers are."""


@dataclass(frozen=True, slots=True)
class Step:
    """An equality of two axes, and the operation that stated it."""

    source: str
    target: str
    op: str
    where: Where

    def __str__(self) -> str:
        return f"{self.source} = {self.target}  by {self.op}, {self.where}"


@dataclass(frozen=True, slots=True)
class Chain:
    """How one factor of an axis comes to be pinned, or to move with another axis.

    Attributes:
        factor: the name of the factor; empty where it is pinned and no other varies over it.
        size: its number of units.
        steps: from the axis that was asked about to the end of the chain.
        end: the axis at the end.
        reason: why it is pinned there; empty for a free factor.
        gap: whether it is pinned for lack of a rule or of a notation in autoperm, not by a law of the model.
        others: for a free factor, the other axes of parameters and buffers that it moves with.
    """

    factor: str
    size: int
    steps: tuple[Step, ...]
    end: str
    reason: str = ""
    gap: bool = False
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        units = f"{self.size} units"
        name = f"factor {self.factor}, {units}" if self.factor else units
        if self.reason:
            kind = "a gap of autoperm" if self.gap else "a law of the model"
            head = f"{name}: pinned ({kind})"
        elif self.others:
            shown = ", ".join(self.others[:6]) + (f" and {len(self.others) - 6} more" if len(self.others) > 6 else "")
            head = f"{name}: free, moves with {shown}"
        else:
            head = f"{name}: free, on this axis alone"
        lines = [head, *(f"  {step}" for step in self.steps)]
        if self.reason:
            lines.append(f"  {self.end}: {self.reason}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an axis of a parameter or buffer is what it is; printed, it reads as text.

    Attributes:
        tensor: the name of the parameter or buffer.
        axis: which of its axes.
        pattern: what stands there in the specification.
        chains: one for each factor of the axis, left to right.
    """

    tensor: str
    axis: int
    pattern: str
    chains: tuple[Chain, ...]

    def __str__(self) -> str:
        text = [f"{self.tensor}[{self.axis}] is {self.pattern}"]
        for chain in self.chains:
            text += ["  " + line for line in str(chain).splitlines()]
        return "\n".join(text)


def explain(spec: PermutationSpec, tensor: str, axis: int, to: tuple[str, int] | None = None) -> Explanation:
    """See :meth:`autoperm.PermutationSpec.explain`."""
    if spec.inference is None:
        raise SpecError(
            "this specification was written by hand or read from a file, so nothing is known of its reasons; "
            "autoperm.discover(model).explain(...) knows them"
        )
    value, axis = _find(spec, tensor, axis)
    target = None if to is None else _find(spec, *to)
    inference = spec.inference
    if inference not in _EQUALITIES:
        _EQUALITIES[inference] = _Equalities(inference)
    equalities = _EQUALITIES[inference]
    chains = []
    for leaf in dict.fromkeys(leaf for leaf in leaves(inference.trees[value][axis]) if leaf.size > 1):
        name = inference.factors[leaf].name if leaf in inference.factors else ""
        if leaf.pin is not None:
            chains.append(equalities.to_pin(leaf, name, (value, axis)))
        else:
            chains.append(equalities.to_axis(leaf, name, (value, axis), target))
    if to is not None:
        chains = [chain for chain in chains if chain.steps and not chain.reason]
        if not chains:
            raise SpecError(f"{tensor}[{axis}] and {to[0]}[{to[1]}] have no free factor in common")
    return Explanation(tensor, axis, format_pattern((spec.patterns[tensor][axis],)), tuple(chains))


def _find(spec: PermutationSpec, tensor: str, axis: int) -> Node:
    assert spec.inference is not None
    if tensor not in spec.patterns:
        raise SpecError(f"no tensor is called {tensor!r}; there are {', '.join(list(spec.patterns)[:20])}")
    ndim = len(spec.patterns[tensor])
    if not -ndim <= axis < ndim:
        raise SpecError(f"{tensor} has {ndim} axes, so there is no axis {axis}")
    return spec.inference.graph.tensors[tensor], axis % ndim


class _Equalities:
    """The graph of axes and of what each operation says of them."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.graph: nx.Graph[Node] = nx.Graph()
        self.pins: dict[Node, list[Pin]] = defaultdict(list)
        self.carriers: dict[Term, dict[Node, None]] = defaultdict(dict)
        self.names = {value: name for name, value in reversed(inference.graph.tensors.items())}
        for value, axes in inference.terms.items():
            along = [inference.meanings[value].along] if value in inference.meanings else []
            for axis, term in enumerate([*axes, *along]):
                for leaf in _inside(term):
                    self.carriers[leaf][value, axis] = None
        for call in inference.graph.calls:
            self._add(call)
        for value in inference.graph.inputs:
            self._pin(value, Pin(f"model input {value.name!r}"))
        for value in inference.graph.outputs:
            self._pin(value, Pin("model output"))

    def _pin(self, value: Value, why: Pin) -> None:
        for axis in range(value.ndim):
            self.pins[value, axis].append(why)

    def _add(self, call: Call) -> None:
        shared: dict[Term, list[Node]] = defaultdict(list)
        for value, axes in infer_call(call, self.inference.meanings).items():
            for axis, term in enumerate(axes):
                for leaf in _inside(term):
                    shared[leaf].append((value, axis))
                    if leaf.pin is not None:
                        self.pins[value, axis].append(leaf.pin)
        for hub, *others in shared.values():
            for node in others:
                if node != hub and not self.graph.has_edge(hub, node):
                    self.graph.add_edge(hub, node, call=call)

    def to_axis(self, leaf: Term, name: str, start: Node, target: Node | None) -> Chain:
        """Return the chain from an axis to the nearest one in another module, or to a given one, with a factor."""
        carriers = self._carriers(leaf)
        tensors = [node for node in carriers if node[0] in self.names and node != start]
        others = tuple(map(self._text, tensors))
        goals = [node for node in tensors if self._module(node) != self._module(start)] or tensors
        if target is not None:
            goals = [target] if target in carriers else []
        path = self._path(carriers, start, goals)
        return Chain(name, leaf.size, self._steps(path), self._text(path[-1]), others=others)

    def to_pin(self, leaf: Term, name: str, start: Node) -> Chain:
        """Return the chain from an axis to where its factor is pinned, by a law of the model if there is one."""
        assert leaf.pin is not None
        carriers = self._carriers(leaf)
        for gap in (False, True):
            goals = [node for node in carriers if any(why.gap == gap for why in self.pins.get(node, ()))]
            path = self._path(carriers, start, goals)
            if path[-1] in goals:
                why = next(why for why in self.pins[path[-1]] if why.gap == gap)
                return Chain(name, leaf.size, self._steps(path), self._text(path[-1]), describe_pin(why), gap)
        return Chain(name, leaf.size, (), self._text(start), describe_pin(leaf.pin), leaf.pin.gap)

    def _carriers(self, leaf: Term) -> dict[Node, None]:
        """Return the axes that carry a factor; one that is two neighbours as one stands where they stand."""
        parts = self.inference.merged.get(leaf, (leaf,))
        return {node: None for part in parts for node in self.carriers[find(part)]}

    def _path(self, carriers: Iterable[Node], start: Node, goals: Iterable[Node]) -> list[Node]:
        """Return the shortest path to one of the goals, or the start alone if no chain of equalities leads there."""
        within = self.graph.subgraph([node for node in carriers if node in self.graph])
        if start not in within:
            return [start]
        reached = nx.single_source_shortest_path(within, start)
        return min((reached[goal] for goal in goals if goal in reached), key=len, default=[start])

    def _steps(self, path: list[Node]) -> tuple[Step, ...]:
        """One step an operation: two of its operands may be linked through a third."""
        steps: list[Step] = []
        last: Call | None = None
        for a, b in pairwise(path):
            call = self.graph.edges[a, b]["call"]
            source = steps.pop().source if call is last else self._text(a)
            steps.append(Step(source, self._text(b), op_name(call.op), call.where))
            last = call
        return tuple(steps)

    def _module(self, node: Node) -> str:
        return self.names[node[0]].rpartition(".")[0]

    def _text(self, node: Node) -> str:
        value, axis = node
        name = self.names.get(value, value.name)
        return f"{name}[{axis}]" if axis < value.ndim else f"the positions in {name}"


_EQUALITIES: WeakKeyDictionary[Inference, _Equalities] = WeakKeyDictionary()
"""Made at the first question about a specification, kept for the next."""


def _inside(term: Term) -> list[Term]:
    return [leaf for leaf in leaves_of(term) if leaf.kind == FACTOR and leaf.size > 1]

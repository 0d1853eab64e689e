"""The layers that can be repaired, found in the recorded run of a model; and those that cannot, with reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod

from torch import Tensor, nn

from ..activations import Capture
from ..errors import SpecError
from ..graph import Call, Graph, Value
from ..presence import Members
from ..rules import only_moves, op_name
from ..terms import CONSTANT, find
from ..trees import UnwrittenError, leaves, tree_of
from .affine import Affine, affine
from .operands import Operands, View

_NOT_AFFINE = {
    **{f"aten.{name}": "its weights are used at every step" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten.{name}": "a table of values has no channel-wise bias" for name in ("embedding", "embedding_bag")},
}
_DOES_NOTHING = frozenset({"aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.detach", "aten.alias"})
"""In evaluation mode."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer whose parameters scale and shift each channel of what it computes.

    Attributes:
        name: the path of the module that has its weight, or the name of the weight where that is all it has.
        op: the operation that computes it, such as ``"aten.conv2d"``.
        module: the path of the innermost module in which that happens.
        source: the line of the model's source that does it.
        size: the number of channels.
        value: what it computes, in the recorded graph.
        axes: of the value, those of the channels.
        weight: the parameter that scales.
        channels: the number of the channel of each entry of the weight, of a shape that broadcasts to the weight's.
        bias: the parameter that shifts, one entry a channel; None where there is none.
        normalises: whether the layer normalises before it scales.
    """

    name: str
    op: str
    module: str
    source: str
    size: int
    value: Value = field(repr=False)
    axes: tuple[int, ...] = field(repr=False)
    weight: View = field(repr=False)
    channels: Tensor = field(repr=False)
    bias: View | None = field(repr=False)
    normalises: bool = field(default=False, repr=False)

    def __str__(self) -> str:
        return ", ".join(filter(None, [f"{self.name} ({self.op.removeprefix('aten.')})", self.source]))


@dataclass(frozen=True)
class LeftAlone:
    """A layer that is not repaired.

    Attributes:
        name: as that of a :class:`Layer`.
        reason: why not.
        source: the line of the model's source that computes it.
    """

    name: str
    reason: str
    source: str

    def __str__(self) -> str:
        return ", ".join(filter(None, [f"{self.name}: {self.reason}", self.source]))


def find_layers(
    capture: Capture, model: nn.Module, wanted: Sequence[str] | None
) -> tuple[list[Layer], list[LeftAlone]]:
    """Find the layers of a model that can be repaired.

    Args:
        capture: a run of the model.
        model: the model.
        wanted: patterns of names, as for a shell; ``["*"]`` for all that can be repaired. By default all but those
            whose channels the model puts out, and those whose output a layer that is repaired normalises at once.

    Returns:
        The layers in the order in which the run computes them, and those left alone.

    Raises:
        SpecError: if a pattern fits no layer.
    """
    search = _Search(capture, model)
    found, alone = search.candidates()
    if wanted is not None:
        for pattern in wanted:
            if not any(_fits(layer, [pattern]) for layer in found):
                raise SpecError(_unknown(pattern, found, alone))
        return [layer for layer in found if _fits(layer, wanted)], alone
    norms = {layer.value: layer for layer in found if layer.normalises}
    chosen = []
    for layer in found:
        norm = search.norm_after(layer, norms)
        if norm is not None:
            alone.append(LeftAlone(layer.name, f"{norm.name}, which normalises its output, is repaired", layer.source))
        elif search.puts_out(layer):
            alone.append(LeftAlone(layer.name, "the model puts its channels out", layer.source))
        else:
            chosen.append(layer)
    return chosen, alone


def in_levels(layers: Sequence[Layer], graph: Graph) -> list[list[Layer]]:
    """Put layers together none of which gets anything from another, in the order in which they must be repaired."""
    places = {layer.value: layer for layer in layers}
    depth: dict[Value, int] = {}
    levels: dict[int, list[Layer]] = {}
    for call in graph.calls:
        below = max((depth.get(value, 0) for value in call.operands()), default=0)
        for value in call.results:
            if value in places:
                levels.setdefault(below, []).append(places[value])
            if value is not None:
                depth[value] = below + (value in places)
    return [levels[number] for number in sorted(levels)]


def _fits(layer: Layer, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in (layer.name, layer.weight.parameter))


def _unknown(pattern: str, found: Sequence[Layer], alone: Sequence[LeftAlone]) -> str:
    lines = [f"no layer that can be repaired is named '{pattern}'"]
    lines += [f"  {other}" for other in alone if fnmatchcase(other.name, pattern)]
    names = list(dict.fromkeys(layer.name for layer in found))
    return "\n".join([*lines, f"  there are: {', '.join(names) or 'none'}"])


class _Search:
    def __init__(self, capture: Capture, model: nn.Module) -> None:
        self.capture, self.model = capture, model
        self.graph = capture.recording.graph
        self.operands = Operands(self.graph)
        self.outputs = self._outputs()

    def candidates(self) -> tuple[list[Layer], list[LeftAlone]]:
        """Return all layers that can be repaired, and those that cannot."""
        found: list[Layer] = []
        alone: list[LeftAlone] = []
        for call in self.graph.calls:
            name = op_name(call.op)
            if name in _NOT_AFFINE:
                alone.append(LeftAlone(call.where.module or name, _NOT_AFFINE[name], call.where.source))
            step = affine(call, lambda operand: self.operands.view(operand) is not None)
            layer = None if step is None else self._layer(call, step)
            if isinstance(layer, Layer):
                found.append(layer)
            elif layer is not None:
                alone.append(layer)
        return found, alone

    def _layer(self, call: Call, step: Affine) -> Layer | LeftAlone | None:
        weight = self.operands.view(step.weight)
        if weight is None:
            why = "is computed" if step.weight.kind == "activation" else "is no parameter"
            return LeftAlone(call.where.module or op_name(call.op), f"its weight {why}", call.where.source)
        value = call.results[0]
        assert value is not None
        name = weight.parameter.removesuffix(".weight")
        bias = self.operands.view(step.bias)
        if step.bias is None:
            value, bias = self._added(value, step.axes)
        if step.is_product and bias is None:
            return None
        size = prod(value.shape[axis] for axis in step.axes)
        layer = Layer(
            name, op_name(call.op), call.where.module, call.where.source, size, value,
            step.axes, weight, step.channels, bias, step.normalises,
        )  # fmt: skip
        why = "its bias is computed" if step.bias is not None and bias is None else self._why_not(layer)
        return LeftAlone(name, why, layer.source) if why else layer

    def _added(self, value: Value, axes: Sequence[int]) -> tuple[Value, View | None]:
        """Follow a value into the addition of a parameter with one entry a channel, if that is all it goes into."""
        readers = self.operands.readers[value]
        if len(readers) == 1 and op_name(readers[0].op) == "aten.add" and not readers[0].kwargs:
            for other in readers[0].operands():
                view, result = self.operands.view(other), readers[0].results[0]
                if view is not None and result is not None and result.shape == value.shape:
                    start = value.ndim - other.ndim
                    wanted = [n if axis in axes else 1 for axis, n in enumerate(value.shape)]
                    if list(other.shape) == wanted[start:] and all(n == 1 for n in wanted[:start]):
                        return result, view
        return value, None

    def _why_not(self, layer: Layer) -> str:
        value = layer.value
        if value in self.outputs:
            return "its output is the model's"
        place = self.capture.recording.places.get(value)
        if place is None or not place.dtype.is_floating_point:
            return "its output cannot be watched" if place is None else "its output is complex"
        for view in filter(None, (layer.weight, layer.bias)):
            why = self.operands.why_not(view, self.model)
            if why:
                return why
        return ""

    def _outputs(self) -> set[Value]:
        """Return the values that the model puts out, up to moves, and those that it keeps."""
        found: set[Value] = set()
        pending = [*self.graph.outputs, *(value for value, _ in self.graph.written)]
        while pending:
            value = pending.pop()
            if value not in found:
                found.add(value)
                if value in self.operands.makers and _moves(self.operands.makers[value][0]):
                    pending += self.operands.makers[value][0].operands()
        return found

    def norm_after(self, layer: Layer, norms: dict[Value, Layer]) -> Layer | None:
        """Return the layer that normalises all of a layer's output at once, if there is one."""
        value = layer.value
        while len(self.operands.readers[value]) == 1:
            result = self.operands.readers[value][0].results[0]
            if result is None:
                return None
            if result in norms:
                return norms[result]
            if not _moves(self.operands.readers[value][0]):
                return None
            value = result
        return None

    def puts_out(self, layer: Layer) -> bool:
        """Tell whether a layer's channels are those of the model's output, which elementwise operations only change."""
        inference = self.capture.spec.inference
        assert inference is not None
        axes = inference.terms[layer.value]
        try:
            found = [leaf for axis in layer.axes for leaf in leaves(tree_of([find(axes[axis])], Members()))]
        except UnwrittenError:
            return False
        found = [leaf for leaf in found if leaf.size > 1 and leaf.kind != CONSTANT]
        pins = [leaf.pin for leaf in found]
        return None not in pins and any(pin is not None and pin.reason == "model output" for pin in pins)


def _moves(call: Call) -> bool:
    return only_moves(call.op) or op_name(call.op) in _DOES_NOTHING

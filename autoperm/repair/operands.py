"""Operands that are parameters, or views of parameters, and whether anything else reads them.

A fused weight is one parameter of which each call reads a part; a weight may be transposed on the way to the call that
reads it. Both can be written to, through the same views. A weight that is read twice cannot: to change what one call
makes of it would change what the other does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..graph import Call, Graph, Value
from ..rules import only_moves


@dataclass(frozen=True, eq=False)
class View:
    """A parameter, as a call reads it.

    Attributes:
        parameter: its name.
        value: what the call reads.
        moves: the calls on the way from the parameter, each with the number of its result.
    """

    parameter: str
    value: Value
    moves: tuple[tuple[Call, int], ...] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """Take the same view of a tensor of the parameter's shape."""
        for call, number in self.moves:
            made = call.op(tensor, *call.args[1:], **call.kwargs)
            tensor = made if isinstance(made, Tensor) else made[number]
        return tensor

    def within(self, model: nn.Module) -> Tensor:
        """Return the memory of a model's parameter that the call reads."""
        return self.of(model.get_parameter(self.parameter).detach())


class Operands:
    """What the calls of a graph read of its parameters.

    Attributes:
        makers: for each value that a call makes, the call and the number of its result.
        readers: for each value, the calls that read it.
    """

    def __init__(self, graph: Graph) -> None:
        self.makers: dict[Value, tuple[Call, int]] = {}
        self.readers: dict[Value, list[Call]] = defaultdict(list)
        self._overlapping = set(graph.overlapping)
        self._reads: dict[str, list[View]] = defaultdict(list)
        read = [*graph.outputs, *(value for pair in graph.written for value in pair)]
        for call in graph.calls:
            self.makers |= {value: (call, i) for i, value in enumerate(call.results) if value is not None}
            for value in call.operands():
                self.readers[value].append(call)
                if not only_moves(call.op):
                    read.append(value)
        for value in read:
            view = self.view(value)
            if view is not None:
                self._reads[view.parameter].append(view)

    def view(self, value: object) -> View | None:
        """Return an operand as a view of a parameter; None if it is anything else."""
        if not isinstance(value, Value):
            return None
        moves: list[tuple[Call, int]] = []
        start = value
        while start in self.makers and only_moves(self.makers[start][0].op):
            moves.append(self.makers[start])
            call = moves[-1][0]
            start = call.args[0]
            if list(call.operands()) != [start]:
                return None
        return View(start.name, value, tuple(reversed(moves))) if start.kind == "parameter" else None

    def why_not(self, view: View, model: nn.Module) -> str:
        """Say why a parameter cannot be changed for one call alone; nothing if it can."""
        name, parameter = view.parameter, model.get_parameter(view.parameter).detach()
        if name in self._overlapping:
            return f"{name} shares memory with another tensor"
        if view.of(parameter).untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
            return f"{name} is copied before it is used"
        if len(self._reads[name]) == 1 and not view.moves:
            return ""
        numbers = torch.arange(parameter.numel()).view(parameter.shape)
        mine = view.of(numbers).flatten()
        if int(mine.bincount().max()) > 1:
            return f"{name} is repeated before it is used"
        reads = torch.cat([other.of(numbers).flatten() for other in self._reads[name]])
        return f"{name} is used more than once" if int(reads.bincount()[mine].max()) > 1 else ""

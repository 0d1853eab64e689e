"""What a traced model is to everything else: values, and the calls that make them. Knows no tracer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the user's model: the module's path and the line of source that made the call."""

    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        parts = [f"in {self.module}" if self.module else "", self.source]
        return ", ".join(filter(None, parts)) or "in the model's forward"


@dataclass(eq=False, slots=True)
class Value:
    """A tensor in the graph.

    ``kind`` is one of ``parameter``, ``buffer`` (floating-point and persistent: it moves with the parameters),
    ``input``, ``constant`` (``data`` holds its values, where they are known) and ``activation``. ``fed`` says that a
    parameter or buffer flows into it, ``used`` that something flows out of it.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "activation"
    data: torch.Tensor | None = None
    used: bool = False
    fed: bool = False

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}"


@dataclass(eq=False, slots=True)
class Call:
    """One operation: what is called, with which arguments (values and plain Python), and what comes out."""

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value | None, ...]
    where: Where

    def operands(self) -> Iterator[Value]:
        """Yield the values among the arguments, in the order of the operation's schema, lists unrolled."""
        for argument in (*self.args, *self.kwargs.values()):
            yield from _values(argument)


def _values(argument: Any) -> Iterator[Value]:
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from _values(item)


@dataclass(eq=False, slots=True)
class Graph:
    """A model as a functional graph of calls.

    Attributes:
        calls: in the order of execution.
        tensors: parameters and floating-point buffers by name, in the order of the state dict. Names that share one
            storage share one value.
        inputs: the model's inputs.
        outputs: the model's outputs, and whatever else must stay as it is.
        overlapping: names of tensors that share parts of a storage, so that none of them can be moved alone.
        written: what the model writes back to its own tensors, each with the tensor.
        notes: what a user should know of how far the graph stands for the model: sentences.
    """

    calls: list[Call]
    tensors: dict[str, Value]
    inputs: list[Value]
    outputs: list[Value]
    overlapping: list[str] = field(default_factory=list[str])
    written: list[tuple[Value, Value]] = field(default_factory=list[tuple[Value, Value]])
    notes: list[str] = field(default_factory=list[str])

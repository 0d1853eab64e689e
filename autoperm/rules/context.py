"""What a rule that works on terms is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..graph import Call, Value
from ..terms import Term

Axes = list[Term]


class Context(Protocol):
    """What a shape rule may ask of discovery."""

    def axes(self, value: Value) -> Axes:
        """Return the terms of a value's axes."""
        ...

    def bind(self, row: str, operands: Sequence[Axes], shapes: Sequence[tuple[int, ...]]) -> list[Axes]:
        """Apply a signature to operands and return the results' axes."""
        ...

    def pin(self, terms: Sequence[Term], reason: str, *, gap: bool = False) -> None:
        """Pin terms, for a reason: a law of the operation, or a gap of the notation."""
        ...

    def relate(self, axes: Axes) -> None:
        """Record a tensor inside the operation: nothing may vary over what is not among its axes."""
        ...

    @property
    def call(self) -> Call | None:
        """The call whose rule is asked."""
        ...

    @property
    def result(self) -> Value:
        """The call's first result."""
        ...

    @property
    def results(self) -> Sequence[Value | None]:
        """All results of the call."""
        ...


Rule = Callable[..., "Axes | list[Axes]"]

"""Run a model again along the path of a recording, and look at some of its values as they are computed.

The same steps make the same values, so a value is known by the number of its step, whatever the size of the batch. What
is not looked at is freed as in any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import TraceError
from ..graph import Value
from ..rules import op_name
from .level import NAMELESS, Level, results_of, seen
from .record import Recording

See = Callable[[Value, Tensor], None]
"""What is called with a value and its tensor, which the model may write to afterwards: copy what is kept."""


def watch(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recording: Recording,
    wanted: Iterable[Value],
    see: See,
) -> None:
    """Run a model, and show some of its values in the order in which they are computed.

    Args:
        model: a model of the architecture that was recorded, in evaluation mode. What its forward does to it is done.
        args: positional inputs; their batch may be of another size.
        kwargs: inputs by name.
        recording: of the same architecture.
        wanted: values of the recording's graph, each with a place in ``recording.places``.
        see: is called with each of them. What it raises ends the run.

    Raises:
        TraceError: if the run takes another path than the recording: then its values are not the recorded ones.

    Example:
        >>> import torch
        >>> from autoperm.trace.record import rehearse
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> recording = rehearse(model, (torch.ones(2, 3),), {})
        >>> show = lambda value, x: print(value.name, *x.shape)
        >>> watch(model, (torch.ones(5, 3),), {}, recording, recording.places, show)
        linear_0 5 4
        relu_1 5 4
    """
    watcher = _Watcher(recording, wanted, see)
    with seen(), watcher:
        model(*args, **kwargs)
    if watcher.number < len(recording.steps):
        raise TraceError(f"the run ends after {watcher.number} of {len(recording.steps)} operations; {_ANOTHER_PATH}")


_ANOTHER_PATH = (
    "it takes another path through the model than the run that was recorded, so its activations are not the same ones"
)


class _Watcher(Level):  # type: ignore[no-untyped-call]
    def __init__(self, recording: Recording, wanted: Iterable[Value], see: See) -> None:
        super().__init__()
        self.steps = recording.steps
        self.see = see
        self.number = 0
        self.wanted: dict[int, list[tuple[int, Value]]] = {}
        for value in wanted:
            place = recording.places[value]
            self.wanted.setdefault(place.step, []).append((place.result, value))

    def step(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> Any:
        """Run an operation, and show what is wanted of what it gives."""
        if op_name(op) in NAMELESS:
            return op(*args, **kwargs)
        expected: Any = self.steps[self.number] if self.number < len(self.steps) else "the end"
        if op is not expected:
            raise TraceError(f"operation {self.number} of the run is {op} instead of {expected}; {_ANOTHER_PATH}")
        made = op(*args, **kwargs)
        for result, value in self.wanted.get(self.number, ()):
            self.see(value, results_of(made)[result])
        self.number += 1
        return made

"""What REPAIR did to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..report import shorten, table
from .layers import LeftAlone


@dataclass(frozen=True)
class RepairedLayer:
    """A layer that was repaired.

    Attributes:
        name: the path of its module, or the name of its weight where that is all it has.
        op: the operation, such as ``"aten.conv2d"``.
        source: the line of the model's source that computes it.
        channels: how many it has.
        scale: by how much its channels were scaled, the median.
        dead: how many of its channels do not vary, so that they were only shifted.
        error: how far its means and deviations are from the targets, at most, relative to the target deviations.
    """

    name: str
    op: str
    source: str
    channels: int
    scale: float
    dead: int
    error: float


@dataclass(frozen=True)
class Repaired:
    """A model between others, with the statistics that were meant.

    Attributes:
        model: a new model of the same architecture, unless biases were added.
        error: how far means and deviations are from the targets, at most, relative to the target deviations.
        tolerance: how far they may be. Above it there was a warning: numbers are rounded too much for more.
        sweeps: how often the data were read.
        layers: those that were repaired, in the order in which they are computed.
        left_alone: those that were not, and why.
    """

    model: nn.Module = field(repr=False)
    error: float
    tolerance: float
    sweeps: int
    layers: tuple[RepairedLayer, ...] = field(repr=False)
    left_alone: tuple[LeftAlone, ...] = field(repr=False)

    @property
    def dead(self) -> int:
        """The number of channels that do not vary, in all layers together."""
        return sum(layer.dead for layer in self.layers)

    @property
    def extent(self) -> str:
        """How many channels were repaired, in words."""
        channels = sum(layer.channels for layer in self.layers)
        return f"{channels} channels of {len(self.layers)} layer{'s' * (len(self.layers) != 1)}"

    def __str__(self) -> str:
        """Return what was repaired and what was left alone, and why."""
        above = f", above the tolerance of {self.tolerance:.0e}" if self.error > self.tolerance else ""
        sweeps = f"{self.sweeps} sweep{'s' * (self.sweeps != 1)}"
        lines = [
            f"REPAIR of {type(self.model).__name__}",
            f"  repaired: {self.extent}",
            f"  error:    {self.error:.0e} of a deviation{above}, after {sweeps}",
        ]
        if self.dead:
            lines.append(f"  dead:     {self.dead} channel{'s do' if self.dead > 1 else ' does'} not vary")
        rows = [["layer", "operation", "channels", "scaled by"]]
        rows += [[x.name, x.op.removeprefix("aten."), str(x.channels), f"{x.scale:.3g}"] for x in self.layers]
        if self.layers:
            lines += ["", table(shorten(rows))]
        if self.left_alone:
            rows = [[layer.name, layer.reason] for layer in self.left_alone]
            lines += ["", "  left alone:", table(shorten(rows), indent=4)]
        return "\n".join(lines)

"""How one model is brought to its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..copies import forget_caches
from .fold import Fold
from .layers import Layer
from .measure import Act, Runs, total
from .result import RepairedLayer
from .statistics import Statistics, Target


class Course:
    """A model on its way to the targets.

    What a layer gets depends on the layers before it. So they are repaired in two ways, the first fast and the second
    exact: all together, each batch being corrected on its way through the model; and one level after the other.

    Attributes:
        found: what the layers were like when the model was last looked at.
        sweeps: how often the data were read.
    """

    def __init__(self, runs: Runs, model: nn.Module, targets: Mapping[Layer, Target]) -> None:
        self.runs, self.model, self.targets = runs, model, targets
        self.folds = {layer: Fold(layer, model) for layer in runs.layers}
        self.found: dict[Layer, Statistics] = {}
        self.sweeps = 0

    @property
    def error(self) -> float:
        """The largest error of a layer."""
        return max(map(self._error, self.folds))

    def on_the_way(self, targets: Sequence[Mapping[Layer, Target]]) -> None:
        """Repair each layer for what it gets from layers that are repaired already, batch by batch.

        With one batch this is exact. Of several, each is brought to what the ends have on it: they differ from each
        other in much the same way for all models, and at an end nothing changes.

        Args:
            targets: for each batch.
        """

        def correct(number: int, layer: Layer, tensor: Tensor, found: Statistics) -> None:
            here = targets[number] if number < len(targets) else self.targets
            scale, shift = self.folds[layer].towards(here[layer], found)
            shape = [n if axis in layer.axes else 1 for axis, n in enumerate(tensor.shape)]
            tensor.mul_(scale.view(shape)).add_(shift.view(shape))

        self._look(self.runs.layers, correct)
        self._fold(self.runs.layers)

    def layer_by_layer(self, levels: Sequence[Sequence[Layer]], tolerance: float) -> None:
        """Repair the layers of each level for what they get from the levels before, which are repaired already."""
        for level in levels:
            if level is not levels[0]:  # the first one gets what it got when the model was last looked at
                self._look(level)
            wrong = [layer for layer in level if self._error(layer) > tolerance]
            self._fold(wrong)

    def check(self) -> None:
        """Look at all layers."""
        self._look(self.runs.layers)

    def _look(self, layers: Sequence[Layer], act: Act | None = None) -> None:
        self.found |= total(self.runs.measure(self.model, layers, act))
        self.sweeps += 1

    def _fold(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            self.folds[layer].then(*self.folds[layer].towards(self.targets[layer], self.found[layer]))
        if layers:
            forget_caches(self.model)

    def _error(self, layer: Layer) -> float:
        return self.folds[layer].error(self.targets[layer], self.found[layer])

    def described(self) -> tuple[RepairedLayer, ...]:
        """Say what was done to each layer."""
        rows = []
        for layer, fold in self.folds.items():
            dead = int((~self.found[layer].varies(fold.dtype)).sum())
            scale = float(fold.scale.median())
            rows.append(RepairedLayer(layer.name, layer.op, layer.source, layer.size, scale, dead, self._error(layer)))
        return tuple(rows)

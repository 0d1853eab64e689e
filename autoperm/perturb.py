"""A copy of a model on which changes of its weights are tried: they are made in place, and taken back.

Copying a model for each change would take longer than running it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .copies import copy_model, forget_caches
from .equivalence import arguments, check_comparable, difference, in_float64, in_native_precision, outputs
from .layout import Cell, cells
from .spec import PermutationSpec
from .state import tensors

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional inputs, and inputs by name."""

Places = list[tuple[Tensor, int]]
"""Views of tensors, each with the dimension in which the units of a class stand."""

_TOLERANCE = 1e-6
_STEP = 1e-2
"""How much weights are changed to see that they matter, relative to their size: too little to wake a unit that is dead
for these inputs."""


class Bench:
    """A copy of the model to try changes on: they are made in place, and taken back."""

    def __init__(
        self,
        spec: PermutationSpec,
        model: nn.Module,
        inputs: Sequence[Any] | Mapping[str, Any],
        randomize: bool,
        generator: torch.Generator,
    ) -> None:
        self.spec, self.generator = spec, generator
        self.notes: list[str] = []
        self.tolerance = _TOLERANCE
        self.copies = False
        given = arguments(inputs)
        self.model, self.inputs = copy_model(model).double().eval(), in_float64(given)
        try:
            own = self.run()
            check_comparable(own)
        except Exception as error:  # anything that the user's forward may raise
            # To verify, sqrt(eps) is allowed; here that would also pass for two neighbours in a smooth table.
            self.tolerance = max(_TOLERANCE, in_native_precision(model, error) ** (4 / 3))
            self.model, self.inputs = copy_model(model).eval(), given
            self.notes.append("the model does not run in float64; it was compared in its own precision")
            own = self.run()
            check_comparable(own)
        if randomize:
            before = {name: tensor.clone() for name, tensor in tensors(self.model).items()}
            randomize_(self.model, generator)
            if any(not torch.equal(x.isfinite(), y.isfinite()) for x, y in zip(own, self.run(), strict=True)):
                for name, value in tensors(self.model).items():
                    value.copy_(before[name])
                self.notes.append("with random weights the outputs are not finite; the model's own were used")
        self.copies = not difference(self.run(), self.run()) <= self.tolerance
        self.reference = self.run()
        self.other_inputs = self._shuffled_inputs()
        self.state = tensors(self.model)
        self.slopes = self._slopes()
        self.standing: dict[str, list[tuple[Cell, int]]] = defaultdict(list)
        for tensor in spec.patterns:
            if tensor not in spec.tied:
                for cell in cells(spec, tensor):
                    for dim, factor in enumerate(cell.names):
                        if factor is not None:
                            self.standing[factor].append((cell, dim))

    def run(self, inputs: Inputs | None = None) -> list[Tensor]:
        """Return the outputs; random numbers are the same in every run."""
        model = copy_model(self.model) if self.copies else self.model
        forget_caches(model)
        return outputs(model, *(self.inputs if inputs is None else inputs))

    def _shuffled_inputs(self) -> Inputs | None:
        """Other inputs, to tell a symmetry of the model from one that it has for some inputs only.

        They are the given ones with the elements of each tensor in another order, if the model runs on that.
        """

        def shuffle(value: Any) -> Any:
            if isinstance(value, Tensor):
                order = torch.randperm(value.numel(), generator=self.generator).to(value.device)
                return value.flatten()[order].view(value.shape)
            return value

        args, kwargs = self.inputs
        inputs = tuple(map(shuffle, args)), {name: shuffle(value) for name, value in kwargs.items()}
        try:
            check_comparable(self.run(inputs))
        except Exception:  # anything that the user's forward may raise
            return None
        return inputs

    def _slopes(self) -> dict[str, Tensor]:
        """How much the outputs depend on each weight: the gradients of a random combination of them."""
        model = copy_model(self.model)
        leaves = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.is_floating_point() and leaf.is_leaf}
        try:
            for leaf in leaves.values():
                leaf.requires_grad_()
            with torch.enable_grad():
                result = outputs(model, *self.inputs, gradients=True)
                weights = [torch.randn(y.shape, generator=self.generator).to(y.device) for y in result]
                parts = [(y.real * w).nan_to_num(0, 0, 0).sum().cpu() for y, w in zip(result, weights, strict=True)]
                total = torch.stack([part.double() for part in parts]).sum()
            slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except Exception:  # a model that cannot be differentiated: then pairs are drawn at random
            return {}
        return {name: slope.nan_to_num() for name, slope in zip(leaves, slopes, strict=True) if slope is not None}

    def places(self, names: Sequence[str], over: str | None = None, *, slopes: bool = False) -> Places:
        """Return where the units of some factors stand in the weights, or in their gradients.

        Args:
            names: the factors.
            over: if given, only the first position of this factor, which stands beside them.
            slopes: in the gradients.
        """
        source = self.slopes if slopes else self.state
        found: Places = []
        for name in names:
            for cell, dim in self.standing[name]:
                if cell.tensor not in source:
                    continue
                view = cell.view(source[cell.tensor])
                if over is not None:
                    beside = cell.dim(over, dim)
                    view, dim = view.select(beside, 0), dim - (beside < dim)
                found.append((view, dim))
        return found

    def steepest(self, slopes: Places, size: int) -> int | None:
        """Return the unit on whose weights the outputs depend most, if that is known."""
        score = torch.zeros(size, dtype=torch.float64)
        for view, dim in slopes:
            score += view.double().square().movedim(dim, 0).reshape(size, -1).sum(1).cpu()
        return int(score.argmax()) if score.max() > 0 else None

    def decisive(self, places: Places, size: int) -> int | None:
        """Find a unit on whose weights the outputs depend, by bisection; None if there is none."""
        units = torch.arange(size)
        if not self.sensitivity(places, units) > self.tolerance:
            return None
        while len(units) > 1:
            first, second = units.tensor_split(2)
            units = first if self.sensitivity(places, first) > self.tolerance else second
        return int(units)

    def sensitivity(self, places: Places, units: Tensor) -> float:
        """Return by how much the outputs would change with entirely different weights of some units."""
        with _changed(places, units, self._noise):
            return difference(self.reference, self.run()) / _STEP

    def effect(self, places: Places, units: Tensor) -> float:
        """Return by how much the outputs change if each of some units takes the place of the one before it."""
        with _changed(places, units, _rolled):
            return difference(self.reference, self.run())

    def effect_when_unlike(self, places: Places, units: Tensor, inputs: Inputs | None = None) -> tuple[float, float]:
        """Return the effect after the units' weights were changed a little, and the sensitivity to that.

        Units with the same weights can be permuted without effect whatever they are for; these are not the same.
        """
        reference = self.reference if inputs is None else self.run(inputs)
        with _changed(places, units, self._noise):
            before = self.run(inputs)
            with _changed(places, units, _rolled):
                return difference(before, self.run(inputs)), difference(reference, before) / _STEP

    def _noise(self, old: Tensor, dim: int) -> Tensor:
        scale = old.square().mean().sqrt() or old.new_tensor(1.0)
        return old + _STEP * scale * torch.randn(old.shape, generator=self.generator).to(old.device, old.dtype)


def _rolled(old: Tensor, dim: int) -> Tensor:
    return old.roll(1, dim)


@contextmanager
def _changed(places: Places, units: Tensor, change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Change the weights of some units in place, and take it back."""
    kept = []
    with torch.no_grad():
        for view, dim in places:
            index = units.to(view.device)
            old = view.index_select(dim, index)
            kept.append((view, dim, index, old))
            view.index_copy_(dim, index, change(old, dim))
        try:
            yield
        finally:
            for view, dim, index, old in reversed(kept):
                view.index_copy_(dim, index, old)


# --- random weights


@torch.no_grad()
def randomize_(model: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter of a model, and the statistics of its norms, random values, in place.

    What is all positive stays positive. Everything keeps its scale, unless it is so small that it would hide what it
    is for: scales that start close to zero, and weights below those of an initialisation by the number of inputs.
    Other buffers are constants of the architecture and stay as they are.
    """
    statistics = [(n, b) for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")]
    for _, tensor in [*model.named_parameters(), *statistics]:
        values = tensor.double()
        scale = float(values.square().mean().sqrt()) if tensor.is_floating_point() and tensor.numel() else math.nan
        if not math.isfinite(scale):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        if (values > 0).all():
            alike = bool((values == values.flatten()[0]).all())
            tensor.copy_(values * max(1, 0.3 / scale if alike else 1) * (0.5 + torch.special.ndtr(noise)))
        else:
            least = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.5
            old = values / scale if scale else noise
            tensor.copy_((old + noise) / 2**0.5 * max(scale, least))

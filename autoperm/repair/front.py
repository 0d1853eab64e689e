"""REPAIR: give a model between others the means and deviations of its channels that theirs would lead one to expect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..batches import check_rereadable
from ..blend import barycentric
from ..copies import copy_model
from ..errors import ArchitectureError, SpecError
from ..state import check_same_architecture, tensors
from .biases import MissingBias, check_choice
from .bound import BoundRepair
from .result import Repaired


@dataclass(frozen=True, eq=False)
class Repair:
    """REPAIR as what renormalises the models on a path, with the options of :func:`~autoperm.repair.repair`.

    The ends are looked at once; then each model on the path costs its own sweeps over the data.

    Attributes:
        data: batches of training data, which can be read more than once, in the same order each time.
        batches: how many of them to read; all by default.
        layers: which layers to repair.
        bias: what to do with layers that have no bias.
        tolerance: how near to the targets is near enough.

    Example:
        >>> import torch
        >>> a, b = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in "ab")
        >>> x = torch.randn(64, 3)
        >>> renormalize = Repair([x]).bind([a, b])
        >>> renormalize(a, (1.0, 0.0)) is a  # in place
        True
    """

    data: Iterable[Any] = field(repr=False)
    batches: int | None = None
    layers: str | Sequence[str] | None = None
    bias: MissingBias = "error"
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        check_rereadable(self.data)
        check_choice(self.bias)
        if self.batches is not None and self.batches < 1:
            raise SpecError(f"batches is {self.batches}, but must be at least 1, or None to read all")
        if not self.tolerance > 0:
            raise SpecError(f"tolerance is {self.tolerance}, but must be above 0")

    def bind(self, models: Sequence[nn.Module], /) -> BoundRepair:
        """Find the layers to repair, and measure the ends.

        Args:
            models: the ends, aligned with each other; they are not changed.

        Returns:
            What repairs a model for some weights of the ends, in place.
        """
        layers = self.layers
        if layers is not None:
            layers = ["*"] if layers == "all" else [layers] if isinstance(layers, str) else list(layers)
        return BoundRepair(
            models,
            self.data,
            batches=self.batches,
            layers=layers,
            bias=self.bias,
            tolerance=self.tolerance,
        )


def repair(
    model: nn.Module,
    ends: Sequence[nn.Module],
    data: Iterable[Any],
    weights: Sequence[float] | None = None,
    *,
    batches: int | None = None,
    layers: str | Sequence[str] | None = None,
    bias: MissingBias = "error",
    tolerance: float = 1e-4,
) -> Repaired:
    """Give a model between others the means and standard deviations of its channels that theirs lead one to expect.

    What a unit of an averaged model computes varies less than what the units it was averaged from compute, unless these
    are perfectly correlated, and less from layer to layer: activations collapse towards their means. REPAIR rescales
    each channel of each layer so that on the data

        mean = sum_i w_i mu_i,    deviation = sum_i w_i sigma_i

    where mu_i and sigma_i are those of the channel in end i. With the mean m and the deviation s that the channel has,
    this is y <- (y - m) deviation / s + mean, which is folded into the layer's own weight and bias: the architecture
    stays. A channel that does not vary is only shifted.

    Layers are found in a recorded run, whatever modules they are in: linear maps, convolutions, products with
    parameters, and normalisations with weights. What cannot be changed for one layer alone (tied, shared, recurrent and
    computed weights) and what the model puts out is left alone, and reported.

    Args:
        model: a model between the ends, such as their average; it is not changed.
        ends: two or more models, **aligned with each other**; they are not changed.
        data: batches of training data, as the models take them, which can be read more than once, in the same order
            each time.
        weights: one for each end; divided by their sum, equal by default.
        batches: how many batches to read; all by default.
        layers: names of layers, or patterns such as ``"blocks.*.norm1"``; ``"all"`` for all that can be repaired. By
            default all hidden ones, but for layers whose output one of the others normalises at once.
        bias: what to do with layers that have no bias. ``"error"`` raises one; ``"scale"`` repairs their deviations
            alone; ``"add"`` gives them a bias, so that the model has more parameters than the ends; ``"skip"`` leaves
            them alone.
        tolerance: how far means and deviations may be from the targets, relative to the target deviations; not less
            than eight roundings of the weights. What is not reached is a warning.

    Returns:
        The repaired model and how it was repaired.

    Raises:
        ArchitectureError: If the models have different architectures, no layer can be repaired, or a bias is missing.
        ActivationsError: If a layer computes something that is not finite.
        EvaluationError: If the data are empty, or a model does not run on them.
        SpecError: If an option does not fit.
        TraceError: If the model cannot be recorded.

    Example:
        >>> import torch
        >>> a, b, middle = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(3))
        >>> middle.load_state_dict({name: (a.state_dict()[name] + b.state_dict()[name]) / 2 for name in a.state_dict()})
        <All keys matched successfully>
        >>> x = torch.randn(64, 3)
        >>> repaired = repair(middle, [a, b], [x]).model
        >>> deviation = lambda model: model[0](x).std(0, correction=0)
        >>> torch.allclose(deviation(repaired), (deviation(a) + deviation(b)) / 2, rtol=1e-4)
        True

    Reference:
        Jordan, Sedghi, Saukh, Entezari and Neyshabur, "REPAIR: REnormalizing Permuted Activations for
        Interpolation Repair", arXiv 2211.08403 (2023).
    """
    if isinstance(ends, nn.Module):
        raise ArchitectureError("repair needs a list of the models that the model is between, and got a model")
    if not ends:
        raise SpecError("there are no ends, whose statistics are the targets")
    shares = barycentric(weights, len(ends))
    check_same_architecture(tensors(ends[0]), tensors(model))
    options = Repair(data, batches=batches, layers=layers, bias=bias, tolerance=tolerance)
    return options.bind(ends).repair(copy_model(model), shares)

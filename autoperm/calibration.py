"""How far the probabilities that a model gives are those with which it is right."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .errors import EvaluationError, SpecError
from .evaluate import Predictions
from .metrics import labelled
from .results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["one-vs-rest", "top-1"]
"""What counts as a prediction: each class of each sample, or the most likely class of each sample."""


@dataclass(frozen=True)
class Reliability(Result):
    """A reliability curve: how often what is predicted with some probability is true.

    Attributes:
        edges: of the bins, from 0 to 1; one more than there are bins. A bin holds its upper edge, and the first one
            its lower edge too.
        confidence: for each bin the mean of the predicted probabilities; None if it is empty.
        frequency: for each bin the share of predictions that are true; None if it is empty.
        count: for each bin how many predictions there are.
        kind: ``"one-vs-rest"``, where each class of each sample is a prediction, or ``"top-1"``, where the most likely
            class of each sample is.

    Raises:
        SpecError: if there are not as many values as bins, or the edges do not rise from 0 to 1.

    Example:
        >>> curve = Reliability((0.0, 0.5, 1.0), (None, 0.9), (None, 0.6), (0, 10), "top-1")
        >>> print(f"{curve.ece:.2f}")
        0.30
    """

    edges: tuple[float, ...]
    confidence: tuple[float | None, ...]
    frequency: tuple[float | None, ...]
    count: tuple[int, ...]
    kind: str

    def __post_init__(self) -> None:
        """Check that bins and values belong together."""
        ends = len(self.edges) > 1 and self.edges[0] == 0.0 and self.edges[-1] == 1.0
        if not ends or list(self.edges) != sorted(set(self.edges)):
            raise SpecError(f"the edges of the bins must rise from 0 to 1, but are {self.edges}")
        for name in ("confidence", "frequency", "count"):
            if len(getattr(self, name)) != len(self.edges) - 1:
                raise SpecError(f"{name} has {len(getattr(self, name))} values for {len(self.edges) - 1} bins")

    @property
    def ece(self) -> float:
        r"""The expected calibration error, the mean distance of confidence and frequency over all predictions.

        .. math:: \sum_b \frac{n_b}{n} \, |\text{frequency}_b - \text{confidence}_b|

        Only compare it between curves of the same kind and bins. In the kind "one-vs-rest" most predictions are classes
        that are almost surely wrong, so that it is smaller by about the number of classes.

        References:
            Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
            Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", arXiv 1706.04599 (2017),
            Equation 3, for the kind "top-1".
        """
        gaps = zip(self.confidence, self.frequency, self.count, strict=True)
        total = sum(n * abs(f - c) for c, f, n in gaps if c is not None and f is not None)
        return total / max(sum(self.count), 1)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each bin, as ``pandas.DataFrame`` takes them.

        Example:
            >>> Reliability((0.0, 1.0), (0.5,), (0.25,), (4,), "top-1").records()
            [{'low': 0.0, 'high': 1.0, 'confidence': 0.5, 'frequency': 0.25, 'count': 4}]
        """
        names = ("low", "high", "confidence", "frequency", "count")
        rows = zip(self.edges, self.edges[1:], self.confidence, self.frequency, self.count, strict=False)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def draw(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the reliability curve; see :func:`autoperm.plot.reliability`. Needs matplotlib.

        Args:
            path: where to save the picture; the ending says in which format.

        Returns:
            The figure drawn on.
        """
        from .plot import reliability, saved

        return saved(reliability(self), path)

    def __str__(self) -> str:
        """Show the bins and the expected calibration error as a table."""
        lines = [f"Reliability, {self.kind}, {sum(self.count)} predictions", _row("bin", *self._columns)]
        for row in self.records():
            shares = ("" if row[name] is None else f"{row[name]:.3f}" for name in self._columns[:2])
            lines.append(_row(f"{row['low']:.2f} to {row['high']:.2f}", *shares, str(row["count"])))
        return "\n".join([*lines, f"ECE {self.ece:.4f}"])

    _columns = ("confidence", "frequency", "count")


def reliability(
    predictions: Predictions | Tensor,
    targets: Tensor | None = None,
    *,
    kind: Kind = "one-vs-rest",
    bins: int = 15,
) -> Reliability:
    """Return how often what a model predicts with some probability is true, in bins of equal width.

    Args:
        predictions: what :func:`~autoperm.evaluate.predict` returns, whose outputs are logits, to which the softmax is
            applied; or a tensor of probabilities. Logits in a tensor are refused: give ``logits.softmax(-1)``.
        targets: for a tensor, the true classes as integers, of its shape without the axis of classes, the last or the
            second one. Those that are -100 are left out.
        kind: ``"one-vs-rest"`` asks of each class of each sample whether it is the true one, as Git Re-Basin does;
            ``"top-1"`` asks only of the most likely class of each sample, as most of the literature on calibration.
        bins: number of bins. Git Re-Basin has 15 for CIFAR-100 and 10 for MNIST.

    Raises:
        EvaluationError: if the tensor holds no probabilities, or the targets do not fit the predictions.
        SpecError: if there is no such kind, or ``bins`` is less than 1.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.7, 0.3]])
        >>> print(reliability(probabilities, torch.tensor([0, 0, 1, 1]), kind="top-1", bins=4))
        Reliability, top-1, 4 predictions
                   bin  confidence   frequency       count
          0.00 to 0.25                                   0
          0.25 to 0.50                                   0
          0.50 to 0.75       0.700       0.500           2
          0.75 to 1.00       0.850       1.000           2
        ECE 0.1750

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), Figures 11 and 13.
    """
    if kind not in ("one-vs-rest", "top-1"):
        raise SpecError(f"there is no kind '{kind}' of reliability; choose from 'one-vs-rest', 'top-1'")
    if bins < 1:
        raise SpecError(f"bins is {bins}, but must be at least 1")
    probabilities, truth = _probabilities(predictions, targets)
    if kind == "top-1":
        confidence, found = probabilities.max(dim=-1)
        true = found == truth
    else:
        confidence = probabilities.flatten()
        true = torch.nn.functional.one_hot(truth, probabilities.shape[-1]).flatten()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    bin_of = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(bin_of, minlength=bins)
    means = [torch.bincount(bin_of, values.double(), minlength=bins) / count for values in (confidence, true)]
    mean, frequency = (
        tuple(value if n else None for value, n in zip(values.tolist(), count.tolist(), strict=True))
        for values in means
    )
    return Reliability(tuple(edges.tolist()), mean, frequency, tuple(count.tolist()), kind)


def _probabilities(predictions: Predictions | Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return probabilities of shape (items, classes) and the true classes, on the CPU.

    On a GPU sums over bins depend on the order in which threads come.
    """
    if isinstance(predictions, Predictions):
        if targets is not None:
            raise EvaluationError("targets are given, but the predictions hold their own; leave targets out")
        values, truth = labelled(predictions.outputs, predictions.targets)
        return values.softmax(-1), truth
    if not isinstance(predictions, Tensor):
        raise EvaluationError(
            f"the predictions are a {type(predictions).__name__}; give what predict(model, loader) returns, or a "
            "tensor of probabilities"
        )
    if targets is None:
        raise EvaluationError("a tensor of probabilities needs targets, the true classes")
    values, truth = labelled(predictions, targets)
    sums = values.sum(-1)
    if not bool(((values >= 0) & (values <= 1.02)).all()) or not bool(((sums - 1).abs() < 0.02).all()):
        raise EvaluationError(
            f"the predictions are no probabilities: they are from {float(values.min()):.4g} to "
            f"{float(values.max()):.4g}, and sum to {float(sums.min()):.4g} to {float(sums.max()):.4g} over the "
            f"{values.shape[1]} classes; apply softmax(-1) to logits"
        )
    return values.clamp(max=1.0), truth  # in half precision they may be a little larger


def _row(head: str, *cells: str) -> str:
    return f"{head:>14}" + "".join(f"{cell:>12}" for cell in cells)

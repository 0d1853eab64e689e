"""Several models that vote: what merging is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .blend import barycentric
from .curves import Curve, check_points
from .errors import ArchitectureError, EvaluationError, SpecError
from .evaluate import Evaluator, Predictions, device_of
from .metrics import logits

Of = Literal["logits", "probabilities"]
"""What an ensemble takes the mean of."""


class Ensemble(nn.Module):
    """The mean of what several classifiers say. It costs as much as all of them together.

    It holds the models that it was made from, not copies. They need not have the same architecture.

    Args:
        models: one or more models with logits as outputs.
        weights: one for each model; divided by their sum, equal by default.
        of: what to take the mean of: the ``"logits"``, as Git Re-Basin does, or the ``"probabilities"`` (classes along
            the last axis), whose logarithm is returned, so that a softmax gives the mean.

    Raises:
        ArchitectureError: if there is no model, or they are on several devices.
        SpecError: if the weights do not fit.

    Example:
        >>> double = nn.Linear(1, 1, bias=False)
        >>> nn.init.constant_(double.weight, 2.0).item()
        2.0
        >>> Ensemble([nn.Identity(), double])(torch.tensor([[2.0]])).item()
        3.0

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), Figure 11, whose code takes the softmax of the mean logits.
    """

    def __init__(
        self, models: Iterable[nn.Module], weights: Sequence[float] | None = None, *, of: Of = "logits"
    ) -> None:
        super().__init__()
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            # The layers of an nn.Sequential would be taken for models.
            raise ArchitectureError(f"an ensemble needs a list of one model or more, and got a {type(models).__name__}")
        self.models = nn.ModuleList(models)
        if not self.models:
            raise ArchitectureError("an ensemble needs a list of one model or more, and got none")
        _check_of(of)
        devices = {i: device_of(model) for i, model in enumerate(self.models) if any(model.state_dict())}
        first = next(iter(devices), 0)
        for i, device in devices.items():
            if device != devices[first]:
                raise ArchitectureError(
                    f"model {first} is on {devices[first]} and model {i} on {device}; move one with model.to(...)"
                )
        self.weights = barycentric(weights, len(self.models))
        self.of = of
        self.training = any(model.training for model in self.models)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean logits, or the logarithm of the mean probabilities."""
        return _mean([logits(model(*args, **kwargs)) for model in self.models], self.weights, self.of)

    def extra_repr(self) -> str:
        """Show the weights, and what they are of."""
        return f"weights={tuple(round(weight, 4) for weight in self.weights)}, of={self.of!r}"


def ensemble_curve(
    model_a: nn.Module, model_b: nn.Module, evaluator: Evaluator, *, points: int = 25, of: Of = "logits"
) -> Curve:
    """Evaluate the ensembles of two models with weights (1 - lam, lam), to lay beside the path between their weights.

    Both models run once on the data, whatever the number of points.

    Args:
        model_a: model at lam = 0; it is not changed.
        model_b: model at lam = 1; it is not changed.
        evaluator: what to measure, and on which data.
        points: number of positions, both ends included.
        of: what to take the mean of, as for :class:`Ensemble`.

    Raises:
        EvaluationError: as for the evaluator.
        SpecError: if ``points`` is less than 2.

    Example:
        >>> evaluate = Evaluator([(torch.eye(2), torch.tensor([0, 1]))])
        >>> ensemble_curve(nn.Identity(), nn.Softmin(-1), evaluate, points=5).metrics["accuracy"]
        (1.0, 1.0, 1.0, 0.0, 0.0)
    """
    check_points(points)
    _check_of(of)
    a, b = evaluator.predict(model_a), evaluator.predict(model_b)
    for split, found in a.items():
        if not torch.equal(found.targets, b[split].targets):
            raise EvaluationError(
                f"the loader{split and f' {split!r}'} gave model B other targets than model A, so that their outputs "
                "are not of the same samples; do not shuffle"
            )
    lams = [i / (points - 1) for i in range(points)]
    rows: list[dict[str, float]] = []
    for lam in lams:
        votes: dict[str, Predictions] = {}
        for split, found in a.items():
            mean = _mean([found.outputs, b[split].outputs], (1.0 - lam, lam), of)
            votes[split] = Predictions(mean, found.targets)
        rows.append(evaluator.score(votes))
    metrics = {name: tuple(row[name] for row in rows) for name in rows[0]}
    return Curve(tuple(lams), metrics, evaluator.higher_is_better)


def _mean(outputs: Sequence[Tensor], weights: Sequence[float], of: Of) -> Tensor:
    used = [(weight, output) for weight, output in zip(weights, outputs, strict=True) if weight]
    if of == "probabilities":
        return torch.stack([output.log_softmax(-1) + math.log(weight) for weight, output in used]).logsumexp(0)
    return reduce(torch.add, [weight * output for weight, output in used])


def _check_of(of: str) -> None:
    if of not in ("logits", "probabilities"):
        raise SpecError(f"there is no ensemble of '{of}'; choose from 'logits', 'probabilities'")

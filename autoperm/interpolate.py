"""Evaluate a model along the straight path between two others, and measure the barrier."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .copies import copy_model, forget_caches
from .errors import ArchitectureError, EvaluationError, SpecError
from .evaluate import check_rereadable, is_mapping
from .merge import lerp
from .renormalize import renormalize_batch_norm
from .state import check_finite, check_same_architecture, check_same_indices, interpolates, tensors

Evaluate = Callable[[nn.Module], Mapping[str, float | Tensor]]
"""``evaluate(model)``: metrics by name, each a number."""

_REFERENCES = ("mean", "chord")


@dataclass(frozen=True)
class Curve:
    """Metrics along the path theta(lam) = (1 - lam) theta_A + lam theta_B.

    Attributes:
        lam: Positions, rising from 0 (model A) to 1 (model B).
        metrics: By metric, one value per position, in the unit of the evaluation.
        higher_is_better: Names of the metrics for which more is better, such as accuracy.

    Raises:
        SpecError: If the positions do not rise from 0 to 1, or a metric has another number of values.

    Example:
        >>> curve = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (0.25, 1.0, 0.75)})
        >>> curve.barrier(), curve.barrier(reference="chord")
        (0.5, 0.5)
        >>> print(curve)
           lam        loss
          0.00        0.25
          0.50           1
          1.00        0.75
        barrier
          mean         0.5
         chord         0.5
    """

    lam: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    higher_is_better: tuple[str, ...] = ("accuracy",)

    def __post_init__(self) -> None:
        """Check that positions and values belong together."""
        rising = all(x < y for x, y in zip(self.lam, self.lam[1:], strict=False))
        if len(self.lam) < 2 or self.lam[0] != 0.0 or self.lam[-1] != 1.0 or not rising:
            raise SpecError(f"the positions lam must rise from 0 to 1, but are {self.lam}")
        for name, values in self.metrics.items():
            if len(values) != len(self.lam):
                raise SpecError(f"metric '{name}' has {len(values)} values for {len(self.lam)} positions lam")

    def barrier(self, metric: str = "loss", *, reference: Literal["mean", "chord"] = "mean") -> float:
        """Return how far the path rises above its ends, in the unit of the metric.

        ``reference="mean"`` (Git Re-Basin) compares with the mean of the two ends,

            max_lam L(lam) - (L(0) + L(1)) / 2

        and ``reference="chord"`` (Entezari et al.; Sharma et al.) with the straight line between them,

            max_lam L(lam) - [(1 - lam) L(0) + lam L(1)]

        The two agree if both ends are equally good. If not, "mean" is at least |L(0) - L(1)| / 2, because the
        worse end is itself on the path, so that it can never be 0; "chord" is never negative and is 0 for a
        convex curve. For a metric in ``higher_is_better`` the signs are flipped: accuracy gives the error barrier.
        The maximum is over the evaluated positions.

        Args:
            metric: Name of the metric.
            reference: What to compare with: ``"mean"`` or ``"chord"``.

        Raises:
            SpecError: If there is no such metric or reference; the message lists the valid ones.

        Example:
            >>> downhill = Curve(lam=(0.0, 0.5, 1.0), metrics={"loss": (1.0, 0.5, 0.0)})
            >>> downhill.barrier(), downhill.barrier(reference="chord")
            (0.5, 0.0)

        Reference:
            "mean": Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
            arXiv 2209.04836 (2023), Definition 2.2.
            "chord": Entezari, Sedghi, Saukh and Neyshabur, "The Role of Permutation Invariance in Linear Mode
            Connectivity of Neural Networks", arXiv 2110.06296 (2022), Equation 1; used by Sharma et al.,
            "Simultaneous Linear Connectivity of Neural Networks Modulo Permutation", arXiv 2404.06498 (2024).
        """
        if metric not in self.metrics:
            raise SpecError(f"the curve has no metric '{metric}'; it has {_quoted(self.metrics)}")
        if reference not in _REFERENCES:
            raise SpecError(f"there is no reference '{reference}' for a barrier; choose from {_quoted(_REFERENCES)}")
        sign = -1.0 if metric in self.higher_is_better else 1.0
        values = [sign * value for value in self.metrics[metric]]
        start, end = values[0], values[-1]
        if reference == "mean":
            return max(values) - (start + end) / 2
        return max(value - _chord(start, end, lam) for value, lam in zip(values, self.lam, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as lists and numbers, for JSON.

        Example:
            >>> Curve(lam=(0.0, 1.0), metrics={"loss": (0.5, 0.25)}).to_dict()
            {'lam': [0.0, 1.0], 'metrics': {'loss': [0.5, 0.25]}, 'higher_is_better': ['accuracy']}
        """
        return {
            "lam": list(self.lam),
            "metrics": {name: list(values) for name, values in self.metrics.items()},
            "higher_is_better": list(self.higher_is_better),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a curve from what :meth:`to_dict` returned.

        Raises:
            SpecError: If an entry is missing, or the values do not fit the positions.

        Example:
            >>> curve = Curve(lam=(0.0, 1.0), metrics={"loss": (0.5, 0.25)})
            >>> Curve.from_dict(curve.to_dict()) == curve
            True
        """
        needed = ("lam", "metrics", "higher_is_better")
        missing = [name for name in needed if name not in data]
        if missing:
            raise SpecError(f"a curve needs the entries {_quoted(needed)}, but {_quoted(missing)} is missing")
        metrics = {name: tuple(map(float, values)) for name, values in data["metrics"].items()}
        return cls(tuple(map(float, data["lam"])), metrics, tuple(data["higher_is_better"]))

    def __str__(self) -> str:
        """Show the ends, the quarters and the barriers in both definitions as a table."""
        last = len(self.lam) - 1
        rows = sorted({round(last * quarter / 4) for quarter in range(5)})
        widths = {name: max(12, len(name) + 2) for name in self.metrics}
        lines = [_row("lam", {name: name for name in widths}, widths)]
        for i in rows:
            cells = {name: f"{values[i]:.4g}" for name, values in self.metrics.items()}
            lines.append(_row(f"{self.lam[i]:.2f}", cells, widths))
        lines.append("barrier")
        for reference in ("mean", "chord"):
            # Adding 0.0 keeps "-0" out of the table.
            cells = {name: f"{self.barrier(name, reference=reference) + 0.0:.4g}" for name in widths}
            lines.append(_row(reference, cells, widths))
        return "\n".join(lines)


def interpolate(
    model_a: nn.Module,
    model_b: nn.Module,
    evaluate: Evaluate,
    *,
    points: int = 25,
    renormalize: Literal["batch_norm"] | None = None,
    data: Iterable[Any] | None = None,
    higher_is_better: Collection[str] = ("accuracy",),
    progress: bool = False,
) -> Curve:
    """Evaluate the models on the straight path from model A to model B.

    At each lam = 0, 1/(points - 1), ..., 1 the weights

        theta(lam) = (1 - lam) theta_A + lam theta_B

    are loaded in a copy of model A, which is handed to ``evaluate`` in eval mode. Both ends are exact. Integer
    buffers, and whatever is not in the state dict, are those of model A.

    Args:
        model_a: Model at lam = 0; it is not changed.
        model_b: Model at lam = 1, of the same architecture; it is not changed.
        evaluate: A function model -> dict of metrics, such as an :class:`~autoperm.evaluate.Evaluator`. The
            model it gets is reused at the next point, so it must copy what it keeps.
        points: Number of positions, both ends included.
        renormalize: ``"batch_norm"`` re-estimates the running statistics of BatchNorm layers on ``data`` at
            every point, both ends included (see :func:`~autoperm.renormalize.renormalize_batch_norm`).
        data: Batches of training data for ``renormalize``, which can be read more than once.
        higher_is_better: Names of the metrics for which more is better.
        progress: Whether to show a progress bar.

    Returns:
        The metrics along the path.

    Raises:
        ArchitectureError: If the models differ in names, shapes, dtypes, devices, index tables or tied weights.
        WeightsError: If a model has NaN or infinite weights.
        EvaluationError: If ``evaluate`` returns something other than finite numbers by name, or other names at
            some points.
        SpecError: If ``points`` is less than 2, or ``renormalize`` and ``data`` do not fit together.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> a.load_state_dict({"weight": torch.tensor([[-1.0]])}), b.load_state_dict({"weight": torch.tensor([[1.0]])})
        (<All keys matched successfully>, <All keys matched successfully>)
        >>> curve = interpolate(a, b, lambda model: {"loss": 1.0 - model.weight.item() ** 2}, points=5)
        >>> curve.metrics["loss"]
        (0.0, 0.75, 1.0, 0.75, 0.0)
        >>> curve.barrier("loss")
        1.0

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), Definition 2.2.
    """
    if points < 2:
        raise SpecError(f"points is {points}, but a path needs at least its 2 ends")
    if isinstance(higher_is_better, str):
        raise SpecError(f"higher_is_better is the string '{higher_is_better}'; give a tuple: ('{higher_is_better}',)")
    _check_data(renormalize, data)
    a, b = tensors(model_a), tensors(model_b)
    check_same_architecture(a, b)
    check_same_indices(a, b)
    check_finite(a, "model A")
    check_finite(b, "model B")
    model = copy_model(model_a)
    _load(model, lerp(a, b, 1.0))
    _check_loaded(model, b)

    lams = [i / (points - 1) for i in range(points)]
    rows: list[dict[str, float]] = []
    for lam in tqdm(lams, desc="interpolate", unit="point", disable=not progress):
        _load(model, lerp(a, b, lam))
        point = model if data is None else renormalize_batch_norm(model, data)
        point.eval()
        row = _numbers(evaluate(point), lam)
        if rows and row.keys() != rows[0].keys():
            raise EvaluationError(
                f"evaluate returned the metrics {_quoted(row)} at lam = {lam:.4g}, but {_quoted(rows[0])} at lam = 0; "
                "return the same metrics for every model"
            )
        rows.append(row)
    metrics = {name: tuple(row[name] for row in rows) for name in rows[0]}
    return Curve(tuple(lams), metrics, tuple(higher_is_better))


def _check_data(renormalize: str | None, data: Iterable[Any] | None) -> None:
    if renormalize not in (None, "batch_norm"):
        raise SpecError(f"there is no way to renormalize called '{renormalize}'; choose 'batch_norm' or None")
    if renormalize is None and data is not None:
        raise SpecError("data is given but would not be read; add renormalize='batch_norm', or leave it out")
    if renormalize is not None and data is None:
        raise SpecError("renormalize='batch_norm' needs data=..., a loader of training data")
    if data is not None:
        check_rereadable(data)


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    # The model's own state dict adds the entries that are not tensors, without which a strict load fails.
    model.load_state_dict({**model.state_dict(), **state})
    forget_caches(model)


def _check_loaded(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    loaded = tensors(model)
    changed = [name for name in state if interpolates(state[name]) and not torch.equal(loaded[name], state[name])]
    if changed:
        raise ArchitectureError(
            f"a copy of model A does not hold model B's values of {_quoted(changed)} after loading them: these share "
            "memory with other tensors in A (tied weights) but not in B. Tie the same weights in both models."
        )


def _numbers(metrics: object, lam: float) -> dict[str, float]:
    """Check what a user's function returned, and convert it to plain numbers."""
    if not is_mapping(metrics):
        raise EvaluationError(
            f"evaluate returned {_short(metrics)}, but must return a dictionary of numbers, such as {{'loss': 0.5}}"
        )
    if not metrics:
        raise EvaluationError("evaluate returned an empty dictionary; return at least one metric, such as 'loss'")
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise EvaluationError(f"evaluate returned a metric named {name!r}; the name must be a string")
        single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
        if not single and not isinstance(value, Real):
            raise EvaluationError(
                f"metric '{name}' is {_short(value)} at lam = {lam:.4g}; it must be a number, or a tensor of one"
            )
        numbers[name] = float(value.detach() if isinstance(value, Tensor) else value)
        if not math.isfinite(numbers[name]):
            raise EvaluationError(
                f"metric '{name}' is {numbers[name]} at lam = {lam:.4g}; a barrier needs finite values. "
                "Check the data, or evaluate in a wider dtype"
            )
    return numbers


def _chord(start: float, end: float, lam: float) -> float:
    # From the nearer end, so that both ends, and every point of a level line, are exact.
    return start + lam * (end - start) if lam < 0.5 else end - (1.0 - lam) * (end - start)


def _row(head: str, cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return f"{head:>6}" + "".join(f"{cells[name]:>{width}}" for name, width in widths.items())


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"

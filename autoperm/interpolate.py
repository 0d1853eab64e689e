"""Evaluate a model along the straight path between two others, and measure the barrier."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .blend import lerp
from .copies import copy_model, forget_caches
from .curves import Curve
from .errors import ArchitectureError, EvaluationError, SpecError
from .evaluate import is_mapping
from .renormalize import Renormalizer, get_renormalizer
from .state import check_finite, check_same_architecture, check_same_indices, interpolates, tensors

Evaluate = Callable[[nn.Module], Mapping[str, float | Tensor]]
"""``evaluate(model)``: metrics by name, each a number."""


def interpolate(
    model_a: nn.Module,
    model_b: nn.Module,
    evaluate: Evaluate,
    *,
    points: int = 25,
    renormalize: str | Renormalizer | None = None,
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
            every point, both ends included (see :func:`~autoperm.renormalize_batch_norm`); or an object that does
            something else.
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
    renormalizer = get_renormalizer(renormalize, data)
    a, b = tensors(model_a), tensors(model_b)
    check_same_architecture(a, b)
    check_same_indices(a, b)
    check_finite(a, "model A")
    check_finite(b, "model B")
    model = copy_model(model_a)
    _load(model, lerp(a, b, 1.0))
    _check_loaded(model, b)
    finish = renormalizer.bind((model_a, model_b)) if renormalizer is not None else None

    lams = [i / (points - 1) for i in range(points)]
    rows: list[dict[str, float]] = []
    for lam in tqdm(lams, desc="interpolate", unit="point", disable=not progress):
        _load(model, lerp(a, b, lam))
        point = model if finish is None else finish(model, (1.0 - lam, lam))
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


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"

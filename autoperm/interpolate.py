"""Evaluate models along the paths, chains and simplices between others, and measure barriers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

from torch import nn

from .curves import Curve, check_points
from .errors import SpecError
from .evaluate import Evaluator
from .renormalize import Renormalizer, get_renormalizer
from .resume import Journal, described, digest
from .state import several, tensors
from .surface import Surface
from .walk import Evaluate, Route, Stop, better, walk


def interpolate(
    model_a: nn.Module,
    model_b: nn.Module,
    evaluate: Evaluate,
    *,
    points: int = 25,
    path: Route = "lerp",
    renormalize: str | Renormalizer | None = None,
    data: Iterable[Any] | None = None,
    higher_is_better: Collection[str] | None = None,
    resume: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Curve:
    """Evaluate the models on the path from model A to model B.

    At each lam = 0, 1/(points - 1), ..., 1 the weights

        theta(lam) = (1 - lam) theta_A + lam theta_B

    are written in a copy of model A, which is handed to ``evaluate`` in eval mode. Both ends are exact. Integer
    buffers (:func:`~autoperm.blend.taken_from_first`), and whatever is not in the state dict, are those of model A.

    Args:
        model_a: Model at lam = 0; it is not changed.
        model_b: Model at lam = 1, of the same architecture; it is not changed.
        evaluate: A function model -> dict of metrics, such as an :class:`~autoperm.evaluate.Evaluator`. The
            model it gets is reused at the next point, so it must copy what it keeps.
        points: Number of positions, both ends included.
        path: ``"lerp"`` for the straight line above; ``"slerp"`` for the arc of :func:`~autoperm.slerp` between the
            parameters, while buffers are still interpolated linearly.
        renormalize: What repairs the statistics of the model at every point, both ends included, before it is
            evaluated: ``"batch_norm"`` (see :func:`~autoperm.renormalize_batch_norm`), ``"repair"`` (see
            :class:`~autoperm.Repair`), or a :class:`~autoperm.Renormalizer`.
        data: Batches of training data for a ``renormalize`` by name, which can be read more than once.
        higher_is_better: Names of the metrics for which more is better; by default those that ``evaluate`` names in
            an attribute ``higher_is_better``, as an Evaluator does, else ``"accuracy"``.
        resume: A file where every finished point is kept. If the walk is interrupted, the same call with the same
            file goes on after the last one. Data cannot be compared, nor can metrics but by their names.
        progress: Whether to show a progress bar.

    Returns:
        The metrics along the path.

    Raises:
        ArchitectureError: If the models differ in names, shapes, dtypes, devices, index tables, tied weights or other
            buffers, or have a spectral norm.
        WeightsError: If a model has NaN or infinite weights.
        EvaluationError: If ``evaluate`` returns something other than finite numbers by name, or other names at
            some points; or if a loader yields fewer samples than at the first one.
        SpecError: If ``points`` is less than 2, ``renormalize`` and ``data`` do not fit together, or ``resume`` was
            written for another path.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, -1.0), nn.init.constant_(b.weight, 1.0)
        >>> curve = interpolate(a, b, lambda model: {"loss": 1.0 - model.weight.item() ** 2}, points=5)
        >>> curve.metrics["loss"]
        (0.0, 0.75, 1.0, 0.75, 0.0)
        >>> curve.barrier("loss")
        1.0

    Reference:
        Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        arXiv 2209.04836 (2023), Definition 2.2.
    """
    return interpolate_chain(
        (model_a, model_b),
        evaluate,
        points=points,
        path=path,
        renormalize=renormalize,
        data=data,
        higher_is_better=higher_is_better,
        resume=resume,
        progress=progress,
    )


def interpolate_chain(
    models: Sequence[nn.Module],
    evaluate: Evaluate,
    *,
    points: int = 25,
    path: Route = "lerp",
    renormalize: str | Renormalizer | None = None,
    data: Iterable[Any] | None = None,
    higher_is_better: Collection[str] | None = None,
    resume: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Curve:
    """Evaluate the models on a polygonal chain: the path from each of some models to the next.

    Every leg is the path of :func:`interpolate`, so that its points, and its barrier, are those of the two models. A
    model between two legs is evaluated once. What repairs statistics is bound to all models: weights of those that a
    leg does not join are 0.

    Args:
        models: Two or more of one architecture; they are not changed.
        evaluate: See :func:`interpolate`; so are all other arguments.
        points: Number of positions of a leg, both ends included.
        path: How each leg runs.
        renormalize: What repairs the statistics of the model at every point.
        data: Batches of training data for a ``renormalize`` by name.
        higher_is_better: Names of the metrics for which more is better.
        resume: A file where every finished point is kept.
        progress: Whether to show a progress bar.

    Returns:
        The metrics along the chain, whose ``nodes`` are the positions of the models and whose ``legs`` are the paths
        between them.

    Raises:
        AutopermError: As :func:`interpolate`; a message about one of three models or more says which, from 0 on.

    Example:
        >>> models = [nn.Linear(1, 1, bias=False) for _ in range(3)]
        >>> for model, value in zip(models, (0.0, 1.0, -1.0), strict=True):
        ...     _ = nn.init.constant_(model.weight, value)
        >>> chain = interpolate_chain(models, lambda model: {"loss": model.weight.item() ** 2}, points=3)
        >>> chain.lam, chain.nodes
        ((0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0))
        >>> chain.metrics["loss"]
        (0.0, 0.25, 1.0, 0.0, 1.0)
    """
    models, higher_is_better = several(models), better(evaluate, higher_is_better)
    check_points(points)
    renormalizer = get_renormalizer(renormalize, data)
    legs = len(models) - 1
    steps = legs * (points - 1)
    lams = tuple(i / steps for i in range(steps + 1))
    metrics = walk(
        models,
        [Stop(f"lam = {lam:.4g}", _on_chain(i, points - 1, len(models))) for i, lam in enumerate(lams)],
        evaluate,
        route=path,
        renormalizer=renormalizer,
        journal=_journal(resume, models, evaluate, renormalizer, path=path, points=points, result="Curve"),
        progress=progress,
    )
    nodes = tuple(leg / legs for leg in range(legs + 1))
    return Curve(lams, metrics, higher_is_better, nodes)


def interpolate_simplex(
    models: Sequence[nn.Module],
    evaluate: Evaluate,
    *,
    steps: int = 12,
    renormalize: str | Renormalizer | None = None,
    data: Iterable[Any] | None = None,
    higher_is_better: Collection[str] | None = None,
    resume: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Surface:
    """Evaluate the models on the simplex between three or more: the means with all weights of a barycentric grid.

        theta(w) = sum_i w_i theta_i,    w_i in {0, 1/steps, ..., 1},    sum_i w_i = 1

    Corners are the models, and edges the paths of :func:`interpolate`, bitwise. For k models there are
    binomial(steps + k - 1, k - 1) points, which grow fast with k: 91 for three models and 12 steps, 455 for four.
    The mean of k models is among them if k divides the number of steps.

    Args:
        models: Two or more of one architecture; they are not changed.
        evaluate: See :func:`interpolate`; so are all other arguments but one.
        steps: How many steps an edge has.
        renormalize: What repairs the statistics of the model at every point.
        data: Batches of training data for a ``renormalize`` by name.
        higher_is_better: Names of the metrics for which more is better.
        resume: A file where every finished point is kept.
        progress: Whether to show a progress bar.

    Returns:
        The metrics over the simplex.

    Raises:
        AutopermError: As :func:`interpolate`; a message about one of three models or more says which, from 0 on.

    Example:
        >>> models = [nn.Linear(1, 1, bias=False) for _ in range(3)]
        >>> for model, value in zip(models, (0.0, 1.0, -1.0), strict=True):
        ...     _ = nn.init.constant_(model.weight, value)
        >>> surface = interpolate_simplex(models, lambda model: {"loss": model.weight.item() ** 2}, steps=2)
        >>> for row in surface.records():
        ...     print(row)
        {'weight 0': 1.0, 'weight 1': 0.0, 'weight 2': 0.0, 'loss': 0.0}
        {'weight 0': 0.5, 'weight 1': 0.5, 'weight 2': 0.0, 'loss': 0.25}
        {'weight 0': 0.5, 'weight 1': 0.0, 'weight 2': 0.5, 'loss': 0.25}
        {'weight 0': 0.0, 'weight 1': 1.0, 'weight 2': 0.0, 'loss': 1.0}
        {'weight 0': 0.0, 'weight 1': 0.5, 'weight 2': 0.5, 'loss': 0.0}
        {'weight 0': 0.0, 'weight 1': 0.0, 'weight 2': 1.0, 'loss': 1.0}

    Reference:
        Benton, Maddox, Lotfi and Wilson, "Loss Surface Simplexes for Mode Connecting Volumes and Fast Ensembling",
        arXiv 2102.13042 (2021), for simplices of low loss.
    """
    models, higher_is_better = several(models), better(evaluate, higher_is_better)
    if steps < 1:
        raise SpecError(f"steps is {steps}, but an edge has at least 1")
    renormalizer = get_renormalizer(renormalize, data)
    weights = [tuple(count / steps for count in counts) for counts in _compositions(steps, len(models))]
    metrics = walk(
        models,
        [Stop(f"weights ({', '.join(f'{weight:.4g}' for weight in each)})", each) for each in weights],
        evaluate,
        route="lerp",
        renormalizer=renormalizer,
        journal=_journal(resume, models, evaluate, renormalizer, steps=steps, result="Surface"),
        progress=progress,
    )
    return Surface(tuple(weights), metrics, higher_is_better)


def _on_chain(i: int, steps: int, models: int) -> tuple[float, ...]:
    """Return the weights of the models at a point of a chain with some steps a leg."""
    leg, step = divmod(i, steps)
    weights = [0.0] * models
    weights[leg] = 1.0 - step / steps
    if step:
        weights[leg + 1] = step / steps
    return tuple(weights)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield the ways to share a number among some parts, in order, the first part falling."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def _journal(
    resume: str | PathLike[str] | None,
    models: Sequence[nn.Module],
    evaluate: Evaluate,
    renormalizer: Renormalizer | None,
    **given: Any,
) -> Callable[[], Journal] | None:
    if resume is None:
        return None
    file = resume
    # A function of the user's own does not say what it measures.
    measured = list(evaluate.names) if isinstance(evaluate, Evaluator) else None

    def begin() -> Journal:
        digests = [digest(tensors(model)) for model in models]
        header = {**given, "metrics": measured, "renormalize": described(renormalizer), "models": digests}
        return Journal(file, header)

    return begin

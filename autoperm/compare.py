"""Models side by side: merged against its ends, as they are and corrected, and against their ensemble."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from .errors import EvaluationError, SpecError, quoted
from .results import Result, check_metrics
from .walk import Evaluate, better, measuring, numbers


@dataclass(frozen=True)
class Comparison(Result):
    """Metrics of several models.

    Attributes:
        models: their names.
        metrics: by metric, one value for each model, in the unit of the evaluation.
        higher_is_better: names of the metrics for which more is better.

    Raises:
        SpecError: if a metric has another number of values.

    Example:
        >>> table = Comparison(("A", "merged"), {"loss": (0.5, 0.25), "accuracy": (0.9, 0.8)})
        >>> print(table)
                      loss    accuracy
        A              0.5        0.9*
        merged       0.25*         0.8
        >>> table.best("accuracy")
        'A'
    """

    models: tuple[str, ...]
    metrics: Mapping[str, tuple[float, ...]]
    higher_is_better: tuple[str, ...] = ("accuracy",)

    def __post_init__(self) -> None:
        """Check that names and values belong together."""
        check_metrics(self.metrics, len(self.models), "models")

    def best(self, metric: str = "loss") -> str:
        """Return the name of the best model; of equal ones the first.

        Raises:
            SpecError: if there is no such metric.
        """
        if metric not in self.metrics:
            raise SpecError(f"the comparison has no metric '{metric}'; it has {quoted(self.metrics)}")
        return self.models[self._best(metric)]

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each model, as ``pandas.DataFrame`` takes them.

        Example:
            >>> Comparison(("A", "B"), {"loss": (0.5, 0.25)}).records()
            [{'model': 'A', 'loss': 0.5}, {'model': 'B', 'loss': 0.25}]
        """
        rows = zip(self.models, *self.metrics.values(), strict=True)
        return [dict(zip(("model", *self.metrics), row, strict=True)) for row in rows]

    def __str__(self) -> str:
        """Show the metrics as a table, with a star at the best of each."""
        best = {name: self._best(name) for name in self.metrics}
        first = max(map(len, self.models))
        widths = {name: max(10, len(name)) + 2 for name in self.metrics}
        lines = [" " * first + "".join(f"{name:>{width}}" for name, width in widths.items())]
        for i, model in enumerate(self.models):
            cells = {name: f"{values[i]:.4g}" + "*" * (best[name] == i) for name, values in self.metrics.items()}
            lines.append(f"{model:<{first}}" + "".join(f"{cells[name]:>{widths[name]}}" for name in widths))
        return "\n".join(lines)

    def _best(self, metric: str) -> int:
        values = self.metrics[metric]
        sign = -1 if metric in self.higher_is_better else 1
        return min(range(len(values)), key=lambda i: sign * values[i])


def compare(
    models: Mapping[str, nn.Module],
    evaluate: Evaluate,
    *,
    higher_is_better: Collection[str] | None = None,
    progress: bool = False,
) -> Comparison:
    """Evaluate several models on the same data, in a table.

    That a merged model beats both of its ends says little by itself: correct the ends by a temperature, or for the
    classes that they saw, and have them vote. On the split CIFAR-100 of Git Re-Basin the merged network has a lower
    test loss than either end, but an end that is corrected for its classes has a lower one still.

    Args:
        models: by name, such as ``{"A": a, "B": b, "merged": merged, "ensemble": Ensemble([a, b])}``. They are not
            changed.
        evaluate: a function model -> dict of metrics, such as an :class:`~autoperm.Evaluator`.
        higher_is_better: names of the metrics for which more is better; by default what the evaluator says, or the
            accuracy.
        progress: whether to show a progress bar.

    Raises:
        EvaluationError: if there are no models, or ``evaluate`` gives something other than finite numbers by name, or
            other names for some models; the message names the model.

    Example:
        >>> wide = lambda model: {"features": model.in_features, "outputs": model.out_features}
        >>> print(compare({"A": nn.Linear(4, 8), "B": nn.Linear(2, 8)}, wide, higher_is_better=["outputs"]))
             features     outputs
        A           4          8*
        B          2*           8
    """
    if not isinstance(models, Mapping) or not models:
        what = "an empty one" if isinstance(models, Mapping) else f"a {type(models).__name__}"
        raise EvaluationError(f"compare needs a dictionary of models, such as {{'A': a, 'B': b}}, and got {what}")
    higher_is_better = better(evaluate, higher_is_better)
    measure = measuring(evaluate)
    rows: dict[str, dict[str, float]] = {}
    for name, model in tqdm(models.items(), desc="compare", unit="model", disable=not progress):
        try:
            rows[name] = numbers(measure(model))
        except EvaluationError as error:
            raise EvaluationError(f"model '{name}': {error}") from error
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if row.keys() != first.keys():
            raise EvaluationError(
                f"evaluate returned the metrics {', '.join(map(repr, row))} for model '{name}', but "
                f"{', '.join(map(repr, first))} for model '{next(iter(rows))}'; return the same metrics for every model"
            )
    metrics = {metric: tuple(row[metric] for row in rows.values()) for metric in first}
    return Comparison(tuple(rows), metrics, higher_is_better)

"""Evaluate a model on data: mean loss, accuracy and other metrics, on one set or several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batches import check_readable, check_rereadable, describe, is_mapping, pair, samples_in, to_device
from .errors import AutopermError, EvaluationError
from .metrics import Measure, Metric, Tally, classifies, cross_entropy, logits, top
from .state import check_model

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, target)``: a scalar tensor, the mean over the batch."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model gives for all samples of a loader, and the targets, on the CPU: samples along the first axis."""

    outputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluate a model on labelled data: ``evaluator(model) -> {"loss": ..., "accuracy": ...}``.

    Every metric is a mean over all data. Where it gives one number for a batch, batches count by their samples,

        L = sum_batches n_batch loss(model(input), target) / sum_batches n_batch

    and where it gives one value for each item (sample, token), all items count alike. Where outputs have shape (batch,
    classes) and targets are integers of shape (batch,), there is also ``"accuracy"``: the share of samples, in [0, 1],
    whose largest output is the target (top-1).

    The model runs in eval mode, without gradients, on its own device, and once for each batch whatever the number of
    metrics. Then its modes are as before.

    Attributes:
        data: Batches ``(input, target)``; or several such loaders by name, such as ``{"train": ..., "test": ...}``,
            whose metrics are then called ``"train loss"``, ``"test accuracy"`` and so on. The model is called on the
            input; if that is a dictionary, with its entries as keyword arguments. Loaders are read anew in every call,
            so they must not be generators. For metrics that are compared between models use the same data every
            time: neither random augmentation nor, with shuffling, ``drop_last``.
        loss: The loss, by default the cross entropy of logits: see :func:`~autoperm.metrics.cross_entropy`.
        metrics: Others by name: functions ``f(output, target)`` like the loss, of which less is better unless they are
            called ``"accuracy"``; or a :class:`~autoperm.Metric`.

    Raises:
        EvaluationError: If a loader can be read only once, is empty or does not yield ``(input, target)``, or if a
            metric is not real and finite.

    Example:
        >>> batch = torch.eye(3), torch.tensor([0, 1, 1])
        >>> evaluate = Evaluator({"test": [batch]}, metrics={"top-2": top(2)})
        >>> for name, value in evaluate(nn.Identity()).items():
        ...     print(f"{name}: {value:.3f}")
        test loss: 0.885
        test accuracy: 0.667
        test top-2: 0.667
    """

    data: Iterable[Any] | Mapping[str, Iterable[Any]]
    loss: Measure | Metric = cross_entropy
    metrics: Mapping[str, Measure | Metric] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check that loaders can be read more than once, and the names of metrics."""
        if is_mapping(self.data) and not self.data:
            raise EvaluationError("the data is an empty dictionary; give at least one loader")
        for loader in self.loaders.values():
            check_rereadable(loader)
        if not isinstance(self.loss, Metric) and (isinstance(self.loss, type) or not callable(self.loss)):
            raise EvaluationError(f"the loss is {self.loss!r}; give a function f(output, target), or a Metric")
        if not is_mapping(self.metrics or {}):
            what = type(self.metrics).__name__
            raise EvaluationError(f"metrics is a {what}, but must be a dictionary of functions by name")
        for name, metric in (self.metrics or {}).items():
            if name == "loss" or not isinstance(name, str):
                raise EvaluationError(f"a metric is called {name!r}; give the loss as loss=, and others under a name")
            if not isinstance(metric, Metric) and not callable(metric):
                raise EvaluationError(f"metric '{name}' is a {type(metric).__name__}; give a function or a Metric")

    @property
    def loaders(self) -> Mapping[str, Iterable[Any]]:
        """The loaders by name; a single one has the name ``""``."""
        return self.data if is_mapping(self.data) else {"": self.data}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics that are asked for. The accuracy is there by itself, where outputs are of classes."""
        return tuple(_named(split, name) for split in self.loaders for name in ("loss", *(self.metrics or {})))

    @property
    def higher_is_better(self) -> tuple[str, ...]:
        """Names of the metrics for which more is better."""
        better = [name for name, metric in self._all().items() if metric.higher_is_better]
        return tuple(_named(split, name) for split in self.loaders for name in better)

    @classmethod
    def from_tensors(
        cls,
        inputs: Tensor,
        targets: Tensor,
        *,
        loss: Measure | Metric = cross_entropy,
        metrics: Mapping[str, Measure | Metric] | None = None,
        batch_size: int = 512,
    ) -> Evaluator:
        """Build an evaluator from tensors that hold all the data, in the order given.

        Args:
            inputs: Inputs, samples along the first axis.
            targets: Targets, samples along the first axis.
            loss: See :class:`Evaluator`; likewise ``metrics``.
            metrics: Other metrics by name.
            batch_size: Samples per batch.

        Raises:
            EvaluationError: If the numbers of inputs and targets differ, or the batch size is less than 1.

        Example:
            >>> evaluate = Evaluator.from_tensors(torch.ones(5, 2), torch.zeros(5, 2), loss=nn.MSELoss())
            >>> evaluate(nn.Identity())
            {'loss': 1.0}
        """
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise EvaluationError(
                f"inputs have shape {tuple(inputs.shape)} and targets {tuple(targets.shape)}; "
                "both need one entry per sample along the first axis"
            )
        if batch_size < 1:
            raise EvaluationError(f"batch_size is {batch_size}, but must be at least 1")
        # Views, which a DataLoader would copy sample by sample at every evaluation.
        starts = range(0, len(inputs), batch_size)
        batches = [(inputs[i : i + batch_size], targets[i : i + batch_size]) for i in starts]
        return cls(batches, loss, metrics=metrics)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model: ``"loss"``, ``"accuracy"`` for classification, and the others.

        Args:
            model: The model, on any device; it is not changed.
        """
        return self.same_data()(model)

    def same_data(self) -> Callable[[nn.Module], dict[str, float]]:
        """Return a function that evaluates like this, and fails if a loader yields less or more than at its first call.

        Paths are evaluated with it: a point that saw other data than the first one cannot be compared with it.
        """
        seen: dict[str, int] = {}

        def evaluate(model: nn.Module) -> dict[str, float]:
            with evaluating(model), torch.no_grad():
                return self._measure({split: _run(model, loader) for split, loader in self.loaders.items()}, seen)

        return evaluate

    def predict(self, model: nn.Module) -> dict[str, Predictions]:
        """Return what a model gives for each of the :attr:`loaders`, to be scored later.

        Example:
            >>> evaluate = Evaluator([(torch.eye(3), torch.tensor([0, 1, 1]))])
            >>> predictions = evaluate.predict(nn.Identity())
            >>> evaluate.score(predictions) == evaluate(nn.Identity())
            True
        """
        return {split: predict(model, loader) for split, loader in self.loaders.items()}

    def score(self, predictions: Mapping[str, Predictions]) -> dict[str, float]:
        """Return the metrics of outputs that are there already, such as those of an ensemble.

        Args:
            predictions: by the names of the :attr:`loaders`. Those of a loader are measured as one batch.

        Raises:
            EvaluationError: if the names are others.
        """
        if predictions.keys() != self.loaders.keys():
            raise EvaluationError(f"predictions are for {[*predictions]}, but the evaluator has {[*self.loaders]}")
        with torch.no_grad():
            return self._measure({split: [(each.outputs, each.targets)] for split, each in predictions.items()}, {})

    def _all(self) -> dict[str, Metric]:
        named = {"loss": self.loss, "accuracy": top(1), **(self.metrics or {})}
        return {
            name: each if isinstance(each, Metric) else Metric(each, higher_is_better=name == "accuracy")
            for name, each in named.items()
        }

    def _measure(self, pairs: Mapping[str, Iterable[tuple[Any, Any]]], seen: dict[str, int]) -> dict[str, float]:
        """Measure outputs and targets; check the numbers of samples against those seen before, and note them."""
        own = "accuracy" not in (self.metrics or {})
        found: dict[str, float] = {}
        for split, batches in pairs.items():
            tallies = {name: Tally(_named(split, name), metric) for name, metric in self._all().items()}
            count = 0
            for output, target in batches:
                if own and not classifies(output, target):
                    tallies.pop("accuracy", None)
                samples = samples_in(target)
                for tally in tallies.values():
                    tally.add(output, target, samples=samples)
                count += samples
            of = f" of '{split}'" if split else ""
            if count != seen.setdefault(split, count):
                raise EvaluationError(
                    f"the loader{of} yielded {count} samples, but {seen[split]} when it was read first; the same data "
                    "must come every time. Give a list of batches, or a DataLoader over a fixed dataset"
                )
            if count == 0:
                raise EvaluationError(f"the loader{of} yielded no samples, so there is nothing to take a mean over")
            found.update({tally.name: tally.result() for tally in tallies.values()})
        return found


def predict(model: nn.Module, loader: Iterable[Any]) -> Predictions:
    """Return what a model gives for all samples of a loader.

    It runs as in an :class:`Evaluator`. Of an output with ``.logits`` those are taken.

    Args:
        model: The model, on any device; it is not changed.
        loader: Batches ``(input, target)``.

    Raises:
        EvaluationError: If the loader is empty, or its batches do not fit together.

    Example:
        >>> predict(nn.Flatten(), [(torch.ones(2, 1, 3), torch.tensor([0, 1]))]).outputs.shape
        torch.Size([2, 3])
    """
    check_readable(loader)
    with evaluating(model), torch.no_grad():
        batches = [(logits(output).cpu(), target.cpu()) for output, target in _run(model, loader)]
    if sum(len(target) for _, target in batches) == 0:
        raise EvaluationError("the loader yielded no samples, so there is nothing to predict")
    outputs, targets = zip(*batches, strict=True)
    try:
        return Predictions(torch.cat(outputs), torch.cat(targets))
    except RuntimeError as error:
        shapes = sorted({tuple(tensor.shape) for tensor in outputs})
        raise EvaluationError(f"the batches do not fit together, with outputs of shapes {shapes}; pad them") from error


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model on an input, or on a dictionary of inputs by name.

    Raises:
        EvaluationError: If the model does not run on it; the message has its shapes.

    Example:
        >>> call(nn.ReLU(), torch.tensor([-1.0])), call(nn.ReLU(), {"input": torch.tensor([2.0])})
        (tensor([0.]), tensor([2.]))
    """
    try:
        return model(**inputs) if is_mapping(inputs) else model(inputs)
    except (AutopermError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the user's forward may raise
        raise EvaluationError(
            f"{type(model).__name__} does not run on a batch ({describe(inputs)}): {type(error).__name__}: {error}"
        ) from error


def _run(model: nn.Module, loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the output and the target of each batch."""
    device = device_of(model)
    for batch in loader:
        inputs, target = pair(to_device(batch, device))
        samples_in(target)  # before the work, and the error in it that a target of no tensor would cause
        yield call(model, inputs), target


def _named(split: str, name: str) -> str:
    return f"{split} {name}" if split else name


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Put a model in eval mode within the block, then give every submodule its own mode back.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> model[0].training, model[1].training
        (True, False)
    """
    check_model(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not module.train(mode): it recurses, and a model that freezes layers overrides it.
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the default device if it has none.

    Example:
        >>> device_of(nn.Linear(2, 2))
        device(type='cpu')
    """
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.get_default_device()

"""Metrics: what is measured on a model's outputs, and its mean over batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import describe
from .errors import AutopermError, EvaluationError

Measure = Callable[[Any, Any], Tensor]
"""``measure(output, target)``: one number (a tensor without axes), the mean over the samples of the batch; or one value
for each item (sample, token, pixel), whose mean over all items of all batches is taken."""

IGNORED = -100
"""The target of items that do not count, as in :func:`torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Metric:
    """A metric with what its mean means.

    Attributes:
        of: ``of(output, target)``: a tensor without axes, which is the mean over the samples of the batch, or one with
            a value for each item.
        higher_is_better: whether more is better, as for accuracy.
        finish: what is made of the mean over all data; by default the mean itself.

    Example:
        >>> rmse = Metric(lambda output, target: (output - target) ** 2, finish=math.sqrt)
        >>> rmse.finish(rmse.of(torch.tensor([3.0, 5.0]), torch.tensor([0.0, 1.0])).mean().item())
        3.5355339059327378
    """

    of: Measure
    higher_is_better: bool = False
    finish: Callable[[float], float] | None = None


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """Return the cross entropy of logits in nats, one value for each item whose target is not -100.

    The classes are on the last axis if the targets have the shape of the others, as tokens do: (batch, length,
    vocabulary) and (batch, length). Otherwise they are on the second one, as torch has it for images: (batch, classes,
    height, width) and (batch, height, width). It is computed in single precision or better.

    Args:
        output: logits, or an object that has them as ``.logits``.
        target: classes as integers; or probabilities, of the shape of the logits.

    Raises:
        EvaluationError: if the shapes do not fit.

    Example:
        >>> cross_entropy(torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [3, -100, -100]]))
        tensor([1.3863, 1.3863, 1.3863, 1.3863])
    """
    if isinstance(target, Tensor) and target.is_floating_point():
        found = logits(output)
        if found.shape != target.shape or found.ndim < 2:
            raise EvaluationError(
                f"outputs of shape {tuple(found.shape)} and targets of shape {tuple(target.shape)} do not fit; targets "
                "that are no integers are probabilities, of the shape (batch, classes) of the outputs. Convert classes "
                "with .long(), or give a loss=... of your own"
            )
        return F.cross_entropy(_wide(found), target, reduction="none")
    scores, classes = _items(output, target)
    return F.cross_entropy(_wide(scores), classes, ignore_index=IGNORED, reduction="none")[classes != IGNORED]


def top(k: int) -> Metric:
    """Return the metric that counts how often the target is among the k largest outputs: top-k accuracy, in [0, 1].

    Outputs and targets are as for :func:`cross_entropy`. ``top(1)`` is what an evaluator calls ``"accuracy"``.

    Raises:
        EvaluationError: if k is less than 1, or later if there are fewer classes.

    Example:
        >>> output = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
        >>> top(2).of(output, torch.tensor([1, 0]))
        tensor([ True, False])
    """
    if k < 1:
        raise EvaluationError(f"k is {k}, but the target can only be among the 1 or more largest outputs")

    def hits(output: Any, target: Tensor) -> Tensor:
        scores, classes = _items(output, target)
        if scores.shape[1] < k:
            raise EvaluationError(f"the {k} largest outputs are asked for, but there are {scores.shape[1]} classes")
        best = scores.argmax(1, keepdim=True) if k == 1 else scores.topk(k, sorted=False).indices
        return (best == classes[:, None]).any(1)[classes != IGNORED]

    return Metric(hits, higher_is_better=True)


perplexity = Metric(cross_entropy, finish=math.exp)
"""The exponential of the mean :func:`cross_entropy` of an item. For a language model an item is a token: outputs have
shape (batch, length, vocabulary), and targets of -100 are left out."""


def logits(output: Any) -> Tensor:
    """Return the tensor that a model computed, which may be the ``.logits`` of an object.

    Raises:
        EvaluationError: if there is none.

    Example:
        >>> logits(torch.zeros(2))
        tensor([0., 0.])
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise EvaluationError(
            f"the model returned a {type(output).__name__}, but must return a tensor, or an object whose .logits is "
            "one; give a loss and metrics of your own for other outputs"
        )
    return found


def classifies(output: Any, target: Any) -> bool:
    """Whether an output has shape (batch, classes), and the target one class for each sample.

    Example:
        >>> classifies(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), classifies(torch.zeros(4), torch.zeros(4))
        (True, False)
    """
    scores = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        return False
    return scores.ndim == 2 and target.shape == scores.shape[:1] and _counts(target)


def labelled(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return the values of the classes, of shape (items, classes) and in float64, and the true classes, on the CPU.

    Outputs and targets are as for :func:`cross_entropy`; items whose target is -100 are left out.

    Raises:
        EvaluationError: if the shapes do not fit, a target is no class, a value is not finite, or nothing is left.

    Example:
        >>> labelled(torch.zeros(1, 2, 3), torch.tensor([[2, -100]]))
        (tensor([[0., 0., 0.]], dtype=torch.float64), tensor([2]))
    """
    scores, classes = _items(output, target)
    scores, classes = scores.detach().double().cpu(), classes.long().cpu()
    scores, classes = scores[classes != IGNORED], classes[classes != IGNORED]
    if not len(classes):
        raise EvaluationError("there are no items, or all targets are left out")
    low, high, count = int(classes.min()), int(classes.max()), scores.shape[1]
    if low < 0 or high >= count:
        raise EvaluationError(f"the targets are from {low} to {high}, but the outputs have {count} classes, from 0")
    if bool(scores.isnan().any()) or bool(scores.isposinf().any()):
        raise EvaluationError("the outputs have NaN or infinite values")
    return scores, classes


def checked(name: str, value: float) -> float:
    """Return a metric's value if it is finite.

    Raises:
        EvaluationError: if it is not; the message names the metric.

    Example:
        >>> checked("test loss", math.nan)
        Traceback (most recent call last):
        autoperm.errors.EvaluationError: metric 'test loss' is nan; a barrier needs finite values. ...
    """
    if not math.isfinite(value):
        raise EvaluationError(
            f"metric '{name}' is {value}; a barrier needs finite values. Check the data, or evaluate in a wider dtype"
        )
    return value


@dataclass(frozen=True)
class Tally:
    """The mean of a metric over batches.

    Nothing is read from an accelerator before the mean is asked for, so that it need not wait for each batch.

    Example:
        >>> tally = Tally("loss", Metric(lambda output, target: output))
        >>> tally.add(torch.tensor([1.0, 2.0]), None, samples=2)
        >>> tally.add(torch.tensor([6.0]), None, samples=1)
        >>> tally.result()
        3.0
    """

    name: str
    metric: Metric
    _sums: list[tuple[Tensor, int]] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)

    def add(self, output: Any, target: Any, *, samples: int) -> None:
        """Measure a batch of some samples."""
        try:
            value = self.metric.of(output, target)
        except (AutopermError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the user's function may raise
            shapes = f"outputs {describe(output)} and targets {describe(target)}"
            raise EvaluationError(f"metric '{self.name}' fails on {shapes}: {type(error).__name__}: {error}") from error
        if isinstance(value, Real):
            value = torch.tensor(float(value), dtype=torch.float64)
        if not isinstance(value, Tensor) or value.is_complex():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise EvaluationError(
                f"metric '{self.name}' is of type {what}; it must be a tensor with one real number, the mean over the "
                "batch, or with one for each item"
            )
        value = value.detach()
        if value.ndim == 0:
            self._sums.append((value, samples))
            self._counts.append(samples)
        else:
            self._sums.append((_wide(value).sum(), 1))
            self._counts.append(value.numel())

    def result(self) -> float:
        """Return the mean over what was added, finished.

        Raises:
            EvaluationError: if nothing was added, or the mean is not finite.
        """
        count = sum(self._counts)
        if count == 0:
            raise EvaluationError(f"metric '{self.name}' has no items to take a mean over: all targets are left out")
        mean = checked(self.name, sum(float(value) * times for value, times in self._sums) / count)
        try:
            return mean if self.metric.finish is None else checked(self.name, float(self.metric.finish(mean)))
        except OverflowError:
            return checked(self.name, math.inf)


def _items(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return logits of shape (items, classes) and classes of shape (items,)."""
    scores = logits(output)
    if not isinstance(target, Tensor) or not _counts(target):
        what = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise EvaluationError(f"the target is of type {what}, but must be classes as integers")
    if scores.ndim and scores.shape[:-1] == target.shape:
        return scores.reshape(-1, scores.shape[-1]), target.reshape(-1)
    if scores.ndim > 2 and (scores.shape[0], *scores.shape[2:]) == target.shape:
        return scores.movedim(1, -1).reshape(-1, scores.shape[1]), target.reshape(-1)
    raise EvaluationError(
        f"outputs of shape {tuple(scores.shape)} and targets of shape {tuple(target.shape)} do not fit; targets have "
        "the shape of the outputs without their axis of classes, the last or the second one"
    )


def _counts(target: Tensor) -> bool:
    return not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)


def _wide(values: Tensor) -> Tensor:
    """Half precision would round the sum of a batch to two or three digits."""
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values

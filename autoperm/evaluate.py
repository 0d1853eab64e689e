"""Evaluate a model on data: mean loss and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from .errors import EvaluationError

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, target)``: a scalar tensor, the mean over the batch."""


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluate a model on labelled data: ``evaluator(model) -> {"loss": ..., "accuracy": ...}``.

    The loss is the mean per sample over all data, in the unit of ``loss``:

        L = sum_batches n_batch loss(model(input), target) / sum_batches n_batch

    Where outputs have shape (batch, classes) and targets are integers of shape (batch,), ``"accuracy"`` is the
    share of samples, in [0, 1], whose largest output is the target (top-1).

    The model runs in eval mode, without gradients and on its own device. Its modes are as before afterwards.

    Attributes:
        loader: Batches ``(input, target)``; the model is called on the input. It is read anew in every call, so
            it must not be a generator. For a loss that compares over points use the same data every time:
            neither random augmentation nor, with shuffling, ``drop_last``.
        loss: The loss as a mean over the batch, by default the cross entropy of logits.

    Raises:
        EvaluationError: If the loader can be read only once, is empty or does not yield ``(input, target)``, or
            if the loss is not a scalar.

    Example:
        >>> batch = torch.eye(3), torch.tensor([0, 1, 1])
        >>> evaluate = Evaluator([batch], nn.CrossEntropyLoss())
        >>> metrics = evaluate(nn.Identity())
        >>> print(f"{metrics['loss']:.3f} {metrics['accuracy']:.3f}")
        0.885 0.667
    """

    loader: Iterable[Any]
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        """Check that the loader can be read more than once."""
        check_rereadable(self.loader)

    @classmethod
    def from_tensors(
        cls, inputs: Tensor, targets: Tensor, *, loss: Loss = F.cross_entropy, batch_size: int = 512
    ) -> Evaluator:
        """Build an evaluator from tensors that hold all the data, in the order given.

        Args:
            inputs: Inputs, samples along the first axis.
            targets: Targets, samples along the first axis.
            loss: The loss as a mean over the batch, by default the cross entropy of logits.
            batch_size: Samples per batch.

        Raises:
            EvaluationError: If there are no samples, the numbers of inputs and targets differ or the batch size
                is less than 1.

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
        loader: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(inputs, targets), batch_size=batch_size)
        return cls(loader, loss)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model: ``"loss"``, and ``"accuracy"`` for classification.

        Args:
            model: The model, on any device; it is not changed.
        """
        device = device_of(model)
        count = 0
        total = 0.0
        hits: int | None = 0
        with evaluating(model), torch.no_grad():
            for batch in self.loader:
                inputs, target = pair(to_device(batch, device))
                output = model(inputs)
                samples = samples_in(target)
                total += samples * _scalar(self.loss(output, target))
                correct = _hits(output, target)
                hits = None if hits is None or correct is None else hits + correct
                count += samples
        if count == 0:
            raise EvaluationError("the loader yielded no samples, so there is nothing to take a mean over")
        metrics = {"loss": total / count}
        if hits is not None:
            metrics["accuracy"] = hits / count
        return metrics


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


def to_device(batch: Any, device: torch.device) -> Any:
    """Move all tensors in nested tuples, lists and mappings to a device.

    Example:
        >>> to_device((torch.zeros(1), {"mask": [torch.ones(1), "x"]}), torch.device("cpu"))
        (tensor([0.]), {'mask': [tensor([1.]), 'x']})
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if is_mapping(batch):
        return {key: to_device(value, device) for key, value in batch.items()}
    if is_sequence(batch):
        moved = [to_device(value, device) for value in batch]
        return moved if isinstance(batch, list) else tuple(moved)
    return batch


def check_rereadable(loader: Iterable[Any]) -> None:
    """Check that a loader can be read more than once: a generator is empty the second time.

    Raises:
        EvaluationError: If the loader is an iterator, such as a generator, or cannot be read at all.

    Example:
        >>> check_rereadable(iter([1, 2]))
        Traceback (most recent call last):
        autoperm.errors.EvaluationError: the data is a list_iterator, which can be read only once; ...
    """
    check_readable(loader)
    if isinstance(loader, Iterator):
        raise EvaluationError(
            f"the data is a {type(loader).__name__}, which can be read only once; "
            "give a DataLoader or a list of batches, which can be read at every point"
        )


def check_readable(loader: object) -> None:
    """Check that a loader can be read.

    Raises:
        EvaluationError: If there are no batches to take from it, as from a number or a model.

    Example:
        >>> check_readable(3)
        Traceback (most recent call last):
        autoperm.errors.EvaluationError: the data is a int, from which no batches can be read; ...
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise EvaluationError(
            f"the data is a {type(loader).__name__}, from which no batches can be read; "
            "give a DataLoader or a list of batches"
        )


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list or tuple.

    Example:
        >>> is_sequence((1, 2)), is_sequence("ab")
        (True, False)
    """
    return isinstance(value, list | tuple)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a value is a mapping, such as a dictionary.

    Example:
        >>> is_mapping({}), is_mapping([])
        (True, False)
    """
    return isinstance(value, Mapping)


def pair(batch: Any) -> tuple[Any, Any]:
    """Return the input and the target of a batch.

    Raises:
        EvaluationError: If the batch is anything but a pair.

    Example:
        >>> pair([1, 2])
        (1, 2)
    """
    if not is_sequence(batch) or len(batch) != 2:
        raise EvaluationError(
            f"the loader yielded a {type(batch).__name__}, not a pair (input, target); "
            "wrap the loader, or evaluate with a function model -> dict of your own"
        )
    return batch[0], batch[1]


def samples_in(target: Any) -> int:
    """Return the number of samples that a target is for.

    Raises:
        EvaluationError: If it is no tensor with samples along its first axis.

    Example:
        >>> samples_in(torch.zeros(3, 2))
        3
    """
    if not isinstance(target, Tensor) or target.ndim == 0:
        raise EvaluationError(
            f"the target is a {type(target).__name__}, but must be a tensor with samples along its first axis"
        )
    return len(target)


def _scalar(value: Any) -> float:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise EvaluationError(
            f"the loss has {what}, but must be a tensor with one element, the mean over the batch (reduction='mean')"
        )
    return float(value)


def _hits(output: Any, target: Tensor) -> int | None:
    if not isinstance(output, Tensor) or output.ndim != 2 or target.shape != output.shape[:1]:
        return None
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        return None
    return int((output.argmax(dim=1) == target).sum())

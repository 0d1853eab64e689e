"""What loaders yield: batches, their inputs, targets and samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from .errors import EvaluationError


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


def describe(value: Any) -> str:
    """Write the dtypes and shapes of what a batch holds, for messages.

    Example:
        >>> describe((torch.zeros(2, 3), {"mask": torch.ones(2), "label": "x"}))
        '(float32[2, 3], mask=float32[2], label=str)'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if is_mapping(value):
        return ", ".join(f"{key}={describe(item)}" for key, item in value.items())
    return f"({', '.join(map(describe, value))})" if is_sequence(value) else type(value).__name__


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
    if isinstance(loader, Tensor) or (isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)):
        raise EvaluationError(
            f"the data is a {type(loader).__name__}, not batches; give a DataLoader or a list of batches"
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
    if is_mapping(batch):
        raise EvaluationError(
            f"the loader yielded a {type(batch).__name__}, not a pair; inputs by name need a target beside it: "
            "(inputs, target)"
        )
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
    if not isinstance(target, Tensor):
        raise EvaluationError(
            f"the target is a {type(target).__name__}, but must be a tensor with samples along its first axis"
        )
    if target.ndim == 0:
        raise EvaluationError("the target has no axis of samples, being of one alone; give a DataLoader, not a dataset")
    return len(target)


def input_in(batch: Any) -> Any:
    """Return the input in a batch: the batch itself, or the first entry of a tuple.

    Raises:
        EvaluationError: If the tuple is empty.

    Example:
        >>> input_in(("input", "target")), input_in({"x": 1})
        ('input', {'x': 1})
    """
    if not is_sequence(batch):
        return batch
    if not batch:
        raise EvaluationError("the loader yielded an empty tuple; a batch is an input, or a tuple that begins with it")
    return batch[0]

"""Re-estimate the running statistics of BatchNorm layers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from .batches import input_in, to_device
from .copies import copy_model
from .errors import ArchitectureError, EvaluationError, SpecError
from .evaluate import call, device_of, evaluating

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def renormalize_batch_norm(model: nn.Module, loader: Iterable[Any], *, batches: int | None = None) -> nn.Module:
    """Return a copy of a model whose BatchNorm statistics are those of the data.

    Interpolated running statistics are not the statistics of the interpolated network: its activations have a
    smaller variance than those of either end. Every running statistic is replaced by its mean over batches,

        running_mean = 1/n sum_i mean(batch i),    running_var = 1/n sum_i var(batch i)

    with the unbiased variance, as torch computes it. Only BatchNorm layers are in training
    mode meanwhile, the rest (dropout) in eval mode. The mean weighs all batches equally: use batches of one size.
    A BatchNorm layer that the model does not call keeps its statistics.

    Args:
        model: The model; it is not changed.
        loader: Batches of training data: inputs, or tuples whose first entry is the input; a dictionary holds inputs
            by name.
        batches: How many batches to read; all of them by default.

    Returns:
        A copy of the model, each submodule in the mode it has in ``model``.

    Raises:
        ArchitectureError: If no layer of the model is a BatchNorm with running statistics.
        EvaluationError: If the loader is empty, or a batch has a single value per channel.
        SpecError: If ``batches`` is less than 1.

    Example:
        >>> data = torch.tensor([[1.0], [3.0]])
        >>> model = renormalize_batch_norm(nn.BatchNorm1d(1), [data])
        >>> model.running_mean, model.running_var
        (tensor([2.]), tensor([2.]))

    Reference:
        Jordan, Sedghi, Saukh, Entezari and Neyshabur, "REPAIR: REnormalizing Permuted Activations for
        Interpolation Repair", arXiv 2211.08403 (2023), which names the variance collapse and its repair.
    """
    return reestimate(copy_model(model), loader, batches=batches)


def reestimate(model: nn.Module, loader: Iterable[Any], *, batches: int | None = None) -> nn.Module:
    """Do what :func:`renormalize_batch_norm` does to the model itself, and return it."""
    if batches is not None and batches < 1:
        raise SpecError(f"batches is {batches}, but must be at least 1, or None to read all")
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    norms = {name: module for name, module in modules if isinstance(module, BatchNorm) and module.track_running_stats}
    if not norms:
        raise ArchitectureError(
            f"{type(model).__name__} has no BatchNorm layer with running statistics, so there is nothing to "
            "re-estimate; leave renormalize='batch_norm' out, or take 'repair'"
        )
    device = device_of(model)
    read = 0
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluating(model))
        means = [stack.enter_context(_mean_of(norm, name)) for name, norm in norms.items()]
        for batch in islice(loader, batches):
            call(model, to_device(input_in(batch), device))
            read += 1
    if read == 0:
        raise EvaluationError("the loader yielded no batches, so there are no statistics to estimate")
    for mean in means:
        mean.write()
    return model


class _Mean:
    """The mean of a layer's statistics over batches.

    The layer keeps those of the last batch alone, and their sum is kept here: a running mean in half precision would
    stand still after some batches.
    """

    def __init__(self, norm: BatchNorm, name: str) -> None:
        self.norm, self.name = norm, name
        self.sums: list[Tensor] = []
        self.count = 0

    @property
    def statistics(self) -> list[Tensor]:
        return [self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")]

    def check(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        if x.numel() <= x.shape[1]:
            raise EvaluationError(
                f"a batch has a single value per channel at the BatchNorm layer '{self.name}' (input of shape "
                f"{tuple(x.shape)}), which has no variance; use larger batches, or drop the last one"
            )
        if not self.count:
            self.norm.reset_running_stats()

    def add(self, *_: object) -> None:
        found = [each.to(torch.promote_types(each.dtype, torch.float32), copy=True) for each in self.statistics]
        self.sums = [x + y for x, y in zip(self.sums, found, strict=True)] if self.count else found
        self.count += 1

    def write(self) -> None:
        for statistic, total in zip(self.statistics, self.sums, strict=False):  # none where the layer was not called
            statistic.copy_(total / self.count)


@contextmanager
def _mean_of(norm: BatchNorm, name: str) -> Generator[_Mean]:
    """Let a layer compute the statistics of each batch within the block, and take their mean."""
    mean, momentum = _Mean(norm, name), norm.momentum
    hooks = [
        norm.register_forward_pre_hook(mean.check, with_kwargs=True),
        norm.register_forward_hook(mean.add),
    ]
    norm.training, norm.momentum = True, 1.0
    try:
        yield mean
    finally:
        norm.momentum = momentum
        for hook in hooks:
            hook.remove()

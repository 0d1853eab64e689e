"""Re-estimate the running statistics of BatchNorm layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from .copies import copy_model
from .errors import ArchitectureError, EvaluationError, SpecError
from .evaluate import device_of, evaluating, is_sequence, to_device

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def renormalize_batch_norm(model: nn.Module, loader: Iterable[Any], *, batches: int | None = None) -> nn.Module:
    """Return a copy of a model whose BatchNorm statistics are those of the data.

    Interpolated running statistics are not the statistics of the interpolated network: its activations have a
    smaller variance than those of either end. Every running statistic is replaced by its mean over batches,

        running_mean = 1/n sum_i mean(batch i),    running_var = 1/n sum_i var(batch i)

    with the unbiased variance, as torch computes it for ``momentum=None``. Only BatchNorm layers are in training
    mode meanwhile, the rest (dropout) in eval mode. The mean weighs all batches equally: use batches of one size.
    A BatchNorm layer that the model does not call keeps its statistics.

    Args:
        model: The model; it is not changed.
        loader: Batches of training data: input tensors, or tuples whose first entry is the input.
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
    if batches is not None and batches < 1:
        raise SpecError(f"batches is {batches}, but must be at least 1, or None to read all")
    result = copy_model(model)
    modules = cast("Iterator[tuple[str, nn.Module]]", result.named_modules())
    norms = {name: module for name, module in modules if isinstance(module, BatchNorm) and module.track_running_stats}
    if not norms:
        raise ArchitectureError(
            f"{type(model).__name__} has no BatchNorm layer with running statistics, so there is nothing to "
            "re-estimate; leave renormalize='batch_norm' out, or take 'repair'"
        )
    momenta = {name: norm.momentum for name, norm in norms.items()}
    hooks = [norm.register_forward_pre_hook(_restart(name), with_kwargs=True) for name, norm in norms.items()]
    device = device_of(result)
    count = 0
    try:
        with evaluating(result), torch.no_grad():
            for norm in norms.values():
                norm.training = True
                norm.momentum = None
            for batch in islice(loader, batches):
                result(to_device(_first(batch), device))
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise EvaluationError("the loader yielded no batches, so there are no statistics to estimate")
    for name, norm in norms.items():
        norm.momentum = momenta[name]
    return result


def _restart(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Make a hook that resets the statistics at a layer's first call, and checks every batch."""
    started = False

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal started
        x: Tensor = args[0] if args else kwargs["input"]
        if x.numel() <= x.shape[1]:
            raise EvaluationError(
                f"a batch has a single value per channel at the BatchNorm layer '{name}' (input of shape "
                f"{tuple(x.shape)}), which has no variance; use larger batches, or drop the last one"
            )
        if not started:
            cast("BatchNorm", module).reset_running_stats()
            started = True

    return hook


def _first(batch: Any) -> Any:
    if not is_sequence(batch):
        return batch
    if not batch:
        raise EvaluationError("the loader yielded an empty tuple; a batch is an input, or a tuple that begins with it")
    return batch[0]

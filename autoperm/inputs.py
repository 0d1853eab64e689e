"""Example inputs, when the user gives none: ask the model, else look at its first layer and try.

Candidates run under fake tensors, so that trying costs neither time nor memory, whatever the model's size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from .copies import copy_model
from .errors import TraceError
from .trace import describe_inputs, quiet

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

_IMAGE_SIZES = (64, 224, 32, 28, 96, 128, 256, 299, 16, 8, 512)
_LENGTHS = (16, 64, 256, 1024, 8, 16000)
_BATCH = 2


def resolve_inputs(model: nn.Module, example_inputs: Any = None) -> Inputs:
    """Return positional and named example inputs, found if none are given.

    Args:
        model: the model they are for.
        example_inputs: a tensor, a tuple or list of positional inputs, a dictionary of named ones, or None.

    Raises:
        TraceError: for inputs that are none of these, or if none were found; the message shows what was tried.

    Example:
        >>> (x,), _ = resolve_inputs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 10)))
        >>> x.shape
        torch.Size([2, 3, 28, 28])
    """
    if example_inputs is None:
        return find_inputs(model)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TraceError(
        f"example_inputs is a {type(example_inputs).__name__}; pass a tensor, a tuple, or a dictionary by name"
    )


def find_inputs(model: nn.Module) -> Inputs:
    """Find inputs that a model runs on."""
    replica = copy_model(model, share_parameters=True).eval()
    tried = []
    for args, kwargs in _candidates(replica):
        problem = _try(replica, args, kwargs)
        if problem is None:
            return args, kwargs
        tried.append(f"  {describe_inputs(args, kwargs)}: {problem}")
    name = type(model).__name__
    listing = "\n".join(tried[:12]) or "  nothing: it has no layer whose inputs can be guessed"
    raise TraceError(
        f"no example inputs were found that {name} runs on. Tried:\n{listing}\n"
        "Pass them: example_inputs=(tensor, ...) or example_inputs={'name': tensor, ...}"
    )


def _try(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Run a model under fake tensors; return what went wrong."""
    try:
        with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():

            def fake(value: Any) -> Any:
                return mode.from_tensor(value) if isinstance(value, Tensor) else value

            model(*map(fake, args), **{key: fake(value) for key, value in kwargs.items()})
    except DataDependentOutputException:
        return None  # the inputs are right; what the model does with them is for the tracer to say
    except Exception as error:  # a candidate may fail in any way
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"
    return None


def _candidates(model: nn.Module) -> Iterator[Inputs]:
    yield from _asked(model)
    layer = next((module for module in model.modules() if _guesses(module) is not None), None)
    if layer is None:
        return
    tensor = next(model.parameters(), torch.empty(0))
    needed = _required(model)
    for shape, high in _guesses(layer) or ():
        values = []
        for i in range(needed):
            generator = torch.Generator().manual_seed(i)
            if high:
                values.append(torch.randint(0, high, shape, generator=generator).to(tensor.device))
            else:
                values.append(torch.randn(shape, generator=generator).to(tensor.device, tensor.dtype))
        yield tuple(values), {}


def _asked(model: nn.Module) -> Iterator[Inputs]:
    """What a model says of its inputs, in the customs of several libraries."""
    for name in ("dummy_inputs", "example_input_array"):
        try:
            value = getattr(model, name, None)
        except Exception:  # a property of the user's that fails is no answer
            continue
        if isinstance(value, Tensor):
            yield (value,), {}
        elif isinstance(value, Mapping) and value:
            yield (), dict(value)
        elif isinstance(value, tuple) and value:
            yield value, {}
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if isinstance(size, Sequence):
            yield (torch.randn(_BATCH, *size, generator=torch.Generator().manual_seed(0)),), {}


def _guesses(module: nn.Module) -> list[tuple[tuple[int, ...], int]] | None:
    """Shapes that a first layer may be fed, and for indices the number of them."""
    if isinstance(module, nn.Embedding):
        return [((_BATCH, n), module.num_embeddings) for n in _LENGTHS] + [((_BATCH,), module.num_embeddings)]
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        return [((_BATCH, module.in_channels, n), 0) for n in _LENGTHS]
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return [((_BATCH, module.in_channels, n, n), 0) for n in _IMAGE_SIZES]
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        return [((_BATCH, module.in_channels, n, n, n), 0) for n in (16, 32, 64, 8)]
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return [((_BATCH, 5, module.input_size), 0), ((_BATCH, module.input_size), 0)]
    if isinstance(module, nn.MultiheadAttention):
        return [((_BATCH, 5, module.embed_dim), 0)]
    if isinstance(module, nn.Linear):
        n = module.in_features
        images: list[tuple[int, ...]] = []
        for channels in (1, 3):
            side = round((n / channels) ** 0.5)
            if channels * side * side == n:
                images.append((_BATCH, channels, side, side))
        return [((_BATCH, n), 0), ((_BATCH, 5, n), 0), *((shape, 0) for shape in images)]
    return None


def _required(model: nn.Module) -> int:
    """How many inputs a model's forward cannot do without."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters))

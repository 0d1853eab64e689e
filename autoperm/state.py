"""Checks on state dicts: same architecture, finite values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from .errors import ArchitectureError, WeightsError

_SHOWN = 8
"""How many names an error message lists before it only counts the rest."""


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state dict, without gradients and sharing the model's memory.

    Entries that are not tensors (``_extra_state``) are left out.

    Raises:
        ArchitectureError: If it is no model, such as a state dict or a file's name.

    Example:
        >>> sorted(tensors(nn.Linear(2, 3)))
        ['bias', 'weight']
    """
    check_model(model)
    state: dict[str, object] = model.state_dict()
    return {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}


def check_model(model: object) -> None:
    """Check that something is a model, and neither a result that holds one nor a state dict.

    Raises:
        ArchitectureError: If it is not.

    Example:
        >>> check_model(nn.Linear(2, 3).state_dict())
        Traceback (most recent call last):
        autoperm.errors.ArchitectureError: a model is needed, and got a OrderedDict; build the model and load its ...
    """
    if isinstance(model, nn.Module):
        return
    holds = isinstance(getattr(model, "model", None), nn.Module)
    hint = "give its .model" if holds else "build the model and load its weights first"
    raise ArchitectureError(f"a model is needed, and got a {type(model).__name__}; {hint}")


def several(models: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Return two models or more as a tuple.

    Raises:
        ArchitectureError: If they are fewer, or no list of models.

    Example:
        >>> several(nn.Linear(2, 3))
        Traceback (most recent call last):
        autoperm.errors.ArchitectureError: a list of 2 models or more is needed, and got a Linear
    """
    if isinstance(models, nn.Module | Mapping | str) or not isinstance(models, Iterable):
        raise ArchitectureError(f"a list of 2 models or more is needed, and got a {type(models).__name__}")
    found = tuple(models)
    if len(found) < 2:
        raise ArchitectureError(f"a list of 2 models or more is needed, and got {len(found)}")
    return found


def check_same_architecture(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Check that two state dicts have the same names, shapes, dtypes and devices.

    Args:
        a: State dict of model A.
        b: State dict of model B.

    Raises:
        ArchitectureError: If they differ; the message lists the names with the shapes, dtypes or devices.

    Example:
        >>> check_same_architecture(nn.Linear(2, 3).state_dict(), nn.Linear(2, 3).state_dict())
        >>> check_same_architecture(nn.Linear(2, 3).state_dict(), nn.Linear(2, 4).state_dict())
        Traceback (most recent call last):
        autoperm.errors.ArchitectureError: model A and model B do not have the same architecture:
          weight: shape (3, 2) in A, (4, 2) in B
          bias: shape (3,) in A, (4,) in B
        Build both models with the same configuration.
    """
    for given in (a, b):
        if isinstance(given, nn.Module):
            raise ArchitectureError(f"a state dict is needed, and got a {type(given).__name__}; give its .state_dict()")
    faults = [f"{name}: only in A, with shape {_shape(tensor)}" for name, tensor in a.items() if name not in b]
    faults += [f"{name}: only in B, with shape {_shape(tensor)}" for name, tensor in b.items() if name not in a]
    both = [(name, tensor, b[name]) for name, tensor in a.items() if name in b]
    faults += [f"{n}: shape {_shape(x)} in A, {_shape(y)} in B" for n, x, y in both if x.shape != y.shape]
    converted = [f"{n}: {x.dtype} in A, {y.dtype} in B" for n, x, y in both if x.dtype != y.dtype]
    moved = [f"{n}: on {x.device} in A, on {y.device} in B" for n, x, y in both if x.device != y.device]
    if faults:
        raise ArchitectureError(
            "model A and model B do not have the same architecture:\n"
            + _listing(faults + converted)
            + "\nBuild both models with the same configuration."
        )
    if converted:
        raise ArchitectureError(
            "model A and model B do not have the same dtypes:\n"
            + _listing(converted)
            + "\nConvert one of them with model.to(dtype)."
        )
    if moved:
        raise ArchitectureError(
            "model A and model B are not on the same device:\n"
            + _listing(moved)
            + "\nMove one of them with model.to(...)."
        )


def check_alike(models: Mapping[str, nn.Module]) -> None:
    """Check that models have the architecture and the index tables of the first one, and finite weights.

    Args:
        models: by what the message calls them.

    Raises:
        ArchitectureError: If names, shapes, dtypes, devices or index tables differ; the message says whose.
        WeightsError: If weights are NaN or infinite.

    Example:
        >>> check_alike({"model 0": nn.Linear(2, 3), "model 1": nn.Linear(2, 3).double()})
        Traceback (most recent call last):
        autoperm.errors.ArchitectureError: model 1 (B) does not fit model 0 (A): model A and model B do not have ...
    """
    states = {which: tensors(model) for which, model in models.items()}
    (first, like), *others = states.items()
    for which, state in others:
        try:
            check_same_architecture(like, state)
            check_same_indices(like, state)
        except ArchitectureError as error:
            raise ArchitectureError(f"{which} (B) does not fit {first} (A): {error}") from error
    for which, state in states.items():
        check_finite(state, which)
    check_has_mean(next(iter(models.values())))


def check_has_mean(model: nn.Module) -> None:
    """Check that means of the tensors of such models make sense.

    A spectral norm is estimated by two vectors, kept as buffers. Of two models they differ, often in sign, and their
    mean gives a norm that may be smaller by any factor.

    Raises:
        ArchitectureError: If a module has a spectral norm.

    Example:
        >>> check_has_mean(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    """
    for name, module in model.named_modules():
        if isinstance(module, _SpectralNorm) or any(
            isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()
        ):
            where = name.partition(".parametrizations.")[0] or type(model).__name__
            raise ArchitectureError(
                f"'{where}' has a spectral norm, whose estimate has no mean; fold it into the weights of all models "
                "first: torch.nn.utils.parametrize.remove_parametrizations, or remove_spectral_norm if it is an old one"
            )


def check_same_indices(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Check that integer and boolean tensors with more than one element are equal in both state dicts.

    An index table or a mask has no midpoint; if it differs, a path would silently mix A's table with B's
    weights. Single numbers are counters (``num_batches_tracked``) and may differ.

    Args:
        a: State dict of model A.
        b: State dict of model B, of the same architecture.

    Raises:
        ArchitectureError: If such a tensor differs; the message lists the names.

    Example:
        >>> check_same_indices({"mask": torch.tensor([0, 1])}, {"mask": torch.tensor([0, 1])})
    """
    faults = [
        f"{name}: {a[name].dtype}, shape {_shape(a[name])}"
        for name in a
        if not interpolates(a[name]) and a[name].numel() > 1 and not torch.equal(a[name], b[name])
    ]
    if faults:
        raise ArchitectureError(
            "model A and model B differ in integer or boolean tensors, between which there is no path:\n"
            + _listing(faults)
            + "\nGive both models the same tables, or fold masks into the weights."
        )


def check_finite(state: Mapping[str, Tensor], which: str) -> None:
    """Check that all floating and complex tensors are finite.

    Args:
        state: State dict to check.
        which: What the message calls it, for example ``"model A"``.

    Raises:
        WeightsError: If a tensor has no values, or NaN or infinite ones; the message counts these by name.

    Example:
        >>> check_finite({"w": torch.tensor([1.0, float("nan")])}, "model A")
        Traceback (most recent call last):
        autoperm.errors.WeightsError: model A has NaN or infinite values:
          w: 1 of 2 values
        Load another checkpoint, or train again with a lower learning rate.
    """
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise WeightsError(f"{which} has tensors without values (device meta), such as '{empty[0]}'; load its weights")
    faults: list[str] = []
    for name, tensor in state.items():
        bad = int((~torch.isfinite(tensor)).sum()) if interpolates(tensor) else 0
        if bad:
            faults.append(f"{name}: {bad} of {tensor.numel()} values")
    if faults:
        raise WeightsError(
            f"{which} has NaN or infinite values:\n"
            + _listing(faults)
            + "\nLoad another checkpoint, or train again with a lower learning rate."
        )


def interpolates(tensor: Tensor) -> bool:
    """Whether a tensor has values between its values: floating or complex, not integer or boolean.

    Example:
        >>> interpolates(torch.tensor(1.0)), interpolates(torch.tensor(1))
        (True, False)
    """
    return tensor.is_floating_point() or tensor.is_complex()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _listing(faults: list[str]) -> str:
    lines = [f"  {fault}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"  and {len(faults) - _SHOWN} more")
    return "\n".join(lines)

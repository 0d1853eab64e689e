"""Choose tensors of a model by name, by module, or by what moves together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor

from .errors import SpecError, quoted
from .spec import PermutationSpec


def select(
    only: str | Sequence[str] | None, state: Mapping[str, Tensor], spec: PermutationSpec | None = None
) -> tuple[str, ...]:
    """Return the names of the tensors that patterns choose, in the order of the state dict.

    A tensor is chosen with all names that share its memory.

    Args:
        only: patterns. Each is a name of a tensor or module, in which ``*`` stands for anything (``"layer1.*"``,
            ``"blocks.0"``, ``"*.bias"``); or, where none is called so, the name of a factor of the specification, for
            all tensors that carry it. None for all tensors.
        state: the state dict.
        spec: the specification, if there is one.

    Raises:
        SpecError: if a pattern chooses nothing; the message has names that are like it.

    Example:
        >>> from torch import nn
        >>> state = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict()
        >>> select(["1", "*.bias"], state)
        ('0.bias', '1.weight', '1.bias')
    """
    if only is None:
        return tuple(state)
    patterns = [only] if isinstance(only, str) else list(only)
    if not patterns:
        raise SpecError("only= is empty, so that nothing would be chosen; leave it out to choose everything")
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in state if any(fnmatchcase(part, pattern) for part in _prefixes(name))}
        if not found and spec is not None:
            found = {tensor for tensor, _ in spec.carriers.get(pattern, ())}
        if not found:
            raise _nothing(pattern, state, spec)
        chosen |= found
    memory = {_memory(state[name]) for name in chosen}
    return tuple(name for name, tensor in state.items() if name in chosen or _memory(tensor) in memory)


def _prefixes(name: str) -> list[str]:
    """A tensor's name and those of the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1)]


def _memory(tensor: Tensor) -> object:
    return (tensor.data_ptr(), tensor.shape) if tensor.numel() else id(tensor)


def _nothing(pattern: str, names: Collection[str], spec: PermutationSpec | None) -> SpecError:
    known = dict.fromkeys(part for name in names for part in _prefixes(name))
    factors = list(spec.factors) if spec is not None else []
    near = get_close_matches(pattern, [*known, *factors], n=5, cutoff=0.5)
    modules = list(dict.fromkeys(name.partition(".")[0] for name in names))
    shown = "near it are" if near else "there are"
    listing = quoted(near or modules[:8])
    return SpecError(f"no tensor, module or factor is called '{pattern}'; {shown} {listing}")

"""Patterns written by hand: the sizes that they leave unsaid are solved from the shapes of the tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from torch import Tensor, nn

from .errors import SpecError
from .signature import Interleaving, Name, Pattern, Pinned, Product, Sum, Term, format_pattern, names, parse_pattern
from .spec import Factor, PermutationSpec

_SHOWN = 8


def from_patterns(
    patterns: Mapping[str, str], like: nn.Module | Mapping[str, Tensor], *, over: Mapping[str, Sequence[str]]
) -> PermutationSpec:
    """See :meth:`autoperm.PermutationSpec.from_patterns`."""
    tensors = tensors_of(like)
    parsed = {name: parse_pattern(pattern) for name, pattern in patterns.items()}
    check_axes(parsed, tensors)
    sizes: dict[str, int] = {}
    pinned: set[str] = set()
    for name, pattern in parsed.items():
        for term, size in zip(pattern, tensors[name].shape, strict=True):
            _collect(term, size, sizes, pinned)
    for _ in range(len(parsed)):  # a size inside a product or sum may need another's first
        for name, pattern in parsed.items():
            for term, size in zip(pattern, tensors[name].shape, strict=True):
                _solve(term, size, sizes)
    used = dict.fromkeys(name for pattern in parsed.values() for name in names(pattern))
    unsized = [name for name in used if name not in sizes]
    if unsized:
        raise SpecError(f"the size of {unsized[0]!r} cannot be told; write it once: {unsized[0]}=4")
    strange = [name for name in over if name not in used]
    if strange:
        raise SpecError(f"over names {strange[0]!r}, which stands in no pattern; there are {', '.join(used)}")
    order = sorted(used, key=lambda name: len(over.get(name, ())))
    return assemble(
        {name: tuple(map(_bare, pattern)) for name, pattern in parsed.items()},
        tensors,
        {name: Factor(name, sizes[name], tuple(over.get(name, ())), name in pinned) for name in order},
    )


def tensors_of(like: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a model, or of a state dict, by name."""
    return like.state_dict(keep_vars=True) if isinstance(like, nn.Module) else like


def check_axes(patterns: Mapping[str, Pattern], tensors: Mapping[str, Tensor]) -> None:
    """Check that there is a tensor for each pattern, with as many axes.

    Raises:
        SpecError: naming the tensors that are missing, or the first that has other axes.
    """
    missing = [name for name in patterns if name not in tensors]
    if missing:
        raise SpecError(f"no tensor is called {_listing(map(repr, missing))}; there are {_listing(tensors)}")
    for name, pattern in patterns.items():
        if len(pattern) != tensors[name].ndim:
            raise SpecError(
                f'{name}: "{format_pattern(pattern)}" has {len(pattern)} axes, the tensor has shape '
                f"{list(tensors[name].shape)}"
            )


def assemble(
    patterns: Mapping[str, Pattern], tensors: Mapping[str, Tensor], factors: Mapping[str, Factor]
) -> PermutationSpec:
    """Build a specification in which every name of a tensor has the tensor's pattern.

    Raises:
        SpecError: if two names of one tensor have different patterns, or a pattern does not fit its tensor.
    """
    given, tied = dict(patterns), {}
    for name, twin in _other_names(tensors).items():
        known = [which for which in (twin, name) if which in given]
        if len(known) == 2 and given[twin] != given[name]:
            raise SpecError(
                f"{twin} and {name} are two names of one tensor, but have two patterns: "
                f'"{format_pattern(given[twin])}" and "{format_pattern(given[name])}"'
            )
        if known:
            given[twin] = given[name] = given[known[0]]
            tied[name] = twin
    order = [name for name in tensors if name in given]
    return PermutationSpec(
        patterns={name: given[name] for name in order},
        shapes={name: tuple(tensors[name].shape) for name in order},
        factors=factors,
        tied=tied,
    )


def _other_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each further name of a tensor its first name: the same object, or all of the same memory."""
    first: dict[object, str] = {}
    found = {}
    for name, tensor in tensors.items():
        in_memory = not tensor.is_meta and tensor.numel() > 0
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if in_memory else id(tensor)
        if first.setdefault(key, name) != name:
            found[name] = first[key]
    return found


def _listing(items: Iterable[str]) -> str:
    shown = list(items)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _collect(term: Term, size: int, sizes: dict[str, int], pinned: set[str]) -> None:
    if isinstance(term, Name):
        sizes.setdefault(term.name, term.size or size)
        if term.pinned:
            pinned.add(term.name)
    elif isinstance(term, (Product, Sum, Interleaving)):
        for inner in term.terms:
            if isinstance(inner, Name):
                if inner.size is not None:
                    sizes.setdefault(inner.name, inner.size)
                if inner.pinned:
                    pinned.add(inner.name)
            else:
                _collect(inner, 0, sizes, pinned)


def _solve(term: Term, size: int, sizes: dict[str, int]) -> None:
    if isinstance(term, Name):
        sizes.setdefault(term.name, size)
    if isinstance(term, Interleaving):
        rests = [_known(rest, sizes) for _, rest in term.turns]
        if all(rests):
            for lead, _ in term.turns:
                _solve(lead, size // sum(filter(None, rests)), sizes)
    if not isinstance(term, (Product, Sum)):
        return
    known = {inner: _known(inner, sizes) for inner in term.terms}
    missing = [inner for inner in term.terms if known[inner] is None]
    found = [n for n in (known[inner] for inner in term.terms) if n is not None]
    if len(missing) == 1:
        rest = size - sum(found) if isinstance(term, Sum) else size // max(prod(found), 1)
        _solve(missing[0], rest, sizes)


def _known(term: Term, sizes: Mapping[str, int]) -> int | None:
    if isinstance(term, Name):
        return sizes.get(term.name)
    if isinstance(term, Pinned):
        return term.size
    if isinstance(term, (Product, Sum)):
        inner = [_known(child, sizes) for child in term.terms]
        known = [n for n in inner if n is not None]
        if len(known) < len(inner):
            return None
        return prod(known) if isinstance(term, Product) else sum(known)
    return None


def _bare(term: Term) -> Term:
    """Drop sizes and pins from the names: the factors have them."""
    if isinstance(term, Name):
        return Name(term.name)
    if isinstance(term, (Product, Sum, Interleaving)):
        return type(term)(tuple(map(_bare, term.terms)))
    return term

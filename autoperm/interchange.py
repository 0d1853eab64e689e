"""Specifications as text and as plain dictionaries: JSON, and the ``axes_to_perm`` of the Git Re-Basin code.

JSON holds everything that decides what is permuted. ``axes_to_perm`` holds one name or None for each axis, which is
enough for chains and residual networks of whole layers; heads, groups and joined channels have no form in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .by_hand import assemble, check_axes, tensors_of
from .errors import SignatureError, SpecError
from .signature import Name, Pattern, Pinned, Term, format_pattern, names, parse_pattern
from .spec import Factor, PermutationSpec

_VERSION = 1


def to_json(spec: PermutationSpec, *, indent: int | None) -> str:
    """See :meth:`autoperm.PermutationSpec.to_json`."""
    return json.dumps(
        {
            "autoperm": _VERSION,
            "factors": [
                {"name": f.name, "size": f.size, "over": list(f.over), "pinned": f.pinned}
                for f in spec.factors.values()
            ],
            "tensors": {
                name: {"pattern": format_pattern(pattern), "shape": list(spec.shapes[name])}
                for name, pattern in spec.patterns.items()
            },
            "tied": dict(spec.tied),
        },
        indent=indent,
    )


def from_json(text: str) -> PermutationSpec:
    """See :meth:`autoperm.PermutationSpec.from_json`."""
    try:
        data = json.loads(text)
        if data["autoperm"] != _VERSION:
            raise SpecError(f"this is version {data['autoperm']} of the format; this autoperm reads {_VERSION}")
        return PermutationSpec(
            patterns={name: parse_pattern(tensor["pattern"]) for name, tensor in data["tensors"].items()},
            shapes={name: tuple(tensor["shape"]) for name, tensor in data["tensors"].items()},
            factors={f["name"]: Factor(f["name"], f["size"], tuple(f["over"]), f["pinned"]) for f in data["factors"]},
            tied=data["tied"],
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise SpecError(f"not a specification in JSON: {type(error).__name__}: {error}") from error


# --- axes_to_perm


def to_axes_to_perm(spec: PermutationSpec, *, lossy: bool) -> dict[str, tuple[str | None, ...]]:
    """See :meth:`autoperm.PermutationSpec.to_axes_to_perm`.

    What is left is a subgroup. A factor is written everywhere or nowhere; and the elements that move one factor alike
    for each position of what it varies over, and the others not at all, are elements of the whole group.
    """
    free = {factor.name for factor in spec.free}
    folded: set[str] = set()  # factors that stand beside others in an axis somewhere
    for tensor, pattern in spec.patterns.items():
        for axis, term in enumerate(pattern):
            inside = free & set(names(term)) if not isinstance(term, Name) else set[str]()
            if inside and not lossy:
                raise _no_form(spec, f"{tensor}, axis {axis}, is {term}: more than one name")
            folded |= inside
    for factor in spec.free:
        if spec.copies(factor) > 1 and not lossy:
            tensor, axis = spec.carriers[factor.name][0]
            raise _no_form(spec, f"{tensor}, axis {axis}, is permuted differently for each {', '.join(factor.over)}")
    kept = free - folded

    def written(term: Term) -> str | None:
        return term.name if isinstance(term, Name) and term.name in kept else None

    return {tensor: tuple(map(written, pattern)) for tensor, pattern in spec.patterns.items()}


def _no_form(spec: PermutationSpec, what: str) -> SpecError:
    return SpecError(
        f"{what}, which axes_to_perm cannot say. Keep the whole group of 10^{spec.log10_order:.1f} permutations with "
        "to_json(), or write the part that has such a form with to_axes_to_perm(lossy=True)"
    )


def from_axes_to_perm(
    axes_to_perm: Mapping[str, Sequence[str | None]], like: nn.Module | Mapping[str, Tensor]
) -> PermutationSpec:
    """See :meth:`autoperm.PermutationSpec.from_axes_to_perm`."""
    tensors = tensors_of(like)
    patterns = {tensor: _pattern(tensor, axes) for tensor, axes in axes_to_perm.items()}
    check_axes(patterns, tensors)
    places: dict[str, tuple[str, int]] = {}
    sizes: dict[str, int] = {}
    for tensor, pattern in patterns.items():
        for axis, (term, size) in enumerate(zip(pattern, tensors[tensor].shape, strict=True)):
            if isinstance(term, Name) and sizes.setdefault(term.name, size) != size:
                other, at = places[term.name]
                raise SpecError(
                    f"{term.name!r} stands on axes of different lengths: {other}, axis {at}, of shape "
                    f"{list(tensors[other].shape)}, and {tensor}, axis {axis}, of shape {list(tensors[tensor].shape)}. "
                    "PyTorch's weights are (out, in, ...); Flax has the outputs last"
                )
            if isinstance(term, Name):
                places.setdefault(term.name, (tensor, axis))
    return assemble(patterns, tensors, {name: Factor(name, size) for name, size in sizes.items()})


def _pattern(tensor: str, axes: object) -> Pattern:
    """One term an axis, after a check of what people may write by mistake."""
    if isinstance(axes, str) or not isinstance(axes, Sequence):
        example = f"({axes!r},)" if isinstance(axes, str) else '("P_0", None)'
        raise SpecError(f"{tensor}: {axes!r} is no tuple; write one name or None for each axis: {example}")
    return tuple(Pinned() if name is None else _name(tensor, name) for name in axes)


def _name(tensor: str, name: object) -> Name:
    if not isinstance(name, str):
        raise SpecError(f"{tensor}: {name!r} is neither a name nor None")
    try:
        understood = parse_pattern(name) == (Name(name),)
    except SignatureError:
        understood = False
    if not understood:
        raise SpecError(
            f"{tensor}: {name!r} cannot be the name of a factor; begin with a letter, and use letters, digits, "
            "'_', '-' and '.' between them"
        )
    return Name(name)

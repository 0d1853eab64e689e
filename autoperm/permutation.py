"""Group elements: one index array for each factor and each position of what it varies over.

``out[i, j] = in[h[i], d[i, j]]`` for an axis ``(h d)``: a factor takes unit ``h[i]`` to place ``i``, and what varies
over it is indexed by the place where it ends up. (So ``h`` is scipy's ``col_ind`` and numpy's ``take``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import overload

import torch
from torch import Tensor, nn

from .copies import copy_model
from .errors import SpecError
from .layout import unfold
from .signature import Interleaving, Name, Product, Sum, Term, names
from .spec import Factor, PermutationSpec


@dataclass(frozen=True, eq=False)
class Permutation:
    """An element of the group of a :class:`~autoperm.PermutationSpec`.

    Attributes:
        spec: the specification.
        indices: for each free factor an integer tensor of shape ``(*sizes of what it varies over, size)``, each row a
            permutation; a factor that is left out does not move.

    Example:
        >>> spec = PermutationSpec.from_patterns({"weight": "h _", "bias": "h"}, nn.Linear(2, 3))
        >>> p = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
        >>> p.apply({"weight": torch.eye(3, 2), "bias": torch.tensor([0.0, 1.0, 2.0])})["bias"]
        tensor([2., 0., 1.])
        >>> p.compose(p.inverse()) == spec.identity()
        True
    """

    spec: PermutationSpec
    indices: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        """Check the index arrays.

        Raises:
            SpecError: for an unknown or pinned factor, a wrong shape, or a row that is no permutation.
        """
        checked = {}
        for name, index in self.indices.items():
            factor = self.spec.factors.get(name)
            if factor is None or factor.pinned:
                raise SpecError(f"{name!r} is {'pinned' if factor else 'no factor'} in the specification")
            shape = self._shape(factor)
            index = torch.as_tensor(index, dtype=torch.int64).detach().cpu()
            if tuple(index.shape) != shape:
                raise SpecError(f"the indices of {name!r} have shape {list(index.shape)}, expected {list(shape)}")
            ordered = torch.arange(factor.size).expand(shape)
            if not torch.equal(index.sort(-1).values, ordered):
                raise SpecError(f"the indices of {name!r} are not a permutation of 0..{factor.size - 1}")
            if not torch.equal(index, ordered):
                checked[name] = index
        object.__setattr__(self, "indices", checked)

    def _shape(self, factor: Factor) -> tuple[int, ...]:
        return (*(self.spec.factors[name].size for name in factor.over), factor.size)

    def __getitem__(self, name: str) -> Tensor:
        """Return the index array of a factor, the identity's where it does not move."""
        if name in self.indices:
            return self.indices[name]
        factor = self.spec.factors[name]
        return torch.arange(factor.size).expand(self._shape(factor))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        same = self.indices.keys() == other.indices.keys() and self.spec.factors == other.spec.factors
        return same and all(torch.equal(index, other.indices[name]) for name, index in self.indices.items())

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.indices)))

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return not self.indices

    # --- the group

    def compose(self, other: Permutation) -> Permutation:
        """Return the permutation that does ``other`` first, then this one.

        ``p.compose(q).apply(state)`` equals ``p.apply(q.apply(state))``.

        Raises:
            SpecError: if the two belong to different specifications.
        """
        if self.spec.factors != other.spec.factors:
            raise SpecError("permutations of different specifications cannot be composed")
        indices = {}
        for name in self.indices.keys() | other.indices.keys():
            indices[name] = other._at(name, self).gather(-1, self[name])
        return Permutation(self.spec, indices)

    def _at(self, name: str, outer: Permutation) -> Tensor:
        """The index array of a factor, read at the places from which ``outer`` takes what the factor varies over."""
        index = self[name]
        return index[tuple(outer._sources(name))] if self.spec.factors[name].over else index

    def _sources(self, name: str) -> list[Tensor]:
        """For each place of what a factor varies over, the place it is taken from: one array an index."""
        over = self.spec.factors[name].over
        sizes = [self.spec.factors[axis].size for axis in over]
        grids = torch.meshgrid([torch.arange(n) for n in sizes], indexing="ij")
        places = dict(zip(over, grids, strict=True))
        sources = []
        for axis in over:
            where = tuple(places[outer] for outer in self.spec.factors[axis].over)
            index = self[axis] if not self.spec.factors[axis].pinned else torch.arange(self.spec.factors[axis].size)
            sources.append(index[(*where, places[axis])])
        return sources

    def inverse(self) -> Permutation:
        """Return the permutation that undoes this one."""
        indices = {}
        for name in self.indices:
            index = self[name].argsort(-1)
            if self.spec.factors[name].over:
                back = torch.empty_like(index)
                back[tuple(self._sources(name))] = index
                index = back
            indices[name] = index
        return Permutation(self.spec, indices)

    # --- acting

    @overload
    def apply(self, target: nn.Module) -> nn.Module: ...

    @overload
    def apply(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def apply(self, target: nn.Module | Mapping[str, Tensor]) -> nn.Module | dict[str, Tensor]:
        """Permute a model, or a state dict, or anything with the same names and shapes (gradients, masks, moments).

        Args:
            target: a module (a new one comes back, the rest of it deep-copied), or tensors by name. Tensors that the
                specification does not know (integer buffers) are passed on as they are.

        Returns:
            A new module or dictionary. For tensors that require gradients the result is differentiable in them. Names
            that shared one tensor still do.

        Raises:
            SpecError: if tensors are missing or have other shapes.
        """
        if isinstance(target, nn.Module):
            state = target.state_dict()
            with torch.no_grad():
                moved = self.apply(state)
            model = copy_model(target)
            model.load_state_dict(moved)
            return model
        self.spec.check(target)
        done: dict[int, Tensor] = {}
        cache: dict[object, Tensor | None] = {}
        result = {}
        for name, tensor in target.items():
            if name not in self.spec.patterns:
                result[name] = tensor
                continue
            key = id(tensor) if tensor.is_meta else tensor.data_ptr() or id(tensor)
            if name in self.spec.tied and key in done:
                result[name] = done[key]
            else:
                done[key] = result[name] = self._act(tensor, self.spec.patterns[name], cache)
        return result

    def _act(self, tensor: Tensor, pattern: Sequence[Term], cache: dict[object, Tensor | None]) -> Tensor:
        for axes in _linked(self.spec, pattern):
            terms = tuple(pattern[axis] for axis in axes)
            sizes = tuple(tensor.shape[axis] for axis in axes)
            key = (terms, sizes, tensor.device)
            if key not in cache:
                index = self._flat_index(terms, sizes)
                cache[key] = None if index is None else index.to(tensor.device)
            index = cache[key]
            if index is None:
                continue
            if len(axes) == 1:
                tensor = tensor.index_select(axes[0], index)
            else:
                front = tensor.movedim(axes, list(range(len(axes))))
                flat = front.reshape(prod(sizes), -1).index_select(0, index)
                tensor = flat.reshape(front.shape).movedim(list(range(len(axes))), axes)
        return tensor

    def _flat_index(self, terms: tuple[Term, ...], sizes: tuple[int, ...]) -> Tensor | None:
        """Where each place of the row-major product of some axes takes its unit from; None if nothing moves."""
        if not any(name in self.indices for term in terms for name in names(term)):
            return None
        places = torch.arange(prod(sizes)).reshape(sizes)
        return self._move(places, [(axis, term) for axis, term in enumerate(terms)]).reshape(-1)

    def _move(self, places: Tensor, terms: list[tuple[int, Term]]) -> Tensor:
        """Rearrange to the factors, gather, and back; sums by parts. One term, with its axis, for each dimension."""
        for dim, (axis, term) in enumerate(terms):
            if isinstance(term, Product):
                inner = [(axis, child) for child in term.terms]
                unfolded = unfold(places, dim, [self._length(child) for child in term.terms])
                moved = self._move(unfolded, [*terms[:dim], *inner, *terms[dim + 1 :]])
                return moved.flatten(dim, dim + len(inner) - 1)
            if isinstance(term, Sum):
                parts = torch.split(places, [self._length(child) for child in term.terms], dim)
                moved_parts = [
                    self._move(part, [*terms[:dim], (axis, child), *terms[dim + 1 :]])
                    for part, child in zip(parts, term.terms, strict=True)
                ]
                return torch.cat(moved_parts, dim)
            if isinstance(term, Interleaving):
                widths = [self._length(rest) for _, rest in term.turns]
                rows = unfold(places, dim, (self._length(term.turns[0][0]), sum(widths)))
                turns = zip(torch.split(rows, widths, dim + 1), term.turns, strict=True)
                moved_turns = [
                    self._move(turn, [*terms[:dim], (axis, lead), (axis, rest), *terms[dim + 1 :]])
                    for turn, (lead, rest) in turns
                ]
                return torch.cat(moved_turns, dim + 1).flatten(dim, dim + 1)
        here = [(dim, axis, term.name) for dim, (axis, term) in enumerate(terms) if isinstance(term, Name)]
        for dim, axis, name in sorted(here, key=lambda item: len(self.spec.factors[item[2]].over)):
            if name in self.indices:
                places = self._gather(places, dim, axis, name, here)
        return places

    def _gather(self, places: Tensor, dim: int, axis: int, name: str, here: list[tuple[int, int, str]]) -> Tensor:
        over = []
        for outer in self.spec.factors[name].over:
            found = [d for d, a, n in here if n == outer]
            near = [d for d, a, n in here if n == outer and a == axis]
            if len(near) != 1 and len(found) != 1:
                raise SpecError(f"{name!r} varies over {outer!r}, which a pattern has not once beside it")
            over.append(near[0] if len(near) == 1 else found[0])
        front = places.movedim([*over, dim], list(range(len(over) + 1)))
        index = self[name].reshape(*self._shape(self.spec.factors[name]), *[1] * (front.ndim - len(over) - 1))
        moved = front.gather(len(over), index.expand(front.shape))
        return moved.movedim(list(range(len(over) + 1)), [*over, dim])

    def _length(self, term: Term) -> int:
        size = self.spec.size(term)
        if size is None:
            raise SpecError(f"inside a product or sum, {term} needs its length")
        return size


def _linked(spec: PermutationSpec, pattern: Sequence[Term]) -> list[list[int]]:
    """Group axes that must be permuted together, because a factor on one varies over a factor on another."""
    groups: list[list[int]] = []
    for axis, term in enumerate(pattern):
        own = list(names(term))
        away = {outer for name in own for outer in spec.factors[name].over if own.count(outer) != 1}
        linked = [other for other in range(len(pattern)) if other != axis and away & set(names(pattern[other]))]
        joined = [group for group in groups if set(group) & {axis, *linked}]
        groups = [group for group in groups if group not in joined]
        groups.append(sorted({axis, *linked, *(a for group in joined for a in group)}))
    return groups

"""Apply a signature to the terms of operands: equal names are unified, ``_`` is pinned, results are read off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..axes import meet
from ..errors import SignatureError
from ..joining import broadcast
from ..signature import Name, Pattern, Pinned, Product, Rest, Signature, Sum, implied_intermediate, names
from ..signature import Term as Notation
from ..terms import FACTOR, Pin, Term, factor, find, has_family, pin, product, total
from .context import Axes

PinReason = Callable[[], Pin]


class Binding:
    """The names of one call, and what they stand for."""

    def __init__(self, signature: Signature, reason: PinReason) -> None:
        self.signature = signature
        self.reason = reason
        self.sizes: dict[str, int] = {}
        self.terms: dict[str, Term] = {}
        self.rest: Axes = []
        self.pinned: Axes = []
        self.given: Sequence[Axes] = []

    def operands(self, operands: Sequence[Axes]) -> None:
        """Unify the operands' axes with the patterns.

        Raises:
            SignatureError: if the number of operands or axes, or a size, does not fit.
        """
        patterns = self.signature.operands
        if len(patterns) != len(operands):
            raise SignatureError(f"the signature has {len(patterns)} operands, the call has {len(operands)}")
        self.given = operands
        pairs: list[tuple[Notation, Term]] = []
        rests: list[Axes] = []
        for index, (pattern, axes) in enumerate(zip(patterns, operands, strict=True)):
            fixed = len(pattern) - (Rest() in pattern)
            if len(axes) < fixed or (len(axes) > fixed and Rest() not in pattern):
                raise SignatureError(f"operand {index} has {len(axes)} axes, its pattern has {fixed}")
            place = pattern.index(Rest()) if Rest() in pattern else len(pattern)
            end = len(axes) - (fixed - place)
            if Rest() in pattern:
                rests.append(list(axes[place:end]))
            pairs += zip(pattern[:place], axes[:place], strict=True)
            pairs += zip(pattern[place + 1 :], axes[end:], strict=True)
        if any(rests):
            self.rest = broadcast(rests)
        self._solve_sizes(pairs)
        for families in (False, True):  # families are compared by part, once their axes are known to be one
            for notation, axis in pairs:
                if has_family(axis) == families:
                    self._unify(notation, axis)

    def _solve_sizes(self, pairs: Sequence[tuple[Notation, Term]]) -> None:
        for notation, axis in pairs:
            self._declare(notation)
            if isinstance(notation, Name) and self.sizes.get(notation.name, 1) == 1:
                self.sizes[notation.name] = axis.size
        pending = [(notation, axis) for notation, axis in pairs if isinstance(notation, (Product, Sum))]
        for _ in range(len(pending) + 1):
            for notation, axis in pending:
                self._solve(notation, axis.size)

    def _declare(self, notation: Notation) -> None:
        if isinstance(notation, Name) and notation.size is not None:
            self.sizes[notation.name] = notation.size
        elif isinstance(notation, (Product, Sum)):
            for term in notation.terms:
                self._declare(term)

    def _solve(self, notation: Notation, size: int) -> None:
        """Find the one size that is missing inside a product or sum of known size."""
        if isinstance(notation, Name):
            self.sizes.setdefault(notation.name, size)
        if not isinstance(notation, (Product, Sum)):
            return
        missing = [term for term in notation.terms if self._size(term) is None]
        known = [self._size(term) or 0 for term in notation.terms if self._size(term) is not None]
        if not missing or len(set(missing)) > 1:
            return
        if isinstance(notation, Sum):
            left, remainder = divmod(size - sum(known), len(missing))
        else:
            done = 1
            for n in known:
                done *= n
            left, remainder = divmod(size, done) if done else (0, 1)
        if remainder or left < 0 or (isinstance(notation, Product) and len(missing) > 1):
            raise SignatureError(f"an axis of length {size} cannot be {notation} with {self._sizes_text(notation)}")
        self._solve(missing[0], left)

    def _size(self, notation: Notation) -> int | None:
        if isinstance(notation, Name):
            return self.sizes.get(notation.name)
        if isinstance(notation, Pinned):
            return notation.size
        if isinstance(notation, (Product, Sum)):
            sizes = [self._size(term) for term in notation.terms]
            if any(size is None for size in sizes):
                return None
            result = 0 if isinstance(notation, Sum) else 1
            for size in sizes:
                result = result + (size or 0) if isinstance(notation, Sum) else result * (size or 0)
            return result
        return None

    def _sizes_text(self, notation: Notation) -> str:
        return ", ".join(f"{name}={self.sizes[name]}" for name in dict.fromkeys(names(notation)) if name in self.sizes)

    def _unify(self, notation: Notation, axis: Term) -> None:
        if isinstance(notation, Pinned):
            if notation.size not in (None, axis.size):
                raise SignatureError(f"an axis of length {axis.size} where the signature has {notation}")
            pin(axis, self.reason())
            self.pinned.append(axis)
        elif isinstance(notation, Name):
            known = self.terms.get(notation.name)
            if known is None or (known.size == 1 and axis.size != 1):
                self.terms[notation.name] = axis
            elif axis.size == known.size:
                self.terms[notation.name] = meet(known, axis)
            elif axis.size != 1:
                raise SignatureError(f"{notation.name!r} is {known.size} on one axis and {axis.size} on another")
            if notation.pinned:
                pin(self.terms[notation.name], self.reason())
        elif axis.size > 1:
            meet(self._term(notation, axis.size), axis)

    def _term(self, notation: Notation, size: int | None = None) -> Term:
        """Return what stands for a piece of notation, made new if nothing does yet."""
        if isinstance(notation, Name):
            if notation.name not in self.terms:
                known = self.sizes.get(notation.name)
                if known is None:
                    raise SignatureError(f"the size of {notation.name!r} cannot be told; write it: {notation.name}=4")
                self.terms[notation.name] = factor(known)
            term = self.terms[notation.name]
            if notation.pinned:
                pin(term, self.reason())
            return find(term)
        if isinstance(notation, Pinned):
            term = factor(size if notation.size is None and size is not None else notation.size or 1, self.reason())
            self.pinned.append(term)
            return term
        if isinstance(notation, Product):
            return product([self._term(term) for term in notation.terms])
        if isinstance(notation, Sum):
            return total([self._term(term) for term in notation.terms])
        raise SignatureError(f"{notation} has no meaning in the signature of an operation")

    def read(self, pattern: Pattern, shape: tuple[int, ...] | None) -> Axes:
        """Return the axes that a pattern of a result or intermediate stands for.

        Raises:
            SignatureError: if they do not have the shape.
        """
        place = pattern.index(Rest()) if Rest() in pattern else len(pattern)
        tail = len(pattern) - place - 1 if Rest() in pattern else 0
        sizes: list[int | None] = [None] * (len(pattern) - (Rest() in pattern) + len(self.rest) * (Rest() in pattern))
        if shape is not None:
            if len(sizes) != len(shape):
                raise SignatureError(f"the signature gives a result of {len(sizes)} axes, the call one of {len(shape)}")
            sizes = list(shape)
        head = [self._term(term, size) for term, size in zip(pattern[:place], sizes[:place], strict=True)]
        rest = self.rest if Rest() in pattern else []
        end = [
            self._term(term, size)
            for term, size in zip(pattern[place + 1 :], sizes[len(sizes) - tail :] if tail else [], strict=True)
        ]
        axes = head + rest + end
        if shape is not None and any(axis.size != size for axis, size in zip(axes, shape, strict=True)):
            sizes = [axis.size for axis in axes]
            raise SignatureError(f"the signature gives a result {sizes}, the call one of {list(shape)}")
        return axes

    def intermediates(self) -> list[Axes]:
        """Return the tensors inside the operation, written or implied."""
        found = [self.read(pattern, None) for pattern in self.signature.intermediates]
        # What is reduced may stand in no other tensor that is computed; an operand as it is says that it is used.
        left = {name for pattern in self.signature.results for name in names(pattern)}
        for pattern, axes in zip(self.signature.operands, self.given, strict=True):
            if not left.issuperset(names(pattern)):
                found.append(list(axes))
        implied = implied_intermediate(self.signature)
        if implied is not None:
            # A name that stands only inside a product which met an axis of length 1 has no term and no say.
            known = tuple(term for term in implied if not isinstance(term, Name) or term.name in self.terms)
            found.append(self.read(known, None))
            # Elsewhere a pinned axis may turn out to be one of the names (the rows of a table, and what is looked up
            # in it). Its positions are not that name's in here: next to each other, neither can be told.
            if self.pinned:
                found.append(found[-1] + self.pinned)
        return found


def fresh(shape: Sequence[int], reason: Pin | None) -> Axes:
    """Make new axes, pinned if a reason is given."""
    return [Term(FACTOR, size, pin=reason) for size in shape]

"""The notation for axes: how an operation, or a parameter, treats its axes. No torch here.

One string says it all, in the spirit of einops::

    linear        "... i, o i, o -> ... o"
    grouped conv  "b (g i) _ _, (g o) i _ _, (g o) -> b (g o) _ _"
    softmax       "... c -> ... -> ... c"

==========  =========================================================================================
``name``    a factor: a set of units that may be permuted; equal names are the same factor
``name=4``  the same, with its size (where it cannot be told from the other axes)
``name!``   a factor that is pinned, named because others vary over it
``_``       pinned: the order matters to the operation
``4``       pinned, with its length
``...``     any further axes, right-aligned and broadcast against each other
``(a b)``   a product: one axis made of two, row-major
``(a + b)`` a sum: one axis made of two consecutive parts
``(a | b)`` an interleaving: units of two factors of one size in turns; see :class:`Interleaving`
==========  =========================================================================================

A space separates axes and a comma separates tensors. ``->`` leads to the results. Between operands and results
there may be *intermediates*: tensors that exist only inside the operation. A softmax computes a maximum and a
sum in which the axis ``c`` is gone; that is what forbids the other axes' permutations to vary along ``c``
(see :mod:`autoperm.axes`). Two kinds are understood without being written: a contraction (a name of the
operands that no result has) multiplies everything with everything before it sums, and an operation that reads
positions along ``_`` may relate any two of them, so nothing may vary along it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .errors import SignatureError

_TOKEN = re.compile(r"\.\.\.|->|[A-Za-z](?:[A-Za-z0-9_]|[.\-](?=[A-Za-z0-9_]))*|\d+|[_()+|,=!]|\s+")


@dataclass(frozen=True, slots=True)
class Name:
    """A factor, optionally with its size, optionally pinned."""

    name: str
    size: int | None = None
    pinned: bool = False

    def __str__(self) -> str:
        return self.name + ("" if self.size is None else f"={self.size}") + ("!" if self.pinned else "")


@dataclass(frozen=True, slots=True)
class Pinned:
    """An axis whose order matters: ``_``, or a number if the length is given."""

    size: int | None = None

    def __str__(self) -> str:
        return "_" if self.size is None else str(self.size)


@dataclass(frozen=True, slots=True)
class Rest:
    """Any further axes: ``...``."""

    def __str__(self) -> str:
        return "..."


@dataclass(frozen=True, slots=True)
class Product:
    """One axis made of several, row-major: ``(h d)``."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "(" + " ".join(map(str, self.terms)) + ")"


@dataclass(frozen=True, slots=True)
class Sum:
    """One axis made of consecutive parts: ``(q + k + v)``."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.terms)) + ")"


@dataclass(frozen=True, slots=True)
class Interleaving:
    """One axis in which parts take turns: ``(a | b)``, ``((h d) | (h e))``.

    The first factor of each part counts the turns, and is equally long in all; the rest is what comes in each turn.
    ``(h 3 d)`` with other ``h`` and ``d`` for each of the three is ``((h d) | (i e) | (j f))``.
    """

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "(" + " | ".join(map(str, self.terms)) + ")"

    @property
    def turns(self) -> tuple[tuple[Term, Term], ...]:
        """For each part the factor that counts the turns, and what comes in each."""
        found: list[tuple[Term, Term]] = []
        for term in self.terms:
            lead, *rest = term.terms if isinstance(term, Product) else [term]
            found.append((lead, Product(tuple(rest)) if len(rest) > 1 else rest[0] if rest else Pinned(1)))
        return tuple(found)


Term = Name | Pinned | Rest | Product | Sum | Interleaving
"""What stands for one axis (``...``: for several)."""

Pattern = tuple[Term, ...]
"""One term for each axis of a tensor."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed signature: patterns of operands, of tensors inside the operation, and of results."""

    operands: tuple[Pattern, ...]
    intermediates: tuple[Pattern, ...]
    results: tuple[Pattern, ...]

    def __str__(self) -> str:
        sides = [self.operands, *([self.intermediates] if self.intermediates else []), self.results]
        return " -> ".join(", ".join(map(format_pattern, side)) for side in sides)


def names(pattern: Pattern | Term) -> Iterator[str]:
    """Yield the names in a pattern from left to right, repeated as often as they stand there.

    Example:
        >>> list(names(parse_pattern("(h d) c ... h")))
        ['h', 'd', 'c', 'h']
    """
    if isinstance(pattern, Name):
        yield pattern.name
    elif isinstance(pattern, (tuple, Product, Sum, Interleaving)):
        for term in pattern if isinstance(pattern, tuple) else pattern.terms:
            yield from names(term)


def format_pattern(pattern: Pattern) -> str:
    """Write a pattern in the notation.

    Example:
        >>> format_pattern((Product((Name("h"), Name("d"))), Pinned()))
        '(h d) _'
    """
    return " ".join(map(str, pattern))


def _has_pin(pattern: Pattern | Term) -> bool:
    if isinstance(pattern, Pinned):
        return pattern.size != 1
    if isinstance(pattern, (tuple, Product, Sum, Interleaving)):
        return any(map(_has_pin, pattern if isinstance(pattern, tuple) else pattern.terms))
    return False


def implied_intermediate(signature: Signature) -> Pattern | None:
    """The tensor inside an operation that its signature implies without writing it.

    It has every name once, and no pinned axis, if the operation contracts a name away or reads positions.

    Example:
        >>> format_pattern(implied_intermediate(parse("... i, o i, o -> ... o")))
        '... i o'
    """
    inner = {name for pattern in signature.operands for name in names(pattern)}
    outer = {name for pattern in signature.results for name in names(pattern)}
    tensors = signature.operands + signature.results
    contracts = len(signature.operands) > 1 and not inner <= outer
    if not contracts and not any(map(_has_pin, tensors)):
        return None
    unique = dict.fromkeys(name for pattern in tensors for name in names(pattern))
    rest = (Rest(),) if any(Rest() in pattern for pattern in tensors) else ()
    return (*rest, *(Name(name) for name in unique))


class _Parser:
    """Recursive descent over the tokens of one signature; errors carry a caret."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, int]] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"{text[position]!r} is not part of the notation", position)
            if not match.group().isspace():
                self.tokens.append((match.group(), position))
            position = match.end()
        self.tokens.append(("", len(text)))
        self.index = 0

    def error(self, what: str, position: int | None = None) -> SignatureError:
        position = self.tokens[self.index][1] if position is None else position
        return SignatureError(f'{what}\n  "{self.text}"\n   {" " * position}^')

    @property
    def token(self) -> str:
        return self.tokens[self.index][0]

    def take(self, token: str) -> bool:
        if self.token == token and token:
            self.index += 1
            return True
        return False

    def pattern(self) -> Pattern:
        terms: list[Term] = []
        while self.token not in ("", ",", "->"):
            if self.token == "..." and Rest() in terms:
                raise self.error("'...' may stand only once in a tensor")
            terms.append(self.term(inside=False))
        return tuple(terms)

    def patterns(self) -> tuple[Pattern, ...]:
        found = [self.pattern()]
        while self.take(","):
            found.append(self.pattern())
        return tuple(found)

    def term(self, *, inside: bool) -> Term:
        token = self.token
        if token == "(":
            return self.group()
        if token == "..." and inside:
            raise self.error("'...' must not stand inside parentheses")
        if token in ("", ")", "+", "|", ",", "->", "=", "!"):
            raise self.error(f"expected an axis, found {token!r}" if token else "expected an axis")
        self.index += 1
        if token == "...":
            return Rest()
        if token == "_":
            return Pinned()
        if token.isdigit():
            return Pinned(int(token))
        size = None
        if self.take("="):
            if not self.token.isdigit():
                raise self.error(f"expected the size of {token!r}, a number")
            size = int(self.token)
            self.index += 1
        return Name(token, size, self.take("!"))

    def group(self) -> Term:
        opening = self.tokens[self.index][1]
        self.index += 1
        terms: list[Term] = []
        joint: str | None = None  # what stands between the terms: "+", "|", or "" for a product
        while not self.take(")"):
            if self.token == "":
                raise self.error("this parenthesis is never closed", opening)
            found = ""
            if self.token in ("+", "|"):
                found = self.token
                if not terms:
                    raise self.error(f"expected an axis before {found!r}")
                if joint == "":
                    raise self.error(f"put parentheses around the product: '(a b) {found} c'")
                if joint not in (None, found):
                    raise self.error(f"put parentheses around one of them: '(a {joint} b) {found} c'")
                self.index += 1
            elif terms and joint:
                raise self.error(f"put parentheses around the product: 'a {joint} (b c)'")
            if terms:
                joint = found
            terms.append(self.term(inside=True))
        if not terms:
            raise self.error("these parentheses are empty", opening)
        if len(terms) == 1:
            return terms[0]
        if joint == "|":
            return Interleaving(tuple(terms))
        return Sum(tuple(terms)) if joint == "+" else Product(tuple(terms))


@lru_cache(maxsize=4096)
def parse(text: str) -> Signature:
    """Parse the signature of an operation.

    Args:
        text: operands, ``->``, optionally intermediates and a further ``->``, results.

    Returns:
        The parsed signature; ``parse(str(signature)) == signature``.

    Raises:
        SignatureError: with a caret under the fault.

    Example:
        >>> parse("... i, o i, o -> ... o").results
        ((Rest(), Name(name='o', size=None, pinned=False)),)
    """
    parser = _Parser(text)
    sides = [parser.patterns()]
    arrow = 0
    while parser.take("->"):
        arrow = parser.tokens[parser.index - 1][1]
        sides.append(parser.patterns())
    if parser.token:
        raise parser.error(f"unexpected {parser.token!r}")
    if len(sides) == 1:
        raise parser.error("a signature needs '->' between operands and results")
    if len(sides) > 3:
        raise parser.error("at most two '->': operands -> intermediates -> results", arrow)
    signature = Signature(sides[0], sides[1] if len(sides) == 3 else (), sides[-1])
    known = {name for pattern in signature.operands for name in names(pattern)}
    for pattern in signature.intermediates + signature.results:
        for name in names(pattern):
            if name not in known:
                position = max(
                    m.start() for m in re.finditer(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", text)
                )
                raise parser.error(f"{name!r} stands in no operand; a result axis of its own is '_'", position)
    return signature


@lru_cache(maxsize=65536)
def parse_pattern(text: str) -> Pattern:
    """Parse the pattern of one tensor, as in a :class:`~autoperm.PermutationSpec`.

    Raises:
        SignatureError: with a caret under the fault.

    Example:
        >>> format_pattern(parse_pattern("((h d) + (h e)) c"))
        '((h d) + (h e)) c'
    """
    parser = _Parser(text)
    pattern = parser.pattern()
    if parser.token:
        raise parser.error(f"unexpected {parser.token!r} in the pattern of one tensor")
    return pattern

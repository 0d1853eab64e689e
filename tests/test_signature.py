"""The notation: what is written is read back, and faults are shown where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoperm.errors import AutopermError, SignatureError
from autoperm.signature import (
    Interleaving,
    Name,
    Pinned,
    Product,
    Rest,
    Signature,
    Sum,
    format_pattern,
    implied_intermediate,
    names,
    parse,
    parse_pattern,
)

NAMES = ["a", "b", "c", "h1", "layer1.0.conv-2_x", "P0"]


def terms(known: list[str]) -> st.SearchStrategy[Any]:
    """Terms that stand inside an axis, with names among those known."""
    pinned = st.builds(Pinned, st.none() | st.integers(0, 99))
    named = st.builds(Name, st.sampled_from(known), st.none() | st.integers(0, 99), st.booleans()) if known else pinned

    def inside(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return several.map(Product) | several.map(Sum) | several.map(Interleaving)

    return st.recursive(pinned | named, inside, max_leaves=6)


@st.composite
def patterns(draw: Callable[..., Any], known: list[str]) -> tuple[Any, ...]:
    axes = draw(st.lists(terms(known), max_size=3))
    if draw(st.booleans()):
        axes.insert(draw(st.integers(0, len(axes))), Rest())
    return tuple(axes)


@st.composite
def signatures(draw: Callable[..., Any]) -> Signature:
    operands = draw(st.lists(patterns(NAMES), min_size=1, max_size=3))
    known = sorted({name for pattern in operands for name in names(pattern)})
    intermediates = draw(st.lists(patterns(known), max_size=2))
    results = draw(st.lists(patterns(known), min_size=1, max_size=2))
    return Signature(tuple(operands), tuple(intermediates), tuple(results))


@settings(deadline=None)
@given(signatures())
def test_what_is_written_is_read_back(signature: Signature) -> None:
    assert parse(str(signature)) == signature


@settings(deadline=None)
@given(patterns(NAMES))
def test_patterns_are_read_back(pattern: tuple[Any, ...]) -> None:
    assert parse_pattern(format_pattern(pattern)) == pattern


@settings(deadline=None)
@given(st.lists(st.sampled_from([*"ab_4()+|,=!? ", "...", "->"]), max_size=20).map("".join))
def test_any_text_is_read_or_refused_with_a_caret(text: str) -> None:
    try:
        signature = parse(text)
    except SignatureError as error:
        what, shown, caret = str(error).split("\n")
        assert what
        assert shown == f'  "{text}"'
        assert 0 <= caret.index("^") - 3 <= len(text)
    else:
        assert parse(str(signature)) == signature


def test_space_is_free() -> None:
    assert parse("  b   (g i) ,(g o)i  ->b(g o)  ") == parse("b (g i), (g o) i -> b (g o)")


def test_everything_in_one_signature() -> None:
    signature = parse("... (h=4 (a + b)) s! _, 3 -> ... h -> ... (2 + h)")
    h, a, b = Name("h"), Name("a"), Name("b")
    assert signature.operands == (
        (Rest(), Product((Name("h", 4), Sum((a, b)))), Name("s", pinned=True), Pinned()),
        (Pinned(3),),
    )
    assert signature.intermediates == ((Rest(), h),)
    assert signature.results == ((Rest(), Sum((Pinned(2), h))),)


def test_parentheses_around_one_axis_are_nothing() -> None:
    assert parse_pattern("(a) ((b))") == (Name("a"), Name("b"))


def test_sums_and_products_keep_their_order() -> None:
    assert parse_pattern("(q + k + v)") == (Sum((Name("q"), Name("k"), Name("v"))),)
    assert parse_pattern("(a b c)") == (Product((Name("a"), Name("b"), Name("c"))),)
    assert parse_pattern("((h d) + (h e))") == (
        Sum((Product((Name("h"), Name("d"))), Product((Name("h"), Name("e"))))),
    )
    assert parse_pattern("((h d) | e)") == (Interleaving((Product((Name("h"), Name("d"))), Name("e"))),)
    assert parse_pattern("((a + b) c)") == (Product((Sum((Name("a"), Name("b"))), Name("c"))),)


def test_a_tensor_without_axes() -> None:
    assert parse("k, k -> ") == Signature(((Name("k"),), (Name("k"),)), (), ((),))
    assert parse("a ->  -> a").intermediates == ((),)
    assert parse("a, , b -> ").operands[1] == ()


def test_sizes_and_pins_are_of_the_name() -> None:
    assert parse_pattern("a=12! b! c=3") == (Name("a", 12, True), Name("b", None, True), Name("c", 3))
    assert list(names(parse_pattern("(a=2 (b! + a)) _ 4 ...  c"))) == ["a", "b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        ("a ? -> a", "'?' is not part of the notation", "?"),
        ("a b", "needs '->'", ""),
        ("a -> a -> a -> a", "at most two '->'", "-> a"),
        ("a bb -> a bbb", "'bbb' stands in no operand", "bbb"),
        ("a -> a -> b", "'b' stands in no operand", "b"),
        ("a (b c -> a", "expected an axis, found '->'", "-> a"),
        ("a -> a (b", "this parenthesis is never closed", "(b"),
        ("a () -> a", "these parentheses are empty", "()"),
        ("a (b + ) -> a", "expected an axis, found ')'", ") -> a"),
        ("a (+ b) -> a", "expected an axis before '+'", "+ b"),
        ("(a b + c) -> a", "put parentheses around the product", "+ c"),
        ("(a + b c) -> a", "put parentheses around the product", "c) -> a"),
        ("(a | b + c) -> a", "put parentheses around one of them", "+ c"),
        ("(a b | c) -> a", "put parentheses around the product", "| c"),
        ("(a ...) -> a", "'...' must not stand inside parentheses", "...)"),
        ("... a ... -> a", "'...' may stand only once", "... -> a"),
        ("a= -> a", "expected the size of 'a', a number", "-> a"),
        ("a=b -> a", "expected the size of 'a', a number", "b -> a"),
        ("a) -> a", "expected an axis, found ')'", ") -> a"),
        ("a + b -> a", "expected an axis, found '+'", "+ b"),
        ("= a -> a", "expected an axis, found '='", "= a"),
        ("a! ! -> a", "expected an axis, found '!'", "! -> a"),
    ],
)
def test_faults_have_a_caret(text: str, message: str, at: str) -> None:
    with pytest.raises(SignatureError) as error:
        parse(text)
    what, shown, caret = str(error.value).split("\n")
    assert message in what
    assert shown[3:-1] == text
    assert caret.index("^") - 3 == (text.rindex(at) if at else len(text))
    assert isinstance(error.value, AutopermError)


@pytest.mark.parametrize(("text", "at"), [("a, b", 1), ("a -> b", 2), ("a )", 2)])
def test_a_pattern_is_one_tensor(text: str, at: int) -> None:
    with pytest.raises(SignatureError) as error:
        parse_pattern(text)
    assert str(error.value).split("\n")[2].index("^") - 3 == at


@pytest.mark.parametrize(
    ("text", "implied"),
    [
        ("... i, o i, o -> ... o", "... i o"),  # a name is summed over
        ("b k, b k -> ", "b k"),
        ("b _ c -> b _ c", "b c"),  # positions are read
        ("b (4 h) -> b h", "b h"),
        ("... _ -> ... _", "..."),
        ("a b -> a", None),  # one operand: nothing is multiplied
        ("b c, c -> b c", None),
        ("a 1 -> 1 a", None),
        ("s! t! -> s! t!", None),
    ],
)
def test_implied_intermediates(text: str, implied: str | None) -> None:
    found = implied_intermediate(parse(text))
    assert (None if found is None else format_pattern(found)) == implied

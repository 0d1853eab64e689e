"""Tables in Markdown, and a page with places for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float | None, form: str) -> str:
    """Write a number, or nothing."""
    return "" if value is None else format(value, form)


def fill(page: Path, name: str, text: str) -> None:
    """Replace what a page has between the comments ``<!-- name -->`` and ``<!-- end of name -->``."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        raise SystemExit(f"{page} has no comments '<!-- {name} -->' and '<!-- end of {name} -->' on lines of their own")
    page.write_text(f"{before}<!-- {name} -->\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")

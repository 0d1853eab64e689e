"""The pictures of the docs are there, and those of the tutorials are made by the pages' own code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"!\[([^\]]*)\]\(([^)]+\.png)\)")


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_a_picture_that_is_shown_is_there_and_described(page: Path) -> None:
    for description, picture in SHOWN.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / picture).is_file(), f"{picture}: python benchmarks/pictures.py {page.stem}"
        assert len(description) > 20, f"{picture}: say what is to be seen, for those who cannot see it"


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_makes_its_pictures(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = "\n".join(PYTHON.findall(text))
    for _, picture in SHOWN.findall(text):
        assert f'"{Path(picture).name}"' in code, f"nothing on the page saves {picture}"

"""Make the pictures of the tutorials: run the Python of each page, and keep those of its files that the page shows.

Run ``python benchmarks/pictures.py``, or with names of pages for these alone. It needs ``autoperm[demo]``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import tempfile
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"\]\(\.\./images/([\w-]+\.png)\)")
DPI, WIDTH = 150, 7.05
"""Dots an inch; inches of every picture, so that letters have one size in all of them."""


def draw(page: Path) -> None:
    """Run a page in an empty folder, and copy what it shows to the docs."""
    text = page.read_text(encoding="utf-8")
    shown = SHOWN.findall(text)
    if not shown:
        return
    namespace: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), open(os.devnull, "w") as silent:
        with contextlib.redirect_stdout(silent), mpl.rc_context({"savefig.dpi": DPI}):
            for block in PYTHON.findall(text):
                exec(compile(block, str(page), "exec"), namespace)
        for name in shown:
            widen(Path(name), DOCS / "images" / name)
            print(f"{page.stem}: {name}")


def widen(source: Path, target: Path) -> None:
    """Put a picture in the middle of white."""
    with Image.open(source) as picture:
        width = round(WIDTH * DPI)
        if picture.width > width:
            raise ValueError(f"{source} is {picture.width} dots wide, more than {width}")
        white = Image.new("RGB", (width, picture.height), "white")
        white.paste(picture.convert("RGB"), ((width - picture.width) // 2, 0))
        white.save(target, optimize=True)


def main() -> None:
    """Draw the pictures of all pages, or of some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages = sorted((DOCS / "tutorials").glob("*.md"))
    parser.add_argument("pages", nargs="*", metavar="page", help=", ".join(page.stem for page in pages))
    names = parser.parse_args().pages
    unknown = {*names} - {page.stem for page in pages}
    if unknown:
        parser.error(f"there is no page {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for page in pages:
        if not names or page.stem in names:
            draw(page)


if __name__ == "__main__":
    main()

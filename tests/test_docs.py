"""The Python in the documentation runs, and prints what the page says it prints."""

import doctest
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from torch import nn

import autoperm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(python|text title="output")\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CHECK = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def prelude() -> dict[str, object]:
    """What the short examples of the front pages take for granted: three models and data."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 8), torch.randint(0, 3, (20,))
    models = [nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in "abc"]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=5)
    named = dict(zip(("model_a", "model_b", "model_c"), models, strict=True))
    return {**named, "train_loader": loader, "test_loader": loader}


def blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """Yield kind, first line and text of the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield found[1], text.count("\n", 0, found.start(2)), found[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    namespace = prelude() if page.name in ("README.md", "index.md") else {}
    printed = ""
    try:
        for kind, line, text in blocks(page):
            if kind == "python":
                code = compile("\n" * line + text, str(page), "exec")
                with redirect_stdout(io.StringIO()) as output:
                    exec(code, namespace)
                printed = output.getvalue()
            else:
                same = doctest.OutputChecker().check_output(text, printed, CHECK)
                assert same, f"{page.name}, line {line + 1}: the block before it prints\n{printed}"
    finally:
        torch.set_num_threads(threads)


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    for name, value in vars(autoperm).items():
        if getattr(value, "__module__", "").startswith("autoperm."):
            assert re.search(rf"\b{name}\b", pages), f"autoperm.{name} is on no page of docs/api"

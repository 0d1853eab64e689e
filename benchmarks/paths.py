"""What a path costs beside its forward passes alone: ``python benchmarks/paths.py``.

For each model the 25 points of a path are evaluated by ``interpolate``, and the same batches go 25 times through model
A and its loss in a plain loop. Both are repeated in turn, in one process, on one core; the table has medians of
processor time. The last columns compare the size of a model with how far the resident memory rises while a path is
walked, above that of the two models.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from models import GPT2, ResNet20, ViT, mlp, noise
from page import fill, table
from torch import Tensor, nn
from torch.nn import functional as F

import autoperm

POINTS = 25


class Case(NamedTuple):
    """A row of the table: a model, and its evaluation set."""

    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    batches: int


def transformer() -> nn.Module:
    """A GPT-2 of 3 layers over 4,000 tokens, whose outputs have a cross entropy for each token."""
    return GPT2(width=192, heads=6, depth=3, tokens=4000, length=64)


def sentences(seed: int) -> Tensor:
    """Draw 8 sentences of 64 tokens."""
    return torch.randint(0, 4000, (8, 64), generator=torch.Generator().manual_seed(seed))


CASES = {
    "mlp": Case("MLP 3x512, 4,000 samples in batches of 500", mlp, noise(500, 784), 10, 8),
    "resnet20": Case("ResNet20, 200 images of 32x32 in batches of 100", ResNet20, noise(100, 3, 32, 32), 10, 2),
    "vit": Case("ViT-S/16, 4 images of 224x224 in one batch", ViT, noise(4, 3, 224, 224), 1000, 1),
    "gpt2": Case("GPT-2 of 3 layers, 32 sentences of 64 tokens in batches of 8", transformer, sentences, 4000, 4),
}


def data(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Draw the batches of a case."""
    batches = [case.inputs(seed) for seed in range(case.batches)]
    generator = torch.Generator().manual_seed(0)
    shape = (lambda x: x.shape) if case.build is transformer else (lambda x: x.shape[:1])
    return [(x, torch.randint(0, case.classes, shape(x), generator=generator)) for x in batches]


def pair(case: Case) -> tuple[nn.Module, nn.Module]:
    """Build two models."""
    torch.manual_seed(0)
    return case.build().eval(), case.build().eval()


def forward(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Run a model on all batches, and return its mean loss."""
    total = 0.0
    with torch.no_grad():
        for x, target in batches:
            total += F.cross_entropy(model(x).flatten(0, -2), target.flatten()).item()
    return total / len(batches)


def seconds(function: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def times(case: Case, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both, in turn."""
    (a, b), batches = pair(case), data(case)
    evaluate = autoperm.Evaluator(batches)

    def alone() -> None:
        for _ in range(POINTS):
            forward(a, batches)

    def path() -> None:
        autoperm.interpolate(a, b, evaluate, points=POINTS)

    if not math.isclose(forward(a, batches), evaluate(a)["loss"], rel_tol=1e-5):
        raise SystemExit(f"{case.title}: the plain loop computes another loss than the evaluator")
    found: dict[Callable[[], None], list[float]] = {alone: [], path: []}
    for i in range(repeats):
        for function in (alone, path) if i % 2 else (path, alone):
            found[function].append(seconds(function))
    return found[alone], found[path]


def resident(field: str) -> int:
    """Read the resident memory of this process, or its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def rise(case: Case) -> float:
    """Return how many bytes the resident memory rises by while a path is walked and nothing is evaluated."""
    a, b = pair(case)
    autoperm.interpolate(*(nn.Linear(2, 2) for _ in "ab"), lambda model: {"loss": 0.0}, points=2)  # loads libraries
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = resident("VmRSS")
    autoperm.interpolate(a, b, lambda model: {"loss": 0.0}, points=POINTS)
    return resident("VmHWM") - before


def memory(name: str) -> str:
    """Return what :func:`rise` says in a process that gives freed memory back at once; nothing but on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return ""
    call = [sys.executable, __file__, "--rise", name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return megabytes(float(subprocess.run(call, capture_output=True, text=True, check=True, env=environment).stdout))


def megabytes(size: float) -> str:
    """Write a number of bytes."""
    return f"{size / 1e6:.1f}"


def row(name: str, repeats: int) -> list[str]:
    """Measure one case."""
    case = CASES[name]
    alone, path = times(case, repeats)
    ratio = statistics.median(p / f for p, f in zip(path, alone, strict=True))
    middle = [statistics.median(each) for each in (alone, path)]
    model = case.build()
    size = sum(tensor.numel() * tensor.itemsize for tensor in (*model.parameters(), *model.buffers()))
    return [case.title, *(f"{each:.2f}" for each in middle), f"{ratio:.3f}", megabytes(size), memory(name)]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, help="a page to write the table into; it is printed too")
    parser.add_argument("--rise", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.rise is not None:
        print(rise(CASES[args.rise]))
        return
    head = ["model and data", "forward passes alone, s", "path, s", "ratio", "a model, MB", "memory, MB"]
    text = table(head, [row(name, args.repeats) for name in args.cases])
    print(text)
    if args.page is not None:
        fill(args.page, "paths", text)


if __name__ == "__main__":
    main()

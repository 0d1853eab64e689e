"""How discovery grows with the graph: ``python benchmarks/scaling.py``.

Two kinds of networks: residual blocks in a row, all on one stream of units, and a recurrence whose loop the tracer
unrolls into thousands of slices. Tracing and discovery are timed in one process, discovery at its best of some runs.
The exponent is the slope of a straight line through the logarithms of nodes and seconds: 1 is linear.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from autoperm.discover import infer
from autoperm.trace import trace

RUNS = 3


class Block(nn.Module):
    """x + W2 relu(W1 norm(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Scan(nn.Module):
    """h <- tanh(x W + h U), written as a loop over slices; the states are stacked.

    Where ``project_first``, the loop slices what the first layer made, whose units are free, instead of the input;
    where ``in_place``, each state is written into one tensor, instead of stacking them.
    """

    def __init__(self, width: int, hidden: int, *, project_first: bool = False, in_place: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(width, hidden) / width**0.5)
        self.u = nn.Parameter(torch.randn(hidden, hidden) / hidden**0.5)
        self.head = nn.Linear(hidden, width)
        self.project_first, self.in_place = project_first, in_place

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.u.shape[0])
        projected = x @ self.w if self.project_first else None
        written = x.new_zeros(*x.shape[:2], self.u.shape[0])
        states = []
        for step in range(x.shape[1]):
            drive = x[:, step] @ self.w if projected is None else projected[:, step]
            state = torch.tanh(drive + state @ self.u)
            if self.in_place:
                written[:, step] = state
            else:
                states.append(state)
        return self.head(written if self.in_place else torch.stack(states, dim=1))


def residual(blocks: int) -> tuple[nn.Module, Tensor]:
    """Build a residual network of so many blocks, with an input."""
    layers = [Block(8, 12) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3)), torch.randn(2, 4)


def scan(steps: int, **how: bool) -> tuple[nn.Module, Tensor]:
    """Build a recurrence, with an input of so many time steps."""
    return Scan(6, 8, **how), torch.randn(2, steps, 6)


FAMILIES: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "residual blocks": residual,
    "time steps": scan,
    "time steps, projected first": partial(scan, project_first=True),
    "time steps, written in place": partial(scan, in_place=True),
}


def exponent(nodes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(nodes), np.log(seconds), 1)[0])


def measure(
    build: Callable[[int], tuple[nn.Module, Tensor]], size: int, profile: bool
) -> tuple[int, int, float, float, float]:
    """Return nodes, groups, log10 of the group's order, seconds to trace, seconds to discover."""
    model, x = build(size)
    start = time.perf_counter()
    graph = trace(model, (x,))
    traced = time.perf_counter() - start
    found = []
    for _ in range(RUNS):
        start = time.perf_counter()
        spec = infer(graph)
        found.append(time.perf_counter() - start)
        if found[-1] > 10:  # long enough not to be noise
            break
    if profile:
        with cProfile.Profile() as profiler:
            infer(graph)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
    return len(graph.calls), len(spec.groups), spec.log10_order, traced, min(found)


def main() -> None:
    """Print a table in Markdown, and the exponents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--profile", action="store_true", help="print where discovery spends its time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trace(*_warm())  # the first trace in a process pays for torch's own start

    print("| network | nodes | groups | log10 order | trace (s) | discover (s) | discover / trace | us a node |")
    print("|---|---|---|---|---|---|---|---|")
    for family in args.families:
        nodes, seconds = [], []
        for size in args.sizes:
            n, groups, order, traced, found = measure(FAMILIES[family], size, args.profile)
            nodes.append(n)
            seconds.append(found)
            print(
                f"| {size} {family} | {n} | {groups} | {order:.1f} | {traced:.2f} | {found:.4f} | {found / traced:.1%} "
                f"| {found / n * 1e6:.0f} |",
                flush=True,
            )
        if len(nodes) > 1:
            print(f"\n{family}: discovery takes nodes^{exponent(nodes, seconds):.2f}\n", flush=True)


def _warm() -> tuple[nn.Module, tuple[Tensor]]:
    model, x = residual(1)
    return model, (x,)


if __name__ == "__main__":
    main()

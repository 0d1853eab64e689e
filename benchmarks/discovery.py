"""How long discovery takes, beside tracing: ``python benchmarks/discovery.py``.

Both are timed in one process, one after the other, and the best of some runs is taken: only the ratio means anything.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from networks import LARGE, NETWORKS

from autoperm.discover import infer
from autoperm.trace import trace

RUNS = 3


def main() -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    print("| network | operations | trace (s) | discover (ms) | discover / trace |\n|---|---|---|---|---|")
    for name, network in {**NETWORKS, **LARGE}.items():
        model, inputs = network.build(), network.inputs()
        trace(model, inputs)  # the first trace in a process pays for torch's own start
        traced, found = [], []
        for _ in range(RUNS):
            start = time.perf_counter()
            graph = trace(model, inputs)
            middle = time.perf_counter()
            infer(graph)
            traced.append(middle - start)
            found.append(time.perf_counter() - middle)
        ratio = min(found) / min(traced)
        print(f"| {name} | {len(graph.calls)} | {min(traced):.2f} | {min(found) * 1e3:.1f} | {ratio:.1%} |", flush=True)


if __name__ == "__main__":
    main()

"""Loss barriers on scikit-learn's digits: naive, rebasin (PyPI) and autoperm, on pairs of models of different seeds.

Run ``python benchmarks/digits.py --cache DIR``, or ``make benchmark``. It needs ``autoperm[demo]``. The rows of rebasin
are there if ``pip install --no-deps rebasin torchview graphviz tqdm`` was run in the same environment. Trained weights
and results are kept in DIR; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from statistics import mean

import torch
from digits_models import SETUPS, Data, load, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader

import autoperm


def naive(a: nn.Module, b: nn.Module, x: Tensor) -> nn.Module:
    """Model B as it is."""
    return b


def rebasin(a: nn.Module, b: nn.Module, x: Tensor) -> nn.Module:
    """Model B permuted by rebasin, which does it in place and leaves BatchNorm's running statistics where they are."""
    from rebasin import PermutationCoordinateDescent

    b = copy.deepcopy(b)
    PermutationCoordinateDescent(copy.deepcopy(a), b, x).rebasin()
    return b


def aligned(a: nn.Module, b: nn.Module, x: Tensor) -> nn.Module:
    """Model B permuted by autoperm."""
    return autoperm.align(a, b, example_inputs=x).model


METHODS = {"naive": naive, "rebasin": rebasin, "autoperm": aligned}


def measure(name: str, method: str, pair: int, data: Data, cache: Path) -> autoperm.Curve:
    """Permute one model B, and evaluate the path to it."""
    a, b = (trained(name, seed, data, cache) for seed in (2 * pair, 2 * pair + 1))
    x = next(iter(DataLoader(data.train, batch_size=8)))[0]
    return autoperm.interpolate(
        a,
        METHODS[method](a, b, x),
        autoperm.Evaluator(DataLoader(data.test, batch_size=512)),
        renormalize="batch_norm" if SETUPS[name].renormalize else None,
        data=list(DataLoader(data.train, batch_size=350)) if SETUPS[name].renormalize else None,
    )


Results = dict[str, dict[int, autoperm.Curve]]
"""By method, by pair."""


def table(name: str, results: Results) -> str:
    """Write the results for one kind of model in Markdown: the mean over pairs, then every pair."""
    setup = SETUPS[name]
    ends = [value for curve in results["naive"].values() for value in curve.metrics["accuracy"][:: len(curve.lam) - 1]]
    pairs = sorted(results["naive"])
    lines = [
        f"### {setup.title}",
        "",
        f"{setup.epochs} epochs; accuracy of the ends {min(ends):.1%} to {max(ends):.1%}.",
        "",
        "| mean of the pairs | barrier, mean of ends | barrier, chord | accuracy in the middle |",
        "|---|---|---|---|",
    ]
    for method, curves in results.items():
        middle = [mean(column) for column in zip(*map(_numbers, curves.values()), strict=True)]
        lines.append(f"| {method} | {middle[0]:.3f} | {middle[1]:.3f} | {middle[2]:.1%} |")
    lines += ["", f"| each pair | {' | '.join(results)} |", f"|---|{'---|' * len(results)}"]
    for pair in pairs:
        cells = ["{:.3f} / {:.3f} / {:.1%}".format(*_numbers(curves[pair])) for curves in results.values()]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _numbers(curve: autoperm.Curve) -> tuple[float, float, float]:
    chord = max(0.0, curve.barrier(reference="chord"))  # no "-0.000"
    return curve.barrier(), chord, curve.metrics["accuracy"][len(curve.lam) // 2]


def main() -> None:
    """Compute what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for trained weights and results")
    parser.add_argument("--models", nargs="*", default=list(SETUPS), choices=SETUPS)
    parser.add_argument("--pairs", nargs="*", type=int, default=list(range(5)), help="pair p has the seeds 2p, 2p + 1")
    parser.add_argument("--again", nargs="*", default=[], choices=METHODS, help="methods to compute anew")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    try:
        import rebasin  # noqa: F401
    except ImportError:
        METHODS.pop("rebasin")
        print("rebasin is not installed, so its column is left out", file=sys.stderr)

    data = load()
    for name in args.models:
        results: Results = {method: {} for method in METHODS}
        for pair in args.pairs:
            for method in METHODS:
                file = args.cache / f"{name}-{method}-{pair}.json"
                if not file.exists() or method in args.again:
                    curve = measure(name, method, pair, data, args.cache)
                    file.write_text(json.dumps(curve.to_dict()))
                    print(f"{name}, pair {pair}, {method}: done", file=sys.stderr, flush=True)
                results[method][pair] = autoperm.Curve.from_dict(json.loads(file.read_text()))
        print(table(name, results))


if __name__ == "__main__":
    main()

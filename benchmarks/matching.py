"""What matching costs: seconds, memory and objective of every matcher, beside rebasin (PyPI) and beside a floor.

Run ``python benchmarks/matching.py --cache DIR``, or ``make benchmark``. The rows of rebasin are there if ``pip install
--no-deps rebasin torchview graphviz`` was run in the same environment. Each measurement has a process of its own with
one thread, and leaves a record in DIR; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from matchers import ACTIVATIONS, FREE, Data, run
from models import MODELS
from page import fill, number, table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import autoperm
from autoperm import Permutation, PermutationSpec
from autoperm.matching import nested

STATUS = Path("/proc/self/status")
MATCHERS = {**FREE, **ACTIVATIONS}
METHODS = [*MATCHERS, "rebasin"]
PAIRS = ("independent", "planted")
WITH_FLOOR = ("weight, linear", "weight")

BATCHES = 16
"""Of two random inputs each, for matchers that run the models."""

Record = dict[str, Any]


# --- one measurement


def pair(model: str, kind: str, spec: PermutationSpec) -> tuple[nn.Module, nn.Module, Permutation | None]:
    """Build two models: of two seeds; or one, and the same with its units in another order."""
    torch.manual_seed(0)
    a = MODELS[model].build().eval()
    if kind == "planted":
        planted = spec.random(1)
        return a, planted.apply(a), planted
    torch.manual_seed(1)
    return a, MODELS[model].build().eval(), None


def forget_peak() -> None:
    """Let the most memory that this process ever had be what it has now. Only Linux can do that."""
    gc.collect()
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def peak() -> float:
    """Return the most memory that this process had, in MB.

    On Linux not by ``getrusage``, which counts what the parent had when it started this process.
    """
    if STATUS.exists():
        return int(STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def timed(prepare: Callable[[], Callable[[], Any]]) -> tuple[Record, Any]:
    """Call what is prepared; the memory is that of the first time, the time the best of up to three."""
    seconds: list[float] = []
    memory = None
    while not seconds or (len(seconds) < 3 and sum(seconds) < 5):
        call = prepare()
        forget_peak()
        before, start = peak(), time.process_time()
        result = call()
        seconds.append(time.process_time() - start)
        memory = peak() - before if memory is None else memory
    return {"seconds": min(seconds), "memory": memory}, result


def by_rebasin(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[Record, None, nn.Module]:
    """Match by rebasin: its tracing is not timed. It permutes model B in place."""
    from rebasin import PermutationCoordinateDescent

    made: list[Any] = []

    def prepare() -> Callable[[], object]:
        torch.manual_seed(0)  # rebasin visits layers in a random order
        made[:] = [PermutationCoordinateDescent(a, b, x)]
        return made[0].calculate_permutations

    record, _ = timed(prepare)
    made[0].apply_permutations()
    return record, None, b


def measure(model: str, kind: str, method: str, spec: PermutationSpec) -> Record:
    """Match one pair by one method, in this process."""
    torch.set_num_threads(1)
    a, b, planted = pair(model, kind, spec)
    inputs = MODELS[model].inputs
    x = inputs(0)
    with torch.no_grad():
        expected = b(x)
    if method == "rebasin":
        record, permutation, moved = by_rebasin(a, b, x)
    else:
        batches = [(inputs(seed), torch.zeros(len(x))) for seed in range(BATCHES)]
        matcher = MATCHERS[method](Data(batches, F.cross_entropy))
        record, permutation = timed(lambda: partial(run, matcher, spec, a, b))
        moved = permutation.apply(b)
    with torch.no_grad():
        record["error"] = float((moved(x) - expected).norm() / expected.norm())
    state_a, state_b = (
        {name: tensor.detach() for name, tensor in model.named_parameters(remove_duplicate=False)}
        for model in (a, moved)
    )
    record |= objectives(spec, state_a, state_b)
    if planted is not None:
        record["recovered"] = fixed(permutation.compose(planted)) if permutation else restored(spec, state_a, state_b)
    if kind == "independent" and method in WITH_FLOOR:
        record |= floor(lambda: run(matcher, spec, a, b))
    return record


def objectives(spec: PermutationSpec, a: dict[str, Tensor], b: dict[str, Tensor]) -> Record:
    """Return the cosine of all parameters as one vector, and the mean of the matrices' cosines."""
    inner = {n: float((a[n] * b[n]).sum(dtype=torch.float64)) for n in spec.patterns if n in a and n not in spec.tied}
    norms = {n: tuple(float(t[n].double().norm()) for t in (a, b)) for n in inner}
    whole = [sum(sizes[i] ** 2 for sizes in norms.values()) ** 0.5 for i in range(2)]
    cosines = [inner[n] / (x * y) for n, (x, y) in norms.items() if a[n].ndim > 1 and x * y > 0]
    return {"linear": sum(inner.values()) / (whole[0] * whole[1]), "cosine": sum(cosines) / len(cosines)}


def fixed(permutation: Permutation) -> float:
    """Return the share of all factors' positions that a permutation leaves where they are."""
    indices = [permutation[factor.name] for factor in permutation.spec.free]
    still = sum(int((index == torch.arange(index.shape[-1])).sum()) for index in indices)
    return still / sum(index.numel() for index in indices)


def restored(spec: PermutationSpec, a: dict[str, Tensor], b: dict[str, Tensor]) -> float | None:
    """Return the same of a model whose permutation is not known: a unit's weights give it away in any order."""
    if any(factor.over for factor in spec.free):
        return None
    same = []
    for factor in spec.free:
        places = [(a[n].numel(), n, axis) for n, axis in spec.carriers[factor.name] if n in a]
        _, name, axis = max(place for place in places if a[place[1]].shape[place[2]] == factor.size)
        marks = [t[name].double().movedim(axis, 0).flatten(1).pow(3).sum(1) for t in (a, b)]
        same.append(torch.isclose(*marks, rtol=1e-6))
    return sum(int(each.sum()) for each in same) / sum(map(len, same))


# --- the floor


class Products(TorchDispatchMode):
    """Count the matrix products that torch computes, by shapes and dtype."""

    PLACES: ClassVar = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
    """Operations, and which of their arguments is the left operand."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[torch.Size, torch.Size, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = self.PLACES.get(func.overloadpacket.__name__)
        if place is not None:
            left, right = args[place : place + 2]
            self.found[left.shape, right.shape, left.dtype] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def timed_assignments() -> Iterator[Counter[str]]:
    """Time every assignment, by autoperm and by scipy alone."""
    from scipy.optimize import linear_sum_assignment

    seconds: Counter[str] = Counter()
    original = nested.assign

    def assign(scores: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        found = original(scores, *args, **kwargs)
        middle = time.process_time()
        for problem in scores.reshape(-1, *scores.shape[-2:]):
            linear_sum_assignment(problem, maximize=True)
        seconds["assignments"] += middle - start
        seconds["scipy"] += time.process_time() - middle
        return found

    nested.assign = assign
    try:
        yield seconds
    finally:
        nested.assign = original


def floor(match: Callable[[], object]) -> Record:
    """Time only the products and assignments that a match consists of: products of ready-made contiguous operands."""
    with timed_assignments() as seconds, Products() as products:
        match()
    total = 0.0
    for (left, right, dtype), count in products.found.items():
        a, b = (torch.randn(shape[1:] if shape[:-2] == (1,) else shape).to(dtype) for shape in (left, right))
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            a @ b
            best = min(best, time.process_time() - start)
        total += count * best
    return {"products": total, **seconds}


# --- all measurements


def worker(args: argparse.Namespace) -> None:
    """Measure, and write the record; what a method cannot do is a record too."""
    model, kind, method = args.worker
    try:
        record = measure(model, kind, method, PermutationSpec.from_json(args.spec.read_text()))
    except Exception as error:
        record = {"problem": f"{type(error).__name__}: {error}"[:300]}
    args.out.write_text(json.dumps(record))


def record_file(args: argparse.Namespace, model: str, kind: str, method: str) -> Path:
    """Return where a record is kept."""
    return args.cache / f"{model}-{kind}-{method.replace(' ', '_')}.json"


def record_of(args: argparse.Namespace, model: str, kind: str, method: str) -> Record:
    """Return a record, measured in a process of its own if there is none."""
    out = record_file(args, model, kind, method)
    if not out.exists() or method in args.again:
        spec = args.cache / f"{model}-spec.json"
        if not spec.exists():
            spec.write_text(autoperm.discover(MODELS[model].build().eval(), MODELS[model].inputs(0)).to_json())
        command = [sys.executable, __file__, "--cache", args.cache, "--worker", model, kind, method]
        command += ["--spec", spec, "--out", out]
        try:
            done = subprocess.run([str(part) for part in command], timeout=args.timeout, check=False)
        except subprocess.TimeoutExpired:
            out.write_text(json.dumps({"problem": f"not done after {args.timeout:.0f} s"}))
        else:
            if done.returncode != 0:
                return {"problem": f"exit status {done.returncode}"}
        print(f"{model}, {kind}, {method}: {out.read_text()}", file=sys.stderr, flush=True)
    record: Record = json.loads(out.read_text())
    return record


def costs(results: dict[tuple[str, str, str], Record]) -> str:
    """Write what every method took and found."""
    rows = []
    for (model, kind, method), record in results.items():
        if kind == "planted" and method == "naive":
            continue
        row = [MODELS[model].title, kind, method]
        if "problem" in record:
            rows.append([*row, record["problem"].replace("|", "/"), "", "", "", ""])
            continue
        sound = "" if record["error"] < 1e-3 else " (the model computes something else)"
        row += [f"{record['seconds']:.3g}{sound}", f"{record['memory']:.0f}"]
        row += [f"{record['linear']:.5f}", f"{record['cosine']:.5f}", number(record.get("recovered"), ".1%")]
        rows.append(row)
    head = ["model", "pair", "matcher", "seconds", "memory (MB)", "cosine of all", "mean cosine", "recovered"]
    return table(head, rows)


def targets(results: dict[tuple[str, str, str], Record]) -> str:
    """Write how weight matching compares with rebasin, and with the floor."""
    rows = []
    for model in dict.fromkeys(model for model, _, _ in results):
        for method in WITH_FLOOR:
            ours, theirs = (results.get((model, "independent", name), {}) for name in (method, "rebasin"))
            if "seconds" not in ours:
                continue
            least = ours["products"] + min(ours["assignments"], ours["scipy"])
            row = [MODELS[model].title, method, f"{ours['seconds']:.3g}"]
            if "seconds" in theirs and theirs["error"] < 1e-3:
                gained = ours["linear"] - theirs["linear"]
                row += [f"{theirs['seconds']:.3g}", f"{theirs['seconds'] / ours['seconds']:.1f}", f"{gained:+.5f}"]
            else:
                row += ["", "", ""]
            row += [f"{ours['products']:.3g}", f"{ours['assignments']:.3g}", f"{ours['scipy']:.3g}"]
            rows.append([*row, f"{ours['seconds'] / least:.2f}"])
    head = ["model", "matcher", "seconds", "rebasin", "times faster", "cosine of all, more than rebasin's"]
    return table([*head, "products", "assignments", "by scipy alone", "seconds / floor"], rows)


def main() -> None:
    """Measure what is not measured yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the records")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--matchers", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--again", nargs="*", default=[], choices=METHODS, help="matchers to measure anew")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a process")
    parser.add_argument("--as-it-is", action="store_true", help="measure nothing: write the tables of what is there")
    parser.add_argument("--page", type=Path, help="a page to write the tables into; they are printed too")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    methods = [method for method in args.matchers if method != "rebasin" or find_spec("rebasin") is not None]
    if len(methods) < len(args.matchers):
        print("rebasin is not installed, so its rows are left out", file=sys.stderr)
    results = {
        (model, kind, method): record_of(args, model, kind, method)
        for model in args.models
        for kind in args.pairs
        for method in methods
        if not args.as_it_is or record_file(args, model, kind, method).exists()
    }
    text = f"{targets(results)}\n{costs(results)}"
    print(text)
    if args.page is not None:
        fill(args.page, "matching", text)


if __name__ == "__main__":
    main()

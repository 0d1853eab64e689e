"""What autoperm does on the models of a zoo: ``make coverage``, or ``python benchmarks/coverage.py --help``.

One process a model, with a time limit; each leaves a record in the cache, and what is there is not measured again, so
that an interrupted run goes on where it stopped. A record holds for the source code it was made with: a change to the
package, or to the worker, makes new ones (``--keep`` takes the old ones where new ones are missing, and the page says
so). The processes run in the environment of ``--python``, which needs the zoo's packages; this one needs only tqdm.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "autoperm"
PEERS = ("rebasin", "torch-pruning")
PEER_SUITE = "torchvision"
"""The other tools are shown what they are made for: image classifiers with one tensor in and one out."""

Record = dict[str, Any]
Job = tuple[str, str, str]
"""Suite, model, tool."""


def fingerprint(tool: str) -> str:
    """Name the code that a record depends on."""
    own = sorted(PACKAGE.rglob("*.py")) if tool == "autoperm" else [HERE / "coverage_peers.py"]
    digest = hashlib.sha256()
    for file in [*own, HERE / "coverage_worker.py"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:10]


def record_file(cache: Path, job: Job, mark: str) -> Path:
    """Return where a record is kept."""
    return cache / mark / f"{'.'.join(job).replace('/', '-')}.json"


def load(cache: Path, job: Job, mark: str, keep: bool) -> Record | None:
    """Return a job's record; with ``keep`` the newest of any code where this code's is missing."""
    file = record_file(cache, job, mark)
    if not file.exists() and keep:
        file = max(cache.glob(f"*/{file.name}"), key=lambda other: other.stat().st_mtime, default=file)
    return json.loads(file.read_text()) if file.exists() else None


# --- the processes


def load_zoo(folder: Path) -> ModuleType:
    """Import the module ``zoo`` from its folder."""
    sys.path.insert(0, str(folder))
    return importlib.import_module("zoo")


def worker(zoo: Path, job: Job, out: Path, limit_s: float) -> None:
    """Measure one model with one tool, in this process."""
    suite, name, tool = job
    if tool == "autoperm":
        import coverage_worker

        record = coverage_worker.measure(load_zoo(zoo), suite, name, limit_s)
    else:
        import coverage_peers

        record = coverage_peers.measure(tool, load_zoo(zoo), suite, name)
    record["versions"] = {"python": platform.python_version(), **dict(_versions())}
    save(out, job, record)


def _versions() -> Iterator[tuple[str, str]]:
    for package in ("torch", "torchvision", "transformers", "diffusers", *PEERS):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def save(out: Path, job: Job, record: Record) -> None:
    """Write a record, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    suite, name, tool = job
    text = json.dumps({"suite": suite, "name": name, "tool": tool, "code": out.parent.name, **record}, indent=1)
    unfinished = out.with_suffix(".unfinished")
    unfinished.write_text(text + "\n")
    unfinished.replace(out)


def in_zoo(args: argparse.Namespace, *more: Any, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run this script in the zoo's environment, with this autoperm."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [str(part) for part in (args.python, __file__, "--zoo", args.zoo, *more)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run(args: argparse.Namespace, job: Job) -> None:
    """Measure one model in a process of its own; a crash or a timeout is a record too."""
    out = record_file(args.cache, job, fingerprint(job[2]))
    start = time.perf_counter()
    try:
        done = in_zoo(args, "--worker", *job, "--out", out, "--limit", args.limit, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        save(out, job, {"status": "timeout", "problem": f"not done after {args.timeout:.0f} s"})
        return
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        seconds = time.perf_counter() - start
        save(out, job, {"status": "crash", "problem": lines[-1][:400], "seconds": seconds})


def models(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Ask the zoo, in its environment, which models there are."""
    done = in_zoo(args, "--list")
    if done.returncode != 0:
        raise SystemExit(f"the zoo in {args.zoo} cannot be read with {args.python}:\n{done.stderr}")
    return [(suite, name) for suite, name in json.loads(done.stdout.splitlines()[-1])]


def jobs(args: argparse.Namespace) -> list[Job]:
    """Return what to measure."""
    wanted = [(s, n) for s, n in models(args) if not args.only or n in args.only or s in args.only]
    ours = [(suite, name, "autoperm") for suite, name in wanted]
    return ours + [(suite, name, tool) for suite, name in wanted if suite == PEER_SUITE for tool in args.tools]


def main() -> None:
    """Measure what is not measured yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="the folder that holds zoo.py and reference.json")
    parser.add_argument("--cache", type=Path, help="folder for the records")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--only", nargs="*", default=[], help="names of models or suites to measure")
    parser.add_argument("--tools", nargs="*", default=list(PEERS), choices=PEERS, help="other tools to measure")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a process")
    parser.add_argument("--limit", type=float, default=60, help="seconds for checking factors alone, and for probing")
    parser.add_argument("--again", action="store_true", help="measure what is in the cache anew")
    parser.add_argument("--keep", action="store_true", help="use records of other code where this code's are missing")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the zoo's packages")
    parser.add_argument("--worker", nargs=3, metavar=("SUITE", "MODEL", "TOOL"), help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.zoo, tuple(args.worker), args.out, args.limit)
        return
    if args.list:
        zoo = load_zoo(args.zoo)
        print(json.dumps([(suite, entry.name) for suite in zoo.SUITES for entry in zoo.iter_models(suite)]))
        return
    if args.cache is None:
        parser.error("--cache is needed")

    from tqdm import tqdm

    todo = jobs(args)
    open_jobs = [job for job in todo if args.again or load(args.cache, job, fingerprint(job[2]), args.keep) is None]
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(open_jobs), unit="model") as bar:
        for job, _ in zip(open_jobs, pool.map(lambda job: run(args, job), open_jobs), strict=True):
            bar.set_postfix_str(f"{job[1]}, {job[2]}")
            bar.update()
    if args.out is not None:
        from coverage_page import page

        found = [load(args.cache, job, fingerprint(job[2]), args.keep) for job in todo]
        reference = json.loads((args.zoo / "reference.json").read_text())
        records = [record for record in found if record is not None]
        args.out.write_text(page(records, reference, HERE / "coverage.md"), encoding="utf-8")


if __name__ == "__main__":
    main()

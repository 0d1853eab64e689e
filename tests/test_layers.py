"""Imports go one way, and each large dependency has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoperm

ROOT = Path(autoperm.__file__).parent

# A module may import from the layers above its own, and a package (rules, matching) from itself.
LAYERS: list[set[str]] = [
    {"errors", "terms", "graph"},
    {"signature", "cutting", "state", "batches", "copies", "structure", "results"},
    {"metrics"},
    {"evaluate"},
    {"axes", "spec", "blend", "batch_norm", "curves", "resume"},
    {"joining", "surface", "by_hand", "barriers", "calibration", "correction", "ensemble", "selection"},
    {"presence", "layout", "report", "rules", "interchange", "rails"},
    {"permutation", "plot", "trace", "trees"},
    {"inputs"},
    {"equivalence", "matching", "write"},
    {"discover", "perturb"},
    {"activations", "explain", "probe"},
    {"repair"},
    {"renormalize"},
    {"walk"},
    {"interpolate", "compare"},
    {"matchers"},
    {"align"},
    {"align_many", "testing"},
    {"merge"},
    {"transfer"},
    {"__init__"},
]

# Methods of a specification that hand over to a later layer import it when they are called.
LATE = {
    ("spec", name) for name in ("by_hand", "interchange", "permutation", "equivalence", "report", "plot", "explain")
} | {("calibration", "plot"), ("curves", "plot"), ("surface", "plot")}

TORCH_FREE = ["signature", "terms", "cutting", "axes", "joining", "presence"]

# What works on a specification alone. (align is the front door: it discovers.)
RIGHT_OF_THE_WAIST = [
    "spec", "by_hand", "interchange", "rails", "permutation", "layout", "equivalence", "report", "matching", "blend",
    "batch_norm", "batches", "metrics", "evaluate", "curves", "surface", "resume", "barriers", "calibration",
    "correction", "ensemble", "selection", "plot", "perturb", "probe", "testing",
    "activations.moments", "activations.correspondence",
]  # fmt: skip
LEFT_OF_THE_WAIST = {
    "graph", "trace", "terms", "cutting", "axes", "joining", "presence", "trees",
    "rules", "write", "discover", "inputs", "activations", "repair",
}  # fmt: skip

DOORS = {
    "torch.export": {"trace.export"},
    "matplotlib": {
        *(f"plot.{name}" for name in ("calibration", "curves", "matchings", "spec", "style", "surfaces", "trends")),
        *("spec", "curves", "surface", "align", "calibration"),  # these name types only
    },
    "scipy": {"barriers", "correction", "matching.assignment"},
    "networkx": {"matching.blocks", "explain"},
    "hypothesis": {"testing"},
}


def modules() -> dict[str, ast.Module]:
    """Parsed files by dotted name inside the package; a package's own file has the package's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(name: str, *, late: bool) -> Iterator[str]:
    """What a module imports, absolute; inside the package from ``.``. Imports for types alone do not count."""

    is_package = (ROOT / name.replace(".", "/")).is_dir() or name == "__init__"
    home = [] if name == "__init__" else name.split(".")

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join([*home[: len(home) - (node.level - is_package)], node.module or ""]).strip(".")
                inner = [f"{base}.{alias.name}".strip(".") for alias in node.names]
                yield from ("." + (place if place in MODULES else base) for place in inner)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not late:
                continue
            elif not for_types_only(node):
                yield from walk([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])

    yield from dict.fromkeys(walk(MODULES[name].body))


def family(name: str) -> str:
    return name.partition(".")[0]


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if family(name) in names)


def reached(name: str) -> set[str]:
    """Everything of the package that a module imports, directly or through others, when it is itself imported."""
    found, pending = set(), [name]
    while pending:
        for other in imports(pending.pop(), late=False):
            if other.startswith(".") and other[1:] not in found:
                found.add(other[1:])
                pending.append(other[1:])
    return found


def test_the_walk_sees_imports() -> None:
    """A walk that found nothing would let everything pass."""
    assert ".spec" in imports("permutation", late=False)
    assert ".matching.assignment" in imports("matching.nested", late=False)
    assert ".errors" in imports("matching.weight", late=False)
    assert ".permutation" in imports("spec", late=True)
    assert ".permutation" not in imports("spec", late=False)
    assert "scipy.optimize.linear_sum_assignment" in imports("matching.assignment", late=False)
    assert {"signature", "terms", "axes"} <= reached("discover")


def test_every_module_has_a_layer() -> None:
    assert {family(name) for name in MODULES} == set().union(*LAYERS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    for other in imports(name, late=False):
        if other.startswith(".") and family(other[1:]) != family(name):
            assert layer(other[1:]) < layer(name), f"{name} imports {other[1:]}"


@pytest.mark.parametrize("name", MODULES)
def test_late_imports_are_the_known_ones(name: str) -> None:
    now = set(imports(name, late=False))
    late = {(name, other[1:]) for other in imports(name, late=True) if other.startswith(".") and other not in now}
    assert late == {pair for pair in LATE if pair[0] == name}


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_notation_and_the_algebra_know_no_torch(name: str) -> None:
    for module in {name, *reached(name)}:
        assert not [other for other in imports(module, late=True) if other.partition(".")[0] == "torch"], module


@pytest.mark.parametrize("name", RIGHT_OF_THE_WAIST)
def test_nothing_right_of_the_specification_knows_the_graph(name: str) -> None:
    assert not {family(other) for other in reached(name)} & LEFT_OF_THE_WAIST


def mentioned(name: str) -> set[str]:
    """Dotted names in a module's code: imports and attributes, not comments or strings."""
    found = set(imports(name, late=True))
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.If) and for_types_only(node):
            found |= {n.module or "" for n in ast.walk(node) if isinstance(n, ast.ImportFrom)}
    return found


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {
        name
        for name in MODULES
        if any(found == library or found.startswith(library + ".") for found in mentioned(name))
    }
    assert users == DOORS[library]


def test_the_drawing_library_is_imported_only_to_draw() -> None:
    """It is an extra: the package must work without it."""
    assert not [other for other in imports("plot", late=False) if other.startswith("matplotlib")]

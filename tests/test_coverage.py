"""The judge of ``make coverage`` finds what is wrong, and the page says it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoperm import PermutationSpec, discover

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from coverage_page import page
from coverage_peers import carried, with_batch_statistics
from coverage_worker import pins, randomise, soundness

TEMPLATE = Path(__file__).parents[1] / "benchmarks" / "coverage.md"
RIGHT = {"0.weight": "h _", "0.bias": "h", "2.weight": "_ h", "2.bias": "_"}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))


class Rounds(nn.Module):
    """Computes in float32 inside, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> Tensor:
        first, act, last = self.layers
        result: Tensor = last(act(first(x)).float().to(x.dtype) * 3)
        return result.float()


def judged(model: nn.Module, patterns: dict[str, str]) -> dict[str, Any]:
    spec = PermutationSpec.from_patterns(patterns, model)
    return soundness(spec, model, (torch.randn(5, 3),), limit_s=60)


def test_a_true_symmetry_is_sound() -> None:
    found = judged(mlp(), RIGHT)
    assert found["sound"] is True
    assert found["error"] < 1e-12
    assert found["wrong"] > 1e-3
    assert found["alone"] == [1, 1]


@pytest.mark.parametrize("left_out", ["0.weight", "0.bias", "2.weight"])
def test_a_symmetry_that_forgets_a_tensor_is_not_sound(left_out: str) -> None:
    found = judged(mlp(), {name: pattern for name, pattern in RIGHT.items() if name != left_out})
    assert found["sound"] is False
    assert found["guilty"] == ["h"]


def test_names_of_one_tensor_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(3, 8)
            self.middle = nn.Linear(8, 3)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            both = torch.tanh(self.first(x)) + torch.tanh(self.last(x))
            result: Tensor = self.middle(both)
            return result

    torch.manual_seed(0)
    model, x = randomise(Tied()), torch.randn(5, 3)
    spec = discover(model, x)
    assert spec.tied
    found = soundness(spec, model, (x,), limit_s=60)
    assert found["sound"] is True
    assert found["alone"] == [1, 1]
    assert found["wrong"] > 1e-3


def test_rounding_inside_is_told_from_a_wrong_symmetry() -> None:
    patterns = {f"layers.{name}": pattern for name, pattern in RIGHT.items()}
    found = judged(Rounds(), patterns)
    assert found["narrow"]
    assert found["sound"] is True
    del patterns["layers.0.bias"]
    assert judged(Rounds(), patterns)["sound"] is False


def test_the_limit_says_how_many_factors_were_done() -> None:
    model = mlp()
    spec = PermutationSpec.from_patterns(RIGHT, model)
    assert soundness(spec, model, (torch.randn(5, 3),), limit_s=0)["alone"][1] == 1


def test_a_model_that_changes_when_it_runs_is_not_judged() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp()
            self.calls = [0.0]  # shared by no copy, and by no state dict

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1
            result: Tensor = self.layers(x) + self.calls[0]
            return result

    with pytest.raises(RuntimeError, match="does not compute the same again"):
        judged(Counts(), {f"layers.{name}": pattern for name, pattern in RIGHT.items()})


def test_randomise_leaves_nothing_that_hides_a_wrong_permutation() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.Linear(4, 4))
    nn.init.zeros_(model[2].weight)
    randomise(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.unique().numel() == tensor.numel(), name
    assert bool((model[1].running_var > 0).all())


def test_pins_count_by_reason() -> None:
    model = mlp()
    found = pins(discover(model, torch.randn(5, 3)))
    assert found["axes"] == 6
    assert found["pinned"] == 3
    assert dict(found["reasons"])["model output"] == 2


def record(**more: Any) -> dict[str, Any]:
    base = {"suite": "modules", "name": "net", "tool": "autoperm", "code": "0", "parameters": 58, "versions": {}}
    return base | more


def traced(**more: Any) -> dict[str, Any]:
    sound = {"sound": True, "error": 1e-15, "wrong": 0.5, "alone": [1, 1], "guilty": []}
    facts = {"trace_s": 1.0, "discover_s": 0.01, "nodes": 3, "traced": "export", "notes": [], "log10_order": 4.6}
    more = {"groups": 1, "pins": {"axes": 6, "pinned": 3, "reasons": [["a | b", 2]]}, "unknown": []} | more
    return record(status="traced", probe=None, **facts) | {"soundness": sound} | more


def write(records: list[dict[str, Any]], reference: dict[str, float]) -> str:
    return page(json.loads(json.dumps(records)), reference, TEMPLATE)


def test_the_page_lists_what_is_not_as_it_should_be() -> None:
    wrong = {"sound": False, "error": 0.3, "wrong": 0.5, "alone": [1, 1], "guilty": ["h"]}
    text = write(
        [
            traced(),
            traced(name="small"),
            traced(name="unsound", soundness=wrong),
            record(name="slow", status="timeout", problem="not done after 9 s"),
            record(name="opaque", status="not traced", problem="control flow\n  /a/b/site-packages/c.py:3"),
        ],
        {"net": 4.6, "small": 9.0},
    )
    listed = text.partition("## What is not as it should be")[2].partition("## Model by model")[0]
    assert "`net`" not in listed
    assert "`small`: finds 10^4.6, the reference has 10^9.0" in listed
    assert "`unsound`: **not sound**" in listed
    assert "`slow`: timeout" in listed
    assert "`opaque`: not traced. `control flow c.py:3`" in listed
    assert "| sound | 2 |" in text
    assert "| traced | 3 (3 exported) |" in text


def test_a_reference_is_of_the_first_suite_that_has_the_name() -> None:
    text = write([traced(suite="torchvision", log10_order=9.0), traced(suite="modules")], {"net": 9.0})
    assert "`net`: finds" not in text
    assert "| 1 of 1 that have one |" in text


def test_the_page_judges_other_tools_alike() -> None:
    peer = {"suite": "torchvision", "tool": "rebasin", "version": "1", "status": "ran", "groups": 1}
    text = write(
        [
            traced(suite="torchvision"),
            traced(suite="modules"),  # of the same name: it was not shown to the others
            traced(suite="torchvision", name="bn"),
            traced(suite="torchvision", name="less"),
            traced(suite="torchvision", name="broken"),
            record(name="net") | peer | {"error": 1e-15, "log10_order": 4.6},
            record(name="bn") | peer | {"error": 0.4, "error_batch_statistics": 1e-15, "log10_order": 4.6},
            record(name="less") | peer | {"error": 1e-15, "log10_order": 1.0},
            record(name="broken") | peer | {"status": "crash", "problem": "KeyError: 3"},
        ],
        {},
    )
    assert "| `net` | right: 4.6 | right: 4.6 |" in text
    assert "| `bn` | right: 4.6 | (right once BatchNorm is re-estimated) |" in text
    assert "| `less` | right: 4.6 | sound, but finds 1.0 of 4.6 |" in text
    assert "| `broken` | right: 4.6 | crash: KeyError |" in text
    assert "| **fully right** | **4 of 4** | **1 of 4** |" in text


def test_batch_statistics_need_no_running_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(6, 3)
    before = with_batch_statistics(model, x)
    model[1].running_mean.add_(1)
    torch.testing.assert_close(with_batch_statistics(model, x), before)
    assert not model[1].training


def test_a_convolution_is_permuted_on_the_axis_that_is_pruned() -> None:
    class Graph:
        def is_out_channel_pruning_fn(self, handler: str) -> bool:
            return handler == "out"

    class Dep:
        def __init__(self, module: nn.Module, handler: str) -> None:
            self.target = type("Node", (), {"module": module})
            self.handler = handler

    order = torch.tensor([1, 0])
    for conv, outer in ((nn.Conv2d(2, 2, 1), 0), (nn.ConvTranspose2d(2, 2, 1), 1)):
        out = carried(Graph(), Dep(conv, "out"), order)
        assert [(tensor.ndim, axis) for tensor, axis, _ in out] == [(4, outer), (1, 0)]
        (inner,) = carried(Graph(), Dep(conv, "in"), order)
        assert inner[1] == 1 - outer


ZOO = """
import os
from collections import namedtuple

Entry = namedtuple("Entry", "name builder example_inputs_fn call_fn")
SUITES = ("modules",)

def iter_models(suite):
    yield Entry("net", net, inputs, None)
    yield Entry("dies", lambda: os._exit(3), inputs, None)

def net():
    from torch import nn
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

def inputs():
    import torch
    return (torch.randn(5, 3),)

def get(suite, name):
    return next(entry for entry in iter_models(suite) if entry.name == name)

def as_module(model, call):
    return model.eval()
"""


def test_the_command_measures_writes_and_resumes(tmp_path: Path) -> None:
    zoo, cache, out = tmp_path / "zoo", tmp_path / "cache", tmp_path / "page.md"
    zoo.mkdir()
    (zoo / "zoo.py").write_text(ZOO)
    (zoo / "reference.json").write_text('{"net": 4.6}')
    command = [sys.executable, str(TEMPLATE.with_suffix(".py")), "--zoo", zoo, "--cache", cache, "--out", out]

    def run() -> dict[str, int]:
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.json")}

    made = run()
    assert made.keys() == {"modules.net.autoperm.json", "modules.dies.autoperm.json"}
    assert run() == made, "what is in the cache was measured again"
    text = out.read_text()
    assert "| `net` | yes | 50 |" in text
    assert "* `dies`: crash. `exit status 3`" in text

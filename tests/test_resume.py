"""Walks that are interrupted, and go on from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ends import inputs, net, targets
from torch import Tensor, nn

from autoperm import Curve, ReestimateBatchNorm, interpolate, interpolate_chain, interpolate_simplex
from autoperm.errors import EvaluationError, SpecError
from autoperm.evaluate import Evaluator
from autoperm.resume import Journal, described, digest

MODELS = [net(seed) for seed in range(3)]
EVALUATE = Evaluator.from_tensors(inputs(), targets())


class Stopping:
    """A metric that is interrupted at its n-th call."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.done = 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if self.done == self.calls:
            raise KeyboardInterrupt
        self.done += 1
        return output.square().mean()


def walks(evaluate: Any, file: Path | None, **given: Any) -> dict[str, Callable[[], Any]]:
    return {
        "line": lambda: interpolate(*MODELS[:2], evaluate, points=6, resume=file, **given),
        "chain": lambda: interpolate_chain(MODELS, evaluate, points=3, resume=file, **given),
        "simplex": lambda: interpolate_simplex(MODELS, evaluate, steps=2, resume=file, **given),
    }


@pytest.mark.parametrize("kind", ["line", "chain", "simplex"])
def test_an_interrupted_walk_goes_on(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    expected = walks(Evaluator(EVALUATE.data, metrics={"size": Stopping(99)}), None)[kind]()
    first = Stopping(2)
    with pytest.raises(KeyboardInterrupt):
        walks(Evaluator(EVALUATE.data, metrics={"size": first}), file)[kind]()
    assert len(file.read_text().splitlines()) == 3
    second = Stopping(99)
    found = walks(Evaluator(EVALUATE.data, metrics={"size": second}), file)[kind]()
    assert found == expected
    points = len(expected.metrics["size"])
    assert second.done == points - 2
    third = Stopping(0)
    assert walks(Evaluator(EVALUATE.data, metrics={"size": third}), file)[kind]() == expected
    assert len(file.read_text().splitlines()) == points + 1


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    expected = interpolate(*MODELS[:2], EVALUATE, points=4, resume=file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        if length % 7 == 0 or whole[length - 1 : length + 1].count(b"\n"):
            assert interpolate(*MODELS[:2], EVALUATE, points=4, resume=file) == expected
            assert file.read_bytes() == whole


def test_progress_starts_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.jsonl"
    with pytest.raises(KeyboardInterrupt):
        interpolate(*MODELS[:2], Evaluator(EVALUATE.data, Stopping(3)), points=6, resume=file)
    interpolate(*MODELS[:2], Evaluator(EVALUATE.data, Stopping(9)), points=6, resume=file, progress=True)
    assert "3/6" in capsys.readouterr().err


def line(file: Path, **given: Any) -> Curve:
    models = given.pop("models", MODELS[:2])
    return interpolate_chain(models, EVALUATE, **{"points": 4, "resume": file, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": 5}, "points is 4 there and 5 here"),
        ({"path": "slerp"}, "path is 'lerp' there and 'slerp' here"),
        ({"models": [MODELS[0], MODELS[2]]}, "another path: model 1 has other weights"),
        ({"models": MODELS}, "there are 2 models there and 3 here"),
        ({"renormalize": "batch_norm", "data": [inputs()]}, "renormalize is None there and 'ReestimateBatchNorm"),
    ],
)
def test_another_path_is_refused_and_nothing_lost(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    line(file)
    before = file.read_bytes()
    with pytest.raises(SpecError, match=f"points.jsonl was written for .*{message}.*another file"):
        line(file, **given)
    assert file.read_bytes() == before


def test_another_kind_of_walk_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    line(file)
    with pytest.raises(SpecError, match="result is 'Curve' there and 'Surface' here"):
        interpolate_simplex(MODELS[:2], EVALUATE, steps=3, resume=file)


@pytest.mark.parametrize("text", ["loss,accuracy\n1,2\n", '{"result": "Curve"}\n', "[]\n", "x", "\x00\xff"])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=r"results\.csv does not hold the points of a path"):
        line(file)
    assert file.read_bytes() == text.encode("latin-1")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    line(file)
    lines = file.read_text().splitlines()
    for broken in ("{", "3", '{"loss": "low"}', '{"loss": null}'):
        file.write_text("\n".join([*lines[:2], broken, *lines[3:]]) + "\n")
        with pytest.raises(SpecError, match=r"line 3 of .*points\.jsonl is broken"):
            line(file)


def test_other_metrics_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    with pytest.raises(KeyboardInterrupt):
        interpolate(*MODELS[:2], Evaluator(EVALUATE.data, Stopping(2)), points=4, resume=file)
    with pytest.raises(EvaluationError, match=r"'risk' at lam = 0\.6667, but 'loss', 'accuracy' at lam = 0"):
        interpolate(*MODELS[:2], lambda model: {"risk": 0.0}, points=4, resume=file)


def test_what_repairs_statistics_is_bound_only_where_points_are_left(tmp_path: Path) -> None:
    class Failing:
        def __repr__(self) -> str:
            return f"<Failing at {hex(id(self))}>"

        def bind(self, models: Any) -> Any:
            if self.used:
                raise AssertionError
            self.used = True
            return lambda model, weights: model

        used = False

    file = tmp_path / "points.jsonl"
    renormalizer = Failing()
    first = line(file, renormalize=renormalizer)
    assert line(file, renormalize=renormalizer) == first
    other = Failing()
    other.used = True
    assert line(file, renormalize=other) == first, "the place in memory is not part of what it says"


def test_digests_tell_weights_apart() -> None:
    state = {"w": torch.zeros(2, 3), "n": torch.tensor(1), "h": torch.zeros(2, dtype=torch.bfloat16)}
    same = {name: tensor.clone() for name, tensor in state.items()}
    assert digest(state) == digest(same)
    others = [
        {**state, "w": torch.full((2, 3), 1e-30)},
        {**state, "w": torch.zeros(3, 2)},
        {**state, "w": torch.zeros(2, 3).double()},
        {**state, "n": torch.tensor(2)},
        {"v": state["w"], "n": state["n"], "h": state["h"]},
    ]
    assert len({digest(each) for each in (state, *others)}) == len(others) + 1
    assert digest({"w": torch.arange(6.0).view(2, 3).T}) == digest({"w": torch.arange(6.0).view(2, 3).T.contiguous()})


def test_what_a_renormaliser_says_of_itself() -> None:
    assert described(ReestimateBatchNorm([inputs()], batches=3)) == "ReestimateBatchNorm(batches=3)"
    assert described(nn.ReLU) == described(nn.ReLU)


def test_numbers_survive_exactly(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    row = {"a": 0.1 + 0.2, "b": 1e-310, "c": -0.0}
    Journal(file, {}).append(row)
    assert json.dumps(Journal(file, {}).rows) == json.dumps([row])


@pytest.mark.parametrize("calls", [2, 99])
def test_a_file_of_other_metrics_or_loaders(calls: int, tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    try:
        interpolate(*MODELS[:2], Evaluator(EVALUATE.data, metrics={"size": Stopping(calls)}), points=4, resume=file)
    except KeyboardInterrupt:
        assert calls == 2
    before = file.read_bytes()
    with pytest.raises(SpecError, match=r"metrics is \['loss', 'size'\] there and \['loss'\] here"):
        interpolate(*MODELS[:2], EVALUATE, points=4, resume=file)
    split = Evaluator({"test": EVALUATE.data}, metrics={"size": Stopping(99)})
    with pytest.raises(SpecError, match=r"metrics is .* there and \['test loss', 'test size'\] here"):
        interpolate(*MODELS[:2], split, points=4, resume=file)
    assert file.read_bytes() == before

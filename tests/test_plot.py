"""Figures: what is drawn, and that nothing global changes."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from autoperm import Curve, Estimate, PermutationSpec, Reliability, Surface, plot
from autoperm.errors import SpecError
from autoperm.plot.style import LOOKS, PALETTE, looks

LAM = (0.0, 0.25, 0.5, 0.75, 1.0)
NAIVE = Curve(LAM, {"loss": (0.1, 1.0, 2.0, 1.0, 0.1), "accuracy": (0.9, 0.5, 0.1, 0.5, 0.9)})
ALIGNED = Curve(LAM, {"loss": (0.1, 0.2, 0.3, 0.2, 0.1), "accuracy": (0.9, 0.8, 0.8, 0.8, 0.9)})


def explained(figure: Any) -> list[str]:
    """What the legend above the panels says."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_panel_for_each_metric() -> None:
    figure = plot.curve(NAIVE)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, values in zip(figure.axes, NAIVE.metrics.values(), strict=True):
        (line,) = axes.lines
        assert tuple(line.get_xdata()) == LAM  # type: ignore[arg-type]
        assert tuple(line.get_ydata()) == values  # type: ignore[arg-type]
        assert line.get_markevery() == [0, 4]
        assert axes.get_xlabel() == "λ  (0 = model A, 1 = model B)"
    assert not figure.legends


def test_naive_and_aligned_always_look_the_same() -> None:
    for curves in ({"naive": NAIVE, "aligned": ALIGNED}, {"aligned": ALIGNED, "naive": NAIVE}):
        axes = plot.curve(curves, metrics=["loss"]).axes[0]
        looks = {line.get_label(): (to_hex(line.get_color()).upper(), line.get_linestyle()) for line in axes.lines}
        assert looks == {"naive": ("#E69F00", "--"), "aligned": ("#0072B2", "-")}
        assert explained(axes.figure) == list(curves)


def test_other_labels_differ_in_colour() -> None:
    axes = plot.curve({str(i): NAIVE for i in range(7)}, metrics=["loss"]).axes[0]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 7


def test_axes_can_be_labelled_with_units() -> None:
    figure = plot.curve(NAIVE, labels={"loss": "loss (nats)"})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "accuracy"]
    with pytest.raises(SpecError, match="no panel 'risk' to label, but 'loss', 'accuracy'"):
        plot.curve(NAIVE, labels={"risk": "risk (%)"})


def test_what_papers_compare_has_a_look_that_no_other_line_has() -> None:
    for labels in (list(LOOKS), ["mine", *LOOKS], ["naive", "mine", "yours"]):
        found = list(looks(labels).values())
        for one, other in combinations(found, 2):
            assert one.colour != other.colour
            assert (one.stroke, one.marker) != (other.stroke, other.marker), "in grey only these are left"
    assert len({look.stroke for look in LOOKS.values()}) == len(LOOKS)
    assert {look.colour for look in LOOKS.values()} <= set(PALETTE)


def test_training_and_test_share_a_panel() -> None:
    metrics = {f"{split} {name}": v for split in ("train", "test") for name, v in NAIVE.metrics.items()}
    both = Curve(LAM, {**metrics, "risk": (0.0,) * 5})
    figure = plot.curve({"naive": both})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "risk"]
    test, train = figure.axes[0].lines
    assert tuple(test.get_ydata()) == tuple(train.get_ydata()) == both.metrics["test loss"]  # type: ignore[arg-type]
    assert test.get_linewidth() > train.get_linewidth()
    assert train.get_markerfacecolor() == "white"
    assert test.get_color() == train.get_color()
    assert explained(figure) == ["naive", "test", "train"]
    assert [axes.get_ylabel() for axes in plot.curve(both, metrics=["loss"]).axes] == ["loss"]
    three = Curve(LAM, {**metrics, "loss": (0.0,) * 5})
    assert [axes.get_ylabel() for axes in plot.curve(three).axes] == ["train loss", "accuracy", "test loss", "loss"]
    alone = plot.curve(both, metrics=["test loss"])
    assert [axes.get_ylabel() for axes in alone.axes] == ["test loss"]
    assert len(alone.axes[0].lines) == 1
    assert not alone.legends


def test_a_chain_has_a_mark_and_a_hairline_at_each_model() -> None:
    chain = Curve(LAM, {"loss": (0.0, 2.0, 1.0, 1.5, 0.0)}, nodes=(0.0, 0.5, 1.0))
    axes = plot.curve(chain).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["A", "B", "C"]
    assert axes.lines[0].get_markevery() == [0, 2, 4]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [0.0, 0.5, 1.0]  # type: ignore[index]
    with pytest.raises(SpecError, match="draw chains of other lengths in other axes"):
        plot.curve({"chain": chain, "naive": NAIVE}, metrics=["loss"])


def arrows(figure: Figure) -> list[tuple[float, float, float]]:
    """Position, foot and head of the arrows in the first panel."""
    found = [text for text in figure.axes[0].texts if not text.get_text()]
    return [(float(a.xy[0]), float(a.xyann[1]), float(a.xy[1])) for a in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("reference", "arrow"), [("mean", (0.75, 0.5, 2.0)), ("chord", (0.75, 0.75, 2.0))])
def test_an_arrow_is_as_high_as_the_barrier(reference: Any, arrow: tuple[float, ...]) -> None:
    unequal = Curve(LAM, {"loss": (0.0, 0.5, 1.0, 2.0, 1.0)})
    figure = plot.curve(unequal, barrier=reference)
    assert arrows(figure) == [arrow]
    assert arrow[2] - arrow[1] == unequal.barrier(reference=reference)
    written = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert written == [{"mean": "1.5", "chord": "1.2"}[reference]]


def test_the_arrow_of_a_chain_is_in_its_highest_leg() -> None:
    chain = Curve(LAM, {"loss": (0.0, 1.0, 1.0, 3.0, 2.0)}, nodes=(0.0, 0.5, 1.0))
    assert arrows(plot.curve(chain, barrier="chord")) == [(0.75, 1.5, 3.0)]


def test_the_arrow_of_an_accuracy_points_down() -> None:
    (arrow,) = arrows(plot.curve(NAIVE, metrics=["accuracy"], barrier="mean"))
    assert arrow == pytest.approx((0.5, 0.9, 0.1))


def test_arrows_and_their_numbers_do_not_hide_each_other() -> None:
    heights = {"lowest": 0.5, "naive": 2.0, "middle": 1.0}
    curves = {label: Curve(LAM, {"loss": (0.0, 0.0, height, 0.0, 0.0)}) for label, height in heights.items()}
    figure = plot.curve(curves, barrier="mean")
    wanted = [(0.47, 0.0, 2.0), (0.5, 0.0, 1.0), (0.53, 0.0, 0.5)]
    for found, arrow in zip(arrows(figure), wanted, strict=True):
        assert found == pytest.approx(arrow)
    numbers = [text for text in figure.axes[0].texts if text.get_text()]
    assert [text.get_text() for text in numbers] == ["2.0", "1.0", "0.50"]
    places = [text.xy[1] for text in numbers]  # type: ignore[attr-defined]
    assert places == sorted(places, reverse=True)
    assert min(high - low for high, low in pairwise(places)) > 0.3


def test_barriers_too_low_to_be_seen_have_no_arrow() -> None:
    low = Curve(LAM, {"loss": (0.0, 0.05, 0.1, 0.05, 0.0)})
    assert len(arrows(plot.curve({"naive": NAIVE, "aligned": low}, metrics=["loss"], barrier="mean"))) == 1
    assert len(arrows(plot.curve({"aligned": low}, metrics=["loss"], barrier="mean"))) == 1
    level = Curve(LAM, {"loss": (1.0,) * 5})
    assert arrows(plot.curve(level, barrier="chord")) == []


def test_only_common_metrics_are_drawn_by_default() -> None:
    figure = plot.curve({"one": NAIVE, "two": Curve(LAM, {"accuracy": (0.5,) * 5})})
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy"]


def test_axes_of_the_users_own() -> None:
    figure = Figure()
    panels = figure.subplots(1, 2)
    assert plot.curve(NAIVE, axes=panels, title="MLP") is figure
    assert panels[0].get_title(loc="left") == "MLP"
    single = Figure().subplots()
    assert plot.curve({"naive": NAIVE}, metrics=["loss"], axes=single) is single.figure
    legend = single.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["naive"]
    assert not single.figure.legends, "a figure of the user's own is not changed around the axes"


def test_the_figure_can_be_saved(tmp_path: Path) -> None:
    plot.curve({"naive": NAIVE, "aligned": ALIGNED}).savefig(tmp_path / "curve.png", dpi=100)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_settings_are_not_touched() -> None:
    before = dict(mpl.rcParams)
    plot.curve({"naive": NAIVE, "aligned": ALIGNED}).canvas.draw()
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_imported_only_when_drawing() -> None:
    code = "import sys, autoperm.plot; print([m for m in sys.modules if m.partition('.')[0] == 'matplotlib'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    surface = Surface(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), {"loss": (0.0, 0.0, 0.0)})
    estimate = Estimate(0.5, 0.4, 0.6, 0.95, (0.4, 0.6))
    reliability = Reliability((0.0, 1.0), (0.5,), (0.5,), (1,), "top-1")
    spec = PermutationSpec.from_patterns({"w": "h _"}, {"w": torch.zeros(3, 2)})
    monkeypatch.setattr(builtins, "__import__", without)
    draws: list[Callable[[], Any]] = [
        lambda: plot.curve(NAIVE),
        lambda: plot.surface(surface),
        lambda: plot.trend([1], {"naive": [estimate]}, xlabel="width"),
        lambda: plot.matching(torch.eye(2), torch.eye(2)),
        lambda: plot.reliability(reliability),
        lambda: plot.draw_spec(spec),
    ]
    assert len(draws) == len(plot.__all__)
    for draw in draws:
        with pytest.raises(ImportError, match=r'pip install "autoperm\[plot\]"'):
            draw()


def test_errors() -> None:
    with pytest.raises(SpecError, match="nothing to draw"):
        plot.curve({})
    with pytest.raises(SpecError, match="the curve 'b' has no metric 'risk'; it has 'loss', 'accuracy'"):
        plot.curve({"b": NAIVE}, metrics=["risk"])
    with pytest.raises(SpecError, match="the curve has no metric 'risk'"):
        plot.curve(NAIVE, metrics=["risk"])
    with pytest.raises(SpecError, match=r"give a list: \['loss'\]"):
        plot.curve(NAIVE, metrics="loss")
    with pytest.raises(SpecError, match="no metric to draw"):
        plot.curve({"a": NAIVE, "b": Curve(LAM, {"risk": (0.0,) * 5})})
    with pytest.raises(SpecError, match="1 axes for 2 metrics"):
        plot.curve(NAIVE, axes=[Figure().subplots()])

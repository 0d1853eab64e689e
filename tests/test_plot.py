"""Figures: what is drawn, and that nothing global changes."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from autoperm import Curve, plot
from autoperm.errors import SpecError

LAM = (0.0, 0.25, 0.5, 0.75, 1.0)
NAIVE = Curve(LAM, {"loss": (0.1, 1.0, 2.0, 1.0, 0.1), "accuracy": (0.9, 0.5, 0.1, 0.5, 0.9)})
ALIGNED = Curve(LAM, {"loss": (0.1, 0.2, 0.3, 0.2, 0.1), "accuracy": (0.9, 0.8, 0.8, 0.8, 0.9)})


def test_a_panel_for_each_metric() -> None:
    figure = plot.curve(NAIVE)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, values in zip(figure.axes, NAIVE.metrics.values(), strict=True):
        (line,) = axes.lines
        assert tuple(line.get_xdata()) == LAM  # type: ignore[arg-type]
        assert tuple(line.get_ydata()) == values  # type: ignore[arg-type]
        assert line.get_markevery() == [0, 4]
        assert axes.get_xlabel() == "λ  (0 = model A, 1 = model B)"
        assert axes.get_legend() is None


def test_naive_and_aligned_always_look_the_same() -> None:
    for curves in ({"naive": NAIVE, "aligned": ALIGNED}, {"aligned": ALIGNED, "naive": NAIVE}):
        axes = plot.curve(curves, metrics=["loss"]).axes[0]
        looks = {line.get_label(): (to_hex(line.get_color()).upper(), line.get_linestyle()) for line in axes.lines}
        assert looks == {"naive": ("#E69F00", "--"), "aligned": ("#0072B2", "-")}
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == list(curves)


def test_other_labels_differ_in_colour() -> None:
    axes = plot.curve({str(i): NAIVE for i in range(7)}, metrics=["loss"]).axes[0]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 7


def test_only_common_metrics_are_drawn_by_default() -> None:
    figure = plot.curve({"one": NAIVE, "two": Curve(LAM, {"accuracy": (0.5,) * 5})})
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy"]


def test_axes_of_the_users_own() -> None:
    figure = Figure()
    panels = figure.subplots(1, 2)
    assert plot.curve(NAIVE, axes=panels, title="MLP") is figure
    assert panels[0].get_title(loc="left") == "MLP"
    single = Figure().subplots()
    assert plot.curve(NAIVE, metrics=["loss"], axes=single) is single.figure


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

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "autoperm\[plot\]"'):
        plot.curve(NAIVE)


def test_errors() -> None:
    with pytest.raises(SpecError, match="no curves"):
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

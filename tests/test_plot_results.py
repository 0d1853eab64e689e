"""Figures of surfaces, trends, matchings and calibration: what is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from autoperm import Estimate, Reliability, Surface, plot
from autoperm.errors import SpecError


def simplex(count: int, steps: int) -> tuple[tuple[float, ...], ...]:
    """Barycentric coordinates of a grid."""

    def parts(rest: int, left: int) -> list[tuple[int, ...]]:
        if left == 1:
            return [(rest,)]
        return [(first, *others) for first in range(rest + 1) for others in parts(rest - first, left - 1)]

    return tuple(tuple(part / steps for part in point) for point in parts(steps, count))


GRID = simplex(3, 6)
HILL = Surface(GRID, {"loss": tuple(1.0 - max(w) + w[0] for w in GRID), "accuracy": tuple(max(w) for w in GRID)})
FLAT = Surface(GRID, {"loss": (0.5,) * len(GRID)})


def written(axes: Any) -> list[list[str]]:
    return [text.get_text().splitlines() for text in axes.texts]


def explained(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- surfaces -----------------------------------------------------------------------------------------------------


def test_every_point_of_a_surface_is_at_its_weights_with_its_value() -> None:
    figure = plot.surface(HILL)
    axes = figure.axes[0]
    mesh = axes.collections[0]
    corners = {"A": (0.0, 0.0), "B": (1.0, 0.0), "C": (0.5, math.sqrt(3) / 2)}
    wanted = {}
    for weights, value in zip(HILL.weights, HILL.metrics["loss"], strict=True):
        place = [sum(w * c[axis] for w, c in zip(weights, corners.values(), strict=True)) for axis in (0, 1)]
        wanted[round(place[0], 9), round(place[1], 9)] = value
    found = mesh._triangulation  # type: ignore[attr-defined]
    places = [(round(x, 9), round(y, 9)) for x, y in zip(found.x, found.y, strict=True)]
    assert dict(zip(places, mesh.get_array(), strict=True)) == wanted  # type: ignore[arg-type]
    assert written(axes) == [["A", "1"], ["B", "0"], ["C", "0"], ["average", "1"]]
    assert axes.get_aspect() == 1.0
    assert figure.axes[1].get_ylabel() == "loss"


def test_the_triangle_is_covered_once() -> None:
    """Triangles that a triangulation leaves out are holes in the map."""
    for steps in (1, 2, 7, 10):
        grid = simplex(3, steps)
        figure = plot.surface(Surface(grid, {"loss": tuple(float(i) for i in range(len(grid)))}))
        mesh = figure.axes[0].collections[0]._triangulation  # type: ignore[attr-defined]
        x, y = mesh.x[mesh.triangles], mesh.y[mesh.triangles]
        areas = abs((x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])) / 2
        assert areas.sum() == pytest.approx(math.sqrt(3) / 4)


def test_surfaces_share_a_scale_and_what_is_better_is_darker() -> None:
    figure = plot.surface({"naive": HILL, "aligned": FLAT})
    maps = [axes.collections[0] for axes in figure.axes[:2]]
    assert maps[0].get_clim() == maps[1].get_clim() == (0.0, max(HILL.metrics["loss"]))
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["naive", "aligned"]
    dark, bright = (sum(maps[0].get_cmap()(end)[:3]) for end in (0.0, 1.0))
    assert dark < bright
    figure = plot.surface(HILL, "accuracy", label="test accuracy")
    assert figure.axes[1].get_ylabel() == "test accuracy"
    map_ = figure.axes[0].collections[0]
    dark, bright = (sum(map_.get_cmap()(end)[:3]) for end in (1.0, 0.0))
    assert dark < bright


def test_of_train_and_test_a_surface_draws_test() -> None:
    both = Surface(GRID, {"train loss": HILL.metrics["loss"], "test loss": FLAT.metrics["loss"]})
    assert both.draw().axes[1].get_ylabel() == "test loss"
    assert both.draw(metric="train loss").axes[1].get_ylabel() == "train loss"
    assert HILL.draw().axes[1].get_ylabel() == "loss"


def test_a_level_surface_is_drawn() -> None:
    figure = plot.surface(FLAT)
    assert len(figure.axes[0].collections) == 1, "no line of equal height"
    figure.canvas.draw()


def test_a_face_of_more_models() -> None:
    grid = simplex(4, 3)
    four = Surface(grid, {"loss": tuple(float(sum(i * w for i, w in enumerate(point))) for point in grid)})
    axes = plot.surface(four, models=(3, 0, 2)).axes[0]
    assert written(axes) == [["D", "3"], ["A", "0"], ["C", "2"], ["average", "1.67"]]
    assert len(axes.collections[0].get_array()) == 10  # type: ignore[arg-type]
    named = plot.surface(four, models=(3, 0, 2), names=["x", "y", "z"]).axes[0]
    assert [text[0] for text in written(named)] == ["x", "y", "z", "average"]
    assert written(four.draw(models=(3, 0, 2)).axes[0]) == written(axes)
    for models in (None, (0, 1), (0, 1, 1), (0, 1, 4), (0, 1, -1)):
        with pytest.raises(SpecError, match=r"between 4; choose 3 of 0 to 3, such as models=\(0, 1, 2\)"):
            plot.surface(four, models=models)


def test_surfaces_that_cannot_be_drawn() -> None:
    with pytest.raises(SpecError, match="nothing to draw"):
        plot.surface({})
    with pytest.raises(SpecError, match="the surface 'a' has no metric 'risk'; it has 'loss', 'accuracy'"):
        plot.surface({"a": HILL}, "risk")
    with pytest.raises(SpecError, match="between 2; draw its edge"):
        plot.surface(Surface(((1.0, 0.0), (0.0, 1.0)), {"loss": (0.0, 1.0)}))
    with pytest.raises(SpecError, match="no value at model 1"):
        plot.surface(Surface(((1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)), {"loss": (0.0, 1.0, 0.0)}))
    with pytest.raises(SpecError, match="2 names for the 3 corners"):
        plot.surface(HILL, names=["A", "B"])
    with pytest.raises(SpecError, match="1 axes for 2 surfaces"):
        plot.surface({"a": HILL, "b": FLAT}, axes=Figure().subplots())


# --- trends -------------------------------------------------------------------------------------------------------

NAIVE = [Estimate(2.0, 1.5, 2.5, 0.95, (1.8, 2.2)), Estimate(1.9, 1.6, 2.2, 0.95, (1.8, 2.0))]
ALIGNED = [Estimate(0.8, 0.6, 1.0, 0.95, (0.7, 0.9)), Estimate(0.1, 0.0, 0.2, 0.95, (0.05, 0.15))]


def test_means_intervals_and_pairs_are_drawn() -> None:
    figure = plot.trend([1, 4], {"naive": NAIVE, "aligned": ALIGNED}, xlabel="width", ylabel="barrier (nats)", log=True)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("width", "barrier (nats)", "log")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]
    assert explained(figure) == ["naive", "aligned", "95 % interval", "a pair"]
    means = [line for line in axes.lines if line.get_linestyle() != "None"]
    pairs = [line for line in axes.lines if line.get_linestyle() == "None"]
    for line, dots, estimates in zip(means, pairs, (NAIVE, ALIGNED), strict=True):
        assert list(line.get_ydata()) == [item.value for item in estimates]  # type: ignore[arg-type]
        assert sorted(dots.get_ydata()) == sorted(v for item in estimates for v in item.values)  # type: ignore[arg-type]
        assert sorted(dots.get_xdata()) == [1, 1, 4, 4]  # type: ignore[arg-type]
        assert dots.get_markeredgecolor() == line.get_color()
    bands = axes.collections[::2]
    for band, estimates in zip(bands, (NAIVE, ALIGNED), strict=True):
        corners = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}  # type: ignore[union-attr]
        assert corners == {(x, end) for x, e in zip((1, 4), estimates, strict=True) for end in (e.low, e.high)}
    assert {to_hex(line.get_color()).upper() for line in means} == {"#E69F00", "#0072B2"}


def test_many_places_on_a_logarithmic_scale_are_written_as_numbers() -> None:
    figure = plot.trend([2**i for i in range(10)], {"naive": NAIVE * 5}, xlabel="width", log=True)
    figure.canvas.draw()
    written = {tick.get_text() for tick in figure.axes[0].get_xticklabels()}
    assert written <= {f"{2.0**i:g}" for i in range(-9, 20)}
    assert "16" in written


@pytest.mark.parametrize(
    ("draw", "kind"), [(plot.curve, "Curve"), (plot.surface, "Surface"), (plot.reliability, "Reli")]
)
@pytest.mark.parametrize("given", [[], NAIVE, NAIVE[0], {"a": NAIVE[0]}])
def test_what_is_no_result_of_the_kind(draw: Any, kind: str, given: Any) -> None:
    with pytest.raises(SpecError, match=f"a (list|Estimate|dict) cannot be drawn here; give a {kind}"):
        draw(given)
    with pytest.raises(SpecError, match=f"nothing to draw; give a {kind}"):
        draw({})


def test_trends_that_cannot_be_drawn() -> None:
    with pytest.raises(SpecError, match="nothing to draw"):
        plot.trend([], {"naive": []}, xlabel="width")
    with pytest.raises(SpecError, match="nothing to draw"):
        plot.trend([1], {}, xlabel="width")
    with pytest.raises(SpecError, match="'naive' has 2 estimates for 3 values of x"):
        plot.trend([1, 2, 3], {"naive": NAIVE}, xlabel="width")
    with pytest.raises(SpecError, match="x must rise"):
        plot.trend([4, 1], {"naive": NAIVE}, xlabel="width")
    with pytest.raises(SpecError, match=r"x begins with 0.*leave out this x, or log=True"):
        plot.trend([0, 1], {"naive": NAIVE}, xlabel="epoch", log=True)
    plot.trend([0, 1], {"naive": NAIVE}, xlabel="epoch").canvas.draw()


# --- matchings ----------------------------------------------------------------------------------------------------


def test_both_matrices_are_drawn_on_one_scale_around_zero() -> None:
    torch.manual_seed(0)
    before, after = torch.rand(5, 5) - 0.9, torch.rand(5, 5) - 0.1
    figure = plot.matching(before, after, title="units a")
    images = [axes.images[0] for axes in figure.axes[:2]]
    for image, matrix in zip(images, (before, after), strict=True):
        torch.testing.assert_close(torch.tensor(image.get_array()), matrix.double())
        low, high = image.get_clim()
        assert high == -low == max(float(m.abs().max()) for m in (before, after))
    names = [axes.get_title() for axes in figure.axes[:2]]
    assert names == [
        f"units a, {n}: diagonal {m.diagonal().mean():.2f}" for n, m in (("before", before), ("after", after))
    ]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["units of B", "units of B, permuted"]
    assert figure.axes[0].get_ylabel() == "units of A"
    assert figure.axes[2].get_ylabel() == "cosine similarity"


def test_of_a_large_matrix_each_block_shows_its_largest_number() -> None:
    size = 600
    after = torch.full((size, size), 0.01)
    after[torch.arange(size), torch.arange(size)] = 0.5
    after[0, 599] = -0.9
    figure = plot.matching(torch.zeros(size, size), after)
    image = figure.axes[1].images[0]
    drawn = torch.tensor(image.get_array())
    assert drawn.shape == (120, 120)
    torch.testing.assert_close(drawn.diagonal(), torch.full((120,), 0.5, dtype=torch.float64))
    assert float(drawn[0, 119]) == pytest.approx(-0.9)
    assert float(drawn[5, 9]) == pytest.approx(0.01)
    assert tuple(image.get_extent()) == (-0.5, 599.5, 599.5, -0.5)
    assert figure.axes[2].get_ylabel() == "cosine similarity, largest of 5 x 5"


def test_matrices_that_cannot_be_drawn() -> None:
    square = torch.eye(3)
    with pytest.raises(SpecError, match=r"after has shape \[2, 3\]"):
        plot.matching(square, torch.zeros(2, 3))
    with pytest.raises(SpecError, match="before has 3 units and after has 4"):
        plot.matching(square, torch.eye(4))
    with pytest.raises(SpecError, match="before has NaN"):
        plot.matching(square * math.nan, square)
    with pytest.raises(SpecError, match="1 axes for 2 matrices"):
        plot.matching(square, square, axes=[Figure().subplots()])
    plot.matching(torch.zeros(2, 2), torch.zeros(2, 2)).canvas.draw()


# --- calibration --------------------------------------------------------------------------------------------------

SURE = Reliability((0.0, 0.5, 0.75, 1.0), (0.4, None, 0.9), (0.3, None, 0.7), (10, 0, 30), "top-1")


def test_reliability_is_drawn_where_there_are_predictions() -> None:
    figure = plot.reliability({"A": SURE, "ensemble": SURE})
    upper, lower = figure.axes
    curve, other, diagonal = upper.lines
    assert list(curve.get_xdata()) == [0.4, 0.9]  # type: ignore[arg-type]
    assert list(curve.get_ydata()) == [0.3, 0.7]  # type: ignore[arg-type]
    assert curve.get_color() != other.get_color() == "#000000"
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]  # type: ignore[arg-type]
    assert explained(figure) == ["A (ECE 0.175)", "ensemble (ECE 0.175)", "calibrated"]
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_yscale()) == ("accuracy", "confidence", "log")
    stairs: Any = lower.patches[0]
    assert tuple(stairs.get_data().values) == SURE.count
    assert tuple(stairs.get_data().edges) == SURE.edges
    figure.canvas.draw()


def test_one_versus_rest_has_other_axes() -> None:
    classes = Reliability(SURE.edges, SURE.confidence, SURE.frequency, SURE.count, "one-vs-rest")
    panels = Figure().subplots(2, 1)
    assert plot.reliability(classes, axes=panels, title="test") is panels[0].figure
    assert panels[0].get_ylabel() == "share that is true"
    assert panels[1].get_xlabel() == "predicted probability"
    assert panels[0].get_title(loc="left") == "test"
    legend = panels[0].get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "ECE 0.175"
    with pytest.raises(SpecError, match="different kinds, one-vs-rest, top-1"):
        plot.reliability({"a": classes, "b": SURE})
    with pytest.raises(SpecError, match="nothing to draw"):
        plot.reliability({})
    with pytest.raises(SpecError, match="1 axes for 2 panels"):
        plot.reliability(SURE, axes=[panels[0]])


# --- all of them --------------------------------------------------------------------------------------------------


def test_pictures_are_saved_without_a_change_of_settings(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figures = [
        plot.surface({"naive": HILL, "aligned": FLAT}),
        plot.trend([1, 2], {"naive": NAIVE}, xlabel="width"),
        plot.matching(torch.eye(9), torch.eye(9)),
        plot.reliability({"A": SURE}),
    ]
    for figure in figures:
        for ending in ("png", "pdf"):
            figure.savefig(tmp_path / f"figure.{ending}", dpi=50)
    assert dict(mpl.rcParams) == before

"""The picture of a specification: rows, rails, dots and letters; that nothing overlaps or is cut off."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import Traced
from hypothesis import given
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from networks import NETWORKS
from strategies import specs
from torch import nn

from autoperm import PermutationSpec, plot
from autoperm.rails import Map, Stop, lay_out

Trace = Callable[[str], Traced]


def spec_of(patterns: dict[str, str], shapes: dict[str, tuple[int, ...]], **over: list[str]) -> PermutationSpec:
    like = {name: torch.empty(shape) for name, shape in shapes.items()}
    return PermutationSpec.from_patterns(patterns, like, over=over)


def chain(*prefixes: str) -> PermutationSpec:
    """Layers that read a stream of 4 and write it, each by hidden units of its own."""
    patterns, shapes = {}, {}
    for i, prefix in enumerate(prefixes):
        patterns |= {f"{prefix}up.weight": f"h{i} c", f"{prefix}down.weight": f"c h{i}"}
        shapes |= {f"{prefix}up.weight": (6, 4), f"{prefix}down.weight": (4, 6)}
    return spec_of({"stem.weight": "c _", **patterns}, {"stem.weight": (4, 2), **shapes})


def labels(layout: Map) -> list[str]:
    return [row.label for row in layout.rows]


# --- rows ---------------------------------------------------------------------------------------------------------


def test_layers_are_rows_and_norms_join_the_layer_before() -> None:
    model = nn.Module()
    model.conv, model.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    model.inner = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))
    model.scale = nn.Parameter(torch.ones(4))
    patterns = {"conv.weight": "a _ _ _", "conv.bias": "a", "inner.0.weight": "b a", "inner.0.bias": "b", "scale": "b"}
    patterns |= {f"norm.{name}": "a" for name in ("weight", "bias", "running_mean", "running_var")}
    patterns |= {"inner.1.weight": "b", "inner.1.bias": "b"}
    order = [name for name in model.state_dict() if name in patterns]
    layout = lay_out(PermutationSpec.from_patterns({name: patterns[name] for name in order}, model))
    assert labels(layout) == ["scale", "conv, norm", "inner.0, 1"]
    assert [row.pattern for row in layout.rows] == ["b", "a _ _ _", "b a"]
    assert len(layout.rows[1].tensors) == 6


def test_a_norm_of_other_channels_has_a_row_of_its_own() -> None:
    spec = spec_of(
        {"a.weight": "a _", "b.weight": "b", "c.weight": "_ b"},
        {"a.weight": (3, 2), "b.weight": (4,), "c.weight": (1, 4)},
    )
    assert labels(lay_out(spec)) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["weight_norm_mlp", "lstm", "gpt", "unet"])
def test_every_tensor_is_in_one_row(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    layout = lay_out(spec)
    assert Counter(tensor for row in layout.rows for tensor in row.tensors) == Counter(list(spec.patterns))
    assert not any("parametrizations" in label for label in labels(layout))


# --- rails --------------------------------------------------------------------------------------------------------


def test_a_rail_stops_where_a_layer_carries_its_factor() -> None:
    rails = {rail.factor.name: rail for rail in lay_out(chain("", "x.")).rails}
    assert rails["c"].stops == (
        Stop(0, True, False), Stop(1, False, True), Stop(2, True, False), Stop(3, False, True), Stop(4, True, False),
    )  # fmt: skip
    assert rails["h0"].stops == (Stop(1, True, False), Stop(2, False, True))
    assert rails["h1"].stops == (Stop(3, True, False), Stop(4, False, True))


def test_a_recurrent_layer_carries_its_units_on_both_axes(traced: Trace) -> None:
    first = lay_out(traced("bilstm").spec).rails[0]
    assert first.stops == (Stop(0, True, True), Stop(1, False, True))


def test_streams_stand_left_of_what_is_inside_blocks() -> None:
    layout = lay_out(chain("", "x.", "y.", "z."))
    assert {rail.factor.name: rail.lane for rail in layout.rails} == {"c": 0, "h0": 1, "h1": 1, "h2": 1, "h3": 1}
    assert layout.lanes == 2


def test_what_varies_over_another_stands_right_of_it_and_says_so() -> None:
    spec = spec_of({"w": "(h=4 d) c", "v": "_ (h d)"}, {"w": (12, 5), "v": (2, 12)}, d=["h"])
    rails = {rail.factor.name: rail for rail in lay_out(spec).rails}
    assert [rails[name].label for name in "hdc"] == ["h 4", "d 3 each h", "c 5"]
    assert rails["d"].lane == rails["h"].lane + 1
    assert [rails[name].root for name in "hdc"] == ["h", "h", "c"]
    assert [rails[name].inner for name in "hdc"] == [False, True, False]


def test_sisters_that_do_not_meet_share_a_lane() -> None:
    patterns = {f"w{i}": f"(h=2 {name}=3)" for i, name in enumerate("ddeef")} | {"w5": "(h f)"}
    spec = spec_of(patterns, dict.fromkeys(patterns, (6,)), d=["h"], e=["h"], f=["h"])
    assert {rail.factor.name: rail.lane for rail in lay_out(spec).rails} == {"h": 0, "d": 1, "e": 1, "f": 1}


def test_what_varies_over_pinned_factors_alone_is_a_group() -> None:
    (rail,) = lay_out(spec_of({"w": "p! f"}, {"w": (5, 3)}, f=["p"])).rails
    assert rail.root == "f"
    assert rail.label == "f 3 each p"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_free_factor_of_a_network_is_a_rail(name: str, traced: Trace) -> None:
    spec = traced(name).spec
    layout = lay_out(spec, fold=False)
    assert {rail.factor for rail in layout.rails} == set(spec.free)
    assert {rail.root for rail in layout.rails} == {factor.name for factor in spec.groups}
    check_lanes(layout)


@given(specs())
def test_rails_in_one_lane_do_not_meet(spec: PermutationSpec) -> None:
    check_lanes(lay_out(spec))


def check_lanes(layout: Map) -> None:
    for one, other in combinations(layout.rails, 2):
        if one.lane == other.lane:
            assert one.stops[-1].row < other.stops[0].row or other.stops[-1].row < one.stops[0].row
    for rail in layout.rails:
        assert list(rail.stops) == sorted(rail.stops, key=lambda stop: stop.row)


# --- folding ------------------------------------------------------------------------------------------------------

BLOCKS = [f"layers.{i}." for i in range(5)]


def test_blocks_that_are_alike_are_folded() -> None:
    layout = lay_out(chain(*BLOCKS))
    assert labels(layout) == ["stem", "layers.0.up", "layers.0.down", "layers.1 to 4: like 0"]
    assert layout.rows[-1].folded
    assert len(layout.rows[-1].tensors) == 8
    assert [rail.factor.name for rail in layout.rails] == ["c", "h0"]
    assert layout.rails[0].stops[-1] == Stop(3, False, False), "the stream goes on through the folded blocks"
    assert len(lay_out(chain(*BLOCKS), fold=False).rows) == 11


@pytest.mark.parametrize("prefixes", [BLOCKS[:2], [f"layer{i}." for i in "abcd"], ["x.0.", "y.0.", "z.0."]])
def test_what_is_not_numbered_three_times_is_not_folded(prefixes: list[str]) -> None:
    assert not any(row.folded for row in lay_out(chain(*prefixes)).rows)


def test_numbers_at_the_end_of_a_name_count() -> None:
    assert labels(lay_out(chain("e.layer_8.", "e.layer_9.", "e.layer_10.")))[-1] == "e.layer_9 to 10: like 8"


def test_blocks_in_blocks_are_folded() -> None:
    layout = lay_out(chain(*(f"s.{i}.b.{j}." for i in range(3) for j in range(4))))
    assert labels(layout) == ["stem", "s.0.b.0.up", "s.0.b.0.down", "s.0.b.1 to 3: like 0", "s.1 to 2: like 0"]


def altered(**changes: tuple[str, tuple[int, ...]]) -> PermutationSpec:
    whole = chain(*BLOCKS)
    patterns = {name: " ".join(map(str, pattern)) for name, pattern in whole.patterns.items()}
    shapes = dict(whole.shapes)
    for name, (pattern, shape) in changes.items():
        patterns[f"layers.2.{name}.weight"], shapes[f"layers.2.{name}.weight"] = pattern, shape
    return spec_of(patterns, shapes)


@pytest.mark.parametrize(
    "spec",
    [
        altered(up=("h2 c", (7, 4)), down=("c h2", (4, 7))),
        altered(up=("h2 _", (6, 4))),
        altered(up=("c h2", (4, 6))),
        altered(up=("h1 c", (6, 4)), down=("c h1", (4, 6))),
        altered(gate=("h2 c", (6, 4))),
        altered(down=("_ h2", (4, 6))),
        altered(up=("h2 (c=4 2)", (6, 8))),
        altered(up=("h2 c _", (6, 4, 3))),
    ],
    ids=["size", "pin", "axis", "shared", "layer", "stream", "product", "window"],
)
def test_a_block_that_differs_is_shown(spec: PermutationSpec) -> None:
    assert not any(row.folded for row in lay_out(spec).rows)


# --- the figure ---------------------------------------------------------------------------------------------------


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_what_is_drawn(traced: Trace) -> None:
    spec = traced("residual_cnn").spec
    layout = lay_out(spec)
    (axes,) = spec.draw().axes
    written = texts(axes)
    assert written[0] == f"4 groups, 10^{spec.log10_order:.1f} permutations"
    for row in layout.rows:
        assert {row.label, row.pattern} <= set(written)
    rails = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert [list(line.get_ydata()) for line in rails] == [[r.stops[0].row, r.stops[-1].row] for r in layout.rails]  # type: ignore[arg-type]
    assert len({line.get_color() for line in rails}) == len(layout.rails) == 4
    for line, rail in zip(rails, layout.rails, strict=True):
        assert rail.label in written
        dots = [dot for dot in axes.lines if dot.get_marker() == "o" and dot.get_xdata()[0] == line.get_xdata()[0]]  # type: ignore[index]
        mine = [dot for dot in dots if to_hex(dot.get_markeredgecolor()) == to_hex(line.get_color())]
        rings = [dot.get_ydata()[0] for dot in mine if dot.get_markerfacecolor() == "white"]  # type: ignore[index]
        full = [dot.get_ydata()[0] for dot in mine if dot.get_markerfacecolor() != "white"]  # type: ignore[index]
        assert rings == [stop.row for stop in rail.stops if stop.later]
        assert full == [stop.row for stop in rail.stops if stop.first]


def check_letters(figure: Figure) -> None:
    """No two texts overlap, none stands on a dot, and none leaves the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, box), (other, another) in combinations(boxes.items(), 2):
        assert not box.shrunk(0.9, 0.7).overlaps(another), (one, other)
    dots = [line.get_window_extent(renderer) for line in figure.axes[0].lines if line.get_marker() == "o"]
    for text, box in boxes.items():
        assert not any(box.shrunk(0.9, 0.7).overlaps(dot) for dot in dots), text


@pytest.mark.parametrize("name", NETWORKS)
def test_letters_of_networks_neither_overlap_nor_are_cut_off(name: str, traced: Trace) -> None:
    check_letters(traced(name).spec.draw())


@given(specs())
def test_letters_never_overlap(spec: PermutationSpec) -> None:
    check_letters(spec.draw())


def test_long_patterns_are_cut(traced: Trace) -> None:
    parts = [f"({' + '.join(f'part{i}=2' for i in range(20))})"]
    figure = spec_of({"w": parts[0]}, {"w": (40,)}).draw()
    assert any(text.endswith("…") for text in texts(figure.axes[0]))
    check_letters(figure)


def test_a_long_title_is_not_cut_off() -> None:
    check_letters(chain("x.").draw(title="Where the units of this network may go " * 3))


def test_the_figure_grows_with_the_model(traced: Trace) -> None:
    small, large = (traced(name).spec.draw().get_figheight() for name in ("mlp", "resnet50"))
    assert 1 < small < 3 < large < 20


def test_groups_that_run_side_by_side_differ_in_colour(traced: Trace) -> None:
    layout = lay_out(traced("resnet50").spec)
    rails = [line for line in traced("resnet50").spec.draw().axes[0].lines if line.get_linewidth() == 3]
    solid = [to_hex(line.get_color()) for line in rails if line.get_linestyle() == "-"]
    for (one, a), (other, b) in combinations(zip(layout.rails, solid, strict=True), 2):
        if one.stops[0].row <= other.stops[-1].row + 1 and other.stops[0].row <= one.stops[-1].row + 1:
            assert a != b, (one.label, other.label)


def test_own_axes_a_title_and_nothing_to_fold() -> None:
    axes = Figure().subplots()
    spec = chain(*BLOCKS)
    assert plot.draw_spec(spec, axes=axes, fold=False, title="Five blocks") is axes.figure
    assert texts(axes)[0] == "Five blocks"
    assert "layers.4.down" in texts(axes)


def test_a_specification_without_groups_is_drawn() -> None:
    assert texts(spec_of({"w": "_"}, {"w": (3,)}).draw().axes[0])[0] == "0 groups, 10^0.0 permutations"
    assert len(PermutationSpec({}, {}, {}).draw().axes) == 1


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_it_is_saved(ending: str, tmp_path: Path, traced: Trace) -> None:
    traced("gpt").spec.draw(tmp_path / f"spec.{ending}")
    assert (tmp_path / f"spec.{ending}").stat().st_size > 1000


def test_without_the_drawing_library_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "import autoperm\n"
        "try: autoperm.PermutationSpec({}, {}, {}).draw()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "autoperm[plot]"' in done.stdout, done.stderr

"""LSTM, GRU and RNN: whole layers in one call, each layer and direction with its own hidden units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..cutting import cut, restrict
from ..graph import Value
from ..joining import concatenate
from ..terms import factor
from .context import Axes, Context, Rule


def _recurrent(gates: int) -> Rule:
    """Gates are ordered blocks of the hidden units; the same units come out of a step and go into the next."""

    def rule(
        ctx: Context,
        input: Value,
        hx: Any,
        params: Sequence[Value],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> list[Axes]:
        states = [hx] if isinstance(hx, Value) else list(hx)
        directions = 2 if bidirectional else 1
        per_layer = len(params) // (num_layers * directions)
        projected = gates == 4 and per_layer == (5 if has_biases else 3)
        sequence = ctx.axes(input)
        last: list[list[Axes]] = [[] for _ in states]
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                weights = [ctx.axes(value) for value in params[index * per_layer : (index + 1) * per_layer]]
                initial = [_state(ctx.axes(state), index) for state in states]
                output, finals = _layer(ctx, gates, sequence, weights, initial, batch_first, has_biases, projected)
                outputs.append(output)
                for found, final in zip(last, finals, strict=True):
                    found.append([factor(1), *final])
            sequence = concatenate(outputs, len(sequence) - 1)
        return [sequence, *(concatenate(found, 0) for found in last)]

    return rule


def _state(axes: Axes, index: int) -> Axes:
    """The initial state of one layer and direction."""
    piece, handles = cut(axes[0], index, index + 1)
    del piece
    return [restrict(axis, handles) for axis in axes[1:]]


def _layer(
    ctx: Context,
    gates: int,
    sequence: Axes,
    weights: Sequence[Axes],
    initial: Sequence[Axes],
    batch_first: bool,
    has_biases: bool,
    projected: bool,
) -> tuple[Axes, list[Axes]]:
    gate = f"({gates} h)" if gates > 1 else "h"
    out = "r" if projected else "h"
    time = ["s!"] if len(sequence) == 2 else ["b", "s!"] if batch_first else ["s!", "b"]
    batch = "b " if len(sequence) == 3 else ""
    operands = [" ".join([*time, "i"]), f"{gate} i", f"{gate} {out}"]
    operands += [gate, gate] * has_biases
    operands += ["r h"] * projected
    states = [batch + out, batch + "h"][: len(initial)]
    results = [" ".join([*time, out]), *states]
    row = f"{', '.join([*operands, *states])} -> {batch}h, {batch}{out} -> {', '.join(results)}"
    shapes = [(*(axis.size for axis in sequence[:-1]), initial[0][-1].size)]
    shapes += [tuple(axis.size for axis in state) for state in initial]
    output, *finals = ctx.bind(row, [sequence, *weights, *initial], shapes)
    return output, finals


def _cell(gates: int) -> Callable[..., str]:
    def row(input: Value, hx: Any, w_ih: Value, w_hh: Value, b_ih: Any = None, b_hh: Any = None) -> str:
        gate = f"({gates} h)" if gates > 1 else "h"
        batch = "b " * (input.ndim - 1)
        states = [f"{batch}h"] * (1 if isinstance(hx, Value) else len(hx))
        biases = [gate for bias in (b_ih, b_hh) if bias is not None]
        operands = [f"{batch}i", *states, f"{gate} i", f"{gate} h", *biases]
        return f"{', '.join(operands)} -> {', '.join(states)}"

    return row


RECURRENT_RULES: dict[str, Rule] = {
    "aten.lstm": _recurrent(4),
    "aten.gru": _recurrent(3),
    "aten.rnn_tanh": _recurrent(1),
    "aten.rnn_relu": _recurrent(1),
}

CELL_SIGNATURES: dict[str, Callable[..., str]] = {
    "aten.lstm_cell": _cell(4),
    "aten.gru_cell": _cell(3),
    "aten.rnn_tanh_cell": _cell(1),
    "aten.rnn_relu_cell": _cell(1),
}

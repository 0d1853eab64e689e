"""A model, and example inputs, to a functional graph. The only file that knows ``torch.export``.

What the exporter cannot take, because its Python looks at the values of tensors, is recorded: :mod:`autoperm.record`.

``export(...).run_decompositions({})`` gives the level that rules want: structured operations stay whole (``linear``,
``conv2d``, ``layer_norm``, ``scaled_dot_product_attention``, ``lstm``), and writes in place become functional ones
(``slice_scatter``, ``copy``). A rule that ignored a write through a view would be unsound.

The model is never touched. It is copied without its weights' memory: the copy's parameters share the storage of the
originals, which tracing under fake tensors does not write to.
"""

from __future__ import annotations

import io
import logging
import operator
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .boundary import finish, model_values
from .copies import copy_model
from .errors import TraceError
from .graph import Call, Graph, Value, Where
from .record import record

_FOLD_LIMIT = 1 << 22
"""Constants of more elements than this are not evaluated; their axes are pinned."""

_NOISE = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "_set_grad_enabled")
_SOURCE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n\s*(?P<code>[^\n]*)')


def trace(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Graph:
    """Trace a model in evaluation mode to a functional graph.

    Args:
        model: any module; it is left as it is, including its mode, caches, buffers and gradients.
        args: positional example inputs.
        kwargs: example inputs by name.

    Returns:
        The graph. Its notes say where it stands for less than the whole model: a path that depends on data, random
        numbers.

    Raises:
        TraceError: if the model does not run on the inputs, or can be neither exported nor recorded.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.zeros(2, 3),))
        >>> [str(call.op) for call in graph.calls]
        ['aten.linear.default', 'aten.relu.default']
    """
    for where, value in [*enumerate(args), *(kwargs or {}).items()]:
        if isinstance(value, nn.Module):
            raise TraceError(f"example input {where!r} is a module; pass tensors")
    replica = copy_model(model, share_parameters=True).eval()
    positional, named = tuple(args), dict(kwargs or {})
    try:
        exported = _export(replica, positional, named)
    except Exception as refusal:  # whatever the user's forward or the exporter may raise
        return _record_instead(model, positional, named, refusal)
    try:
        return _read(exported, replica)
    except GuardOnDataDependentSymNode as refusal:  # exported, but with sizes that only data decides
        return _record_instead(model, positional, named, refusal)


@contextmanager
def quiet() -> Generator[None]:
    """Hold back what torch prints, logs and warns of when a model does not trace: the error that we raise says it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    with torch.no_grad(), quiet():
        exported: ExportedProgram = torch.export.export(model, args, kwargs, strict=False)
        functional: ExportedProgram = exported.run_decompositions({})
        return functional


def _record_instead(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], refusal: Exception) -> Graph:
    """Record a model that cannot be exported.

    Raises:
        TraceError: if that fails too; it says whether the inputs are at fault.
    """
    name, source, inputs = type(model).__name__, _user_line(refusal), describe_inputs(args, kwargs)
    why = f"torch.export cannot take {name}: {_first_line(refusal)}" + (f", at {source}" if source else "")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        if not _needs_values(refusal):
            raise _unrunnable(name, inputs, refusal) from refusal
        raise TraceError(
            f"{why}\n  It could be recorded in one run, but its weights are on the meta device, without values\n"
            f"  traced with: {inputs}\n  Give it weights: model.to_empty(device='cpu') and any initial values"
        ) from refusal
    try:
        with quiet():
            return record(model, args, kwargs, [f"{why}; it was recorded instead, in one run on the example inputs"])
    except Exception as problem:  # whatever the user's forward may raise
        failure = _failure(model, args, kwargs)
        if failure is not None:
            raise _unrunnable(name, inputs, failure) from failure
        raise TraceError(
            f"{name} can be neither exported nor recorded\n  {why}\n  recording: {problem}\n  traced with: {inputs}\n"
            "  Pass a specification written by hand: autoperm.PermutationSpec.from_patterns({...})"
        ) from problem


def _unrunnable(name: str, inputs: str, error: Exception) -> TraceError:
    return TraceError(
        f"{name} does not run on the example inputs ({inputs})\n  {type(error).__name__}: {_first_line(error)}\n"
        "  Pass inputs that its forward accepts: example_inputs=(tensor, ...)"
    )


def _needs_values(error: Exception) -> bool:
    """Tell whether an error is about values that a tensor without data does not have."""
    text = str(error) + repr(type(error))
    return bool(re.search(r"data.?dependent|Could not guard|\.item\(\)|unbacked|meta tensors", text, re.IGNORECASE))


def _failure(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """Run a model as it is and return what it raises."""
    try:
        with torch.no_grad(), quiet():
            copy_model(model).eval()(*args, **kwargs)
    except Exception as error:  # whatever the user's forward may raise
        return error
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Write dtypes and shapes of inputs."""

    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        return type(value).__name__

    return ", ".join([*map(one, args), *(f"{key}={one(value)}" for key, value in kwargs.items())]) or "no inputs"


def _user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's nor ours."""
    found, step = "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "/torch/" not in file and "/autoperm/" not in file and not file.startswith("<"):
            found = f"{file}:{step.tb_lineno} in {step.tb_frame.f_code.co_name}"
        step = step.tb_next
    return found


def _read(exported: ExportedProgram, model: nn.Module) -> Graph:
    values = model_values(model)
    nodes: dict[str, Any] = {}
    inputs: list[Value] = []
    constants = {**exported.constants, **exported.state_dict}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    calls: list[Call] = []
    outputs: list[Value] = []
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.target is not None and spec.target in values:
                nodes[node.name] = values[spec.target]
            elif spec.kind == InputKind.USER_INPUT:
                nodes[node.name] = _value(node, "input")
                if isinstance(nodes[node.name], Value):
                    inputs.append(nodes[node.name])
            else:
                nodes[node.name] = _value(node, "constant")
                data = constants.get(spec.target or "")
                if isinstance(data, Tensor) and isinstance(nodes[node.name], Value):
                    nodes[node.name].data = data.detach()
        elif node.op == "output":
            for spec, argument in zip(exported.graph_signature.output_specs, node.args[0], strict=True):
                value = _resolve(argument, nodes)
                if isinstance(value, Value) and spec.kind != OutputKind.LOSS_OUTPUT:
                    outputs.append(value)
        elif node.op == "get_attr":
            nodes[node.name] = getattr(exported.graph_module, node.target, None)
        elif node.target is operator.getitem and isinstance(nodes.get(node.args[0].name), tuple):
            nodes[node.name] = nodes[node.args[0].name][node.args[1]]
        elif not any(word in str(node.target) for word in _NOISE):
            call, result = _call(node, nodes)
            nodes[node.name] = result
            if call is not None:
                calls.append(call)
    return finish(model, values, calls, inputs, outputs)


def _value(node: torch.fx.Node, kind: str) -> Any:
    meta = node.meta.get("val")
    if isinstance(meta, Tensor):
        return Value(node.name, tuple(int(n) for n in meta.shape), kind)
    return meta


def _resolve(argument: Any, nodes: Mapping[str, Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return nodes[argument.name]
    if isinstance(argument, (list, tuple)):
        return [_resolve(item, nodes) for item in argument]
    return argument


def _call(node: torch.fx.Node, nodes: Mapping[str, Any]) -> tuple[Call | None, Any]:
    """Return the call for a node (None if it was folded) and what the node stands for."""
    op: Any = node.target
    args = tuple(_resolve(argument, nodes) for argument in node.args)
    kwargs = {key: _resolve(argument, nodes) for key, argument in node.kwargs.items()}
    meta = node.meta.get("val")
    many = isinstance(meta, (list, tuple))
    results = tuple(
        Value(f"{node.name}.{i}" if many else node.name, tuple(int(n) for n in item.shape))
        if isinstance(item, Tensor)
        else None
        for i, item in enumerate(meta if isinstance(meta, (list, tuple)) else [meta])
    )
    call = Call(op, args, kwargs, results, _where(node))
    fed = any(operand.fed for operand in call.operands())
    for result in results:
        if result is not None:
            result.fed = fed
    if all(operand.kind == "constant" for operand in call.operands()) and _fold(call):
        return None, results if many else results[0]
    return call, (results if many else results[0] if results[0] is not None else meta)


def _fold(call: Call) -> bool:
    """Compute a call that no parameter and no input feeds; tell whether that was possible."""
    op = call.op
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in op.tags:
        return False
    size = sum(torch.Size(result.shape).numel() for result in call.results if result is not None)
    if size > _FOLD_LIMIT or any(operand.data is None for operand in call.operands()):
        return False
    try:
        with torch.no_grad():
            made = op(*_data(call.args), **_data(call.kwargs))
    except Exception:  # whatever goes wrong in computing a constant early, the call itself stays in the graph
        return False
    for result, data in zip(call.results, made if isinstance(made, (list, tuple)) else [made], strict=True):
        if result is not None:
            result.kind, result.data = "constant", data
    return True


def _data(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.data
    if isinstance(argument, dict):
        return {key: _data(item) for key, item in argument.items()}
    if isinstance(argument, (list, tuple)):
        return type(argument)(_data(item) for item in argument)
    return argument


def _where(node: torch.fx.Node) -> Where:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(path) for path, _ in reversed(list(stack.values()))), "")
    found = [match for match in _SOURCE.finditer(node.meta.get("stack_trace") or "")]
    theirs = [match for match in found if "/torch/" not in match["file"]]
    source = f"{theirs[-1]['file']}:{theirs[-1]['line']}: {theirs[-1]['code']}" if theirs else ""
    return Where(path.removeprefix("L['self'].").removeprefix("L['self']"), source)

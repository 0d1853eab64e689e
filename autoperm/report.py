"""Results as text that a person likes to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .signature import format_pattern, names

if TYPE_CHECKING:
    from .spec import PermutationSpec

_MANY = 40
"""Tables of more rows than this are shortened in the middle."""


def table(rows: Sequence[Sequence[str]], *, indent: int = 2) -> str:
    """Align rows of text in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(" " * indent + line for line in lines)


def shorten(rows: list[list[str]]) -> list[list[str]]:
    """Leave out the middle of a long table, and say how much."""
    if len(rows) <= _MANY:
        return rows
    hidden = len(rows) - _MANY + 1
    gap = [f"... {hidden} more", *[""] * (len(rows[0]) - 1)]
    return [*rows[: _MANY // 2], gap, *rows[len(rows) - _MANY // 2 + 1 :]]


def describe_spec(spec: PermutationSpec) -> str:
    """Return a specification as text: its factors, its patterns, and what is pinned and why."""
    groups, free = len(spec.groups), len(spec.free)
    lines = [
        f"PermutationSpec: {groups} group{'s' * (groups != 1)}"
        + (f", {free - groups} more factor{'s' * (free - groups != 1)} inside" if free > groups else "")
        + f", {len(spec.patterns) - len(spec.tied)} tensors, 10^{spec.log10_order:.1f} permutations"
    ]
    if spec.factors:
        rows = [["factor", "size", "", "carried by"]]
        written = dict.fromkeys(name for pattern in spec.patterns.values() for name in names(pattern))
        for factor in (spec.factors[name] for name in written):
            over = f"for each {', '.join(factor.over)}" if factor.over else ""
            axes = spec.carriers[factor.name]
            shown = ", ".join(f"{tensor}[{axis}]" for tensor, axis in axes[:3])
            more = f" and {len(axes) - 3} more" if len(axes) > 3 else ""
            rows.append([factor.name + "!" * factor.pinned, str(factor.size), over, shown + more])
        lines += ["", table([rows[0], *shorten(rows[1:])])]
    if spec.patterns:
        rows = [["tensor", "shape", "pattern"]]
        for name, pattern in spec.patterns.items():
            tied = f"  (tied to {spec.tied[name]})" if name in spec.tied else ""
            rows.append([name, "x".join(map(str, spec.shapes[name])) or "scalar", format_pattern(pattern) + tied])
        lines += ["", table([rows[0], *shorten(rows[1:])])]
    reasons = pinned_because(spec)
    if reasons:
        lines += ["", "  pinned:", table(shorten(reasons), indent=4)]
    if spec.unknown:
        lines += ["", "  without a rule, so all their axes are pinned:"]
        lines += ["    " + text for text in spec.unknown]
    if spec.notes:
        lines += ["", *(f"  note: {note}" for note in spec.notes)]
    return "\n".join(lines)


def pinned_because(spec: PermutationSpec) -> list[list[str]]:
    """Return for each reason to pin the axes that it pins, most first; windows of one operation count as one reason."""
    axes: dict[str, list[str]] = {}
    for name, reasons in spec.reasons.items():
        for axis, reason in enumerate(reasons):
            if reason:
                axes.setdefault(reason.partition(", ")[0], []).append(f"{name}[{axis}]")
    count = Counter({reason: len(found) for reason, found in axes.items()})
    return [
        [f"{n} ax{'is' if n == 1 else 'es'}", reason, ", ".join(axes[reason][:2]) + (", ..." if n > 2 else "")]
        for reason, n in count.most_common()
    ]

"""The records of ``coverage.py`` as a page: the words stand in a template, numbers and tables come from here."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

Record = dict[str, Any]
Reference = dict[tuple[str, str], float]
"""By suite and name."""


TITLES = {
    "torchvision": "torchvision: image classifiers",
    "transformers": "transformers: from shrunken configurations",
    "modules": "Plain modules, and diffusers",
}
SLACK = 0.06
"""The reference is rounded to one digit after the point."""

ROUNDING = 1e-8


def page(records: Sequence[Record], reference_orders: Mapping[str, float], template: Path) -> str:
    """Fill the template."""
    ours = [record for record in records if record["tool"] == "autoperm"]
    # The reference goes by name; where two suites have a model of one name it is the first one's.
    first = {record["name"]: key(record) for record in reversed(ours)}
    reference = {first[name]: order for name, order in reference_orders.items() if name in first}
    peers = [record for record in records if record["tool"] != "autoperm"]
    suites = list(dict.fromkeys(record["suite"] for record in ours))
    tables = [block for suite in suites for block in suite_tables(suite, ours, reference)]
    return Template(template.read_text(encoding="utf-8")).substitute(
        summary=summary(ours, reference),
        versions=versions(records),
        exceptions=exceptions(ours, reference),
        tables="\n\n".join(tables),
        peers=peer_table(ours, peers, reference),
        unknown=unknown_operations(ours),
        probe=probe_misses(ours),
    )


# --- what a record says


def key(record: Record) -> tuple[str, str]:
    """Suite and name."""
    return record["suite"], record["name"]


def is_traced(record: Record) -> bool:
    """Whether there is a specification."""
    return record["status"] == "traced"


def is_sound(record: Record) -> bool:
    """Whether the group elements that were drawn left the function as it is."""
    return is_traced(record) and record["soundness"].get("sound") is True


def reaches(record: Record, reference: Reference) -> bool:
    """Whether a group is as large as the reference says."""
    return is_traced(record) and record["log10_order"] >= reference[key(record)] - SLACK


def ratio(record: Record) -> float:
    """Seconds to discover over seconds to trace."""
    return float(record["discover_s"] / record["trace_s"])


# --- pieces of Markdown


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    """Write a table; the last so many columns are numbers, to the right."""
    rule = ["---"] * (len(head) - numbers) + ["--:"] * numbers
    return "\n".join("| " + " | ".join(cells).replace("\n", " ") + " |" for cells in (head, rule, *rows))


def folded(title: str, text: str) -> str:
    """Write a block that opens on a click."""
    return f'??? note "{title}"\n\n' + "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def code(text: str) -> str:
    """Write a text as code, so that no character of it is markup, in a table too."""
    return "`" + text.replace("`", "'").replace("|", "/") + "`"


def count(n: int) -> str:
    """Write a large number in few characters."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return str(n)


def percent(numbers: Sequence[float]) -> str:
    """Write median and maximum."""
    return f"median {median(numbers):.1%}, at most {max(numbers):.1%}" if numbers else "-"


def summary(ours: Sequence[Record], reference: Reference) -> str:
    """The page in one table."""
    traced = [record for record in ours if is_traced(record)]
    known = [record for record in ours if key(record) in reference]
    sound = sum(map(is_sound, ours))
    narrow = sum(is_sound(record) and record["soundness"]["error"] > ROUNDING for record in ours)
    how = Counter("exported" if record["traced"] == "export" else record["traced"] for record in traced)
    probed = [record["probe"] for record in traced if record.get("probe") and "misses" in record["probe"]]
    alone = [record["soundness"]["alone"] for record in traced if "alone" in record["soundness"]]
    rows = [
        ["models", f"{len(ours)}"],
        ["traced", f"{len(traced)} (" + ", ".join(f"{n} {name}" for name, n in how.most_common()) + ")"],
        ["sound", f"{sound}" + (f", {narrow} of them to the float32 that they compute in inside" if narrow else "")],
        ["factors also checked alone", f"{sum(n for n, _ in alone)} of {sum(n for _, n in alone)}"],
        [
            "order of the group at least the reference's",
            f"{sum(reaches(record, reference) for record in known)} of {len(known)} that have one",
        ],
        ["models with an operation that no rule knows", f"{sum(bool(record['unknown']) for record in traced)}"],
        ["discover / trace", percent([ratio(record) for record in traced])],
        ["seconds to discover", f"{sum(record['discover_s'] for record in traced):.1f} in all"],
        ["seconds to trace", f"{sum(record['trace_s'] for record in traced):.0f} in all"],
    ]
    if probed:
        keys = ("misses", "checked", "missed_axes", "axes")
        misses, checked, missed, axes = (sum(probe[key] for probe in probed) for key in keys)
        rows += [
            ["symmetries that the probe found missed", f"{misses}, where {checked} classes of tied axes were permuted"],
            ["axes that these are on", f"{missed} of {axes} ({missed / max(axes, 1):.2%})"],
        ]
    return markdown(["", ""], rows)


def versions(records: Sequence[Record]) -> str:
    """What it was measured with."""
    found = {name: text for record in records for name, text in record.get("versions", {}).items()}
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread a process"
    marks = Counter(record["code"] for record in records if record["tool"] == "autoperm")
    mixed = "" if len(marks) < 2 else f" The records are of {len(marks)} states of the code."
    return ", ".join(f"{name} {text}" for name, text in found.items()) + f"; {machine}.{mixed}"


def suite_tables(suite: str, ours: Sequence[Record], reference: Reference) -> list[str]:
    """The models of a suite: what came out, and folded what is pinned and why."""
    records = [record for record in ours if record["suite"] == suite]
    head = ["model", "sound", "parameters", "nodes", "log10 order", "reference", "groups", "trace (s)", "discover (s)"]
    rows = []
    for record in records:
        floor = f"{reference[key(record)]:.1f}" if key(record) in reference else ""
        if not is_traced(record):
            size = count(record["parameters"]) if "parameters" in record else ""
            rows.append([code(record["name"]), record["status"], size, "", "", floor, "", "", ""])
            continue
        order = f"{record['log10_order']:.1f}"
        less = key(record) in reference and not reaches(record, reference)
        rows.append(
            [
                code(record["name"]),
                verdict(record["soundness"]),
                count(record["parameters"]),
                f"{record['nodes']}" + ("*" if record["traced"] != "export" else ""),
                f"**{order}**" if less else order,
                floor,
                str(record["groups"]),
                f"{record['trace_s']:.2f}",
                f"{record['discover_s']:.3f} ({ratio(record):.1%})",
            ]
        )
    traced = [record for record in records if is_traced(record)]
    details = markdown(["model", "pinned axes", "why"], [pin_row(record) for record in traced])
    checks = markdown(
        ["model", "error", "a wrong permutation's", "alone", "missed, by the probe"],
        [check_row(record) for record in traced],
    )
    return [
        f"### {TITLES.get(suite, suite)}",
        markdown(head, rows, numbers=7),
        folded(f"{suite}: what is pinned, and why", details),
        folded(f"{suite}: how soundness was judged", checks),
    ]


def verdict(soundness: Record) -> str:
    """One word on soundness."""
    if soundness.get("sound") is None:
        return "not judged"
    if not soundness["sound"]:
        return "**no**"
    return "yes" if soundness["error"] <= ROUNDING else "yes (float32)"


def pin_row(record: Record) -> list[str]:
    """How many axes are pinned, and the reasons that pin most."""
    pins = record["pins"]
    merged: Counter[str] = Counter()
    for reason, n in pins["reasons"]:
        merged[reason.partition(" '")[0]] += n
    top = "; ".join(f"{n} {reason}" for reason, n in merged.most_common(5))
    return [code(record["name"]), f"{pins['pinned']} of {pins['axes']}", top.replace("|", "/")]


def check_row(record: Record) -> list[str]:
    """The numbers behind a verdict."""
    soundness, probe = record["soundness"], record.get("probe")
    probed = "" if not probe else probe.get("problem") or probe_cell(probe)
    if "error" not in soundness:
        return [code(record["name"]), code(soundness["problem"][:120]), "", "", probed]
    wrong = "" if soundness["wrong"] is None else f"{soundness['wrong']:.0e}"
    alone = "{} of {}".format(*soundness["alone"])
    return [code(record["name"]), f"{soundness['error']:.0e}", wrong, alone, probed]


def probe_cell(probe: Record) -> str:
    """What the probe found, and what it could not look at."""
    rest = [f"{probe[key]} {key}" for key in ("unexercised", "unreached") if probe[key]]
    found = f"{probe['misses']}, {probe['missed_axes']} of {probe['axes']} axes"
    return found + (f" ({', '.join(rest)})" if rest else "")


def exceptions(ours: Sequence[Record], reference: Reference) -> str:
    """What is not as it should be, each with its reason."""
    lines = []
    for record in ours:
        name = code(record["name"])
        if not is_traced(record):
            lines.append(f"* {name}: {record['status']}. {code(first_line(record['problem']))}")
            continue
        soundness = record["soundness"]
        if soundness.get("sound") is None:
            lines.append(f"* {name}: not judged. {code(first_line(soundness['problem']))}")
        elif not soundness["sound"]:
            factors = ", ".join(soundness["guilty"]) or "none alone"
            lines.append(
                f"* {name}: **not sound**: a difference of {soundness['error']:.1e}, where a wrong permutation makes "
                f"{soundness['wrong'] or float('nan'):.1e}; factors that do so alone: {factors}."
            )
        if key(record) in reference and not reaches(record, reference):
            floor = reference[key(record)]
            lines.append(f"* {name}: finds 10^{record['log10_order']:.1f}, the reference has 10^{floor:.1f}.")
    return "\n".join(lines) or "Nothing: every model is traced, sound, and as large as its reference."


def first_line(text: str) -> str:
    """The first lines of an error, not too long, without the folders of the machine it was measured on."""
    line = " ".join(" ".join(text.strip().splitlines()[:2]).split())
    line = re.sub(r"/\S*/(?:site-packages|lib/python[\d.]+)/", "", line)
    return line if len(line) <= 220 else line[:217] + "..."


def unknown_operations(ours: Sequence[Record]) -> str:
    """Operations without a rule, by how many models have them."""
    found: dict[str, list[str]] = {}
    for record in filter(is_traced, ours):
        for op in record["unknown"]:
            found.setdefault(op, []).append(record["name"])
    rows = [
        [code(op), str(len(names)), ", ".join(map(code, names[:4])) + (", ..." if len(names) > 4 else "")]
        for op, names in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    return markdown(["operation", "models", "such as"], rows) if rows else "None: every operation met has a rule."


def probe_misses(ours: Sequence[Record]) -> str:
    """What the probe found free though it is pinned."""
    lines = []
    for record in filter(is_traced, ours):
        probe = record.get("probe") or {}
        if probe.get("missed"):
            more = probe["misses"] - len(probe["missed"][:3])
            shown = "; ".join(code(first_line(" ".join(" ".join(text[:2]).split()))) for text in probe["missed"][:3])
            lines.append(f"* {code(record['name'])}: {shown}" + (f" and {more} more" if more else ""))
    if lines:
        return "\n".join(lines)
    ran = any(record.get("probe") for record in ours)
    return "None." if ran else "Not measured: this version has no probe."


# --- other tools


def peer_table(ours: Sequence[Record], peers: Sequence[Record], reference: Reference) -> str:
    """The models that every tool was shown, and how many each gets fully right."""
    if not peers:
        return "Not measured."
    tools = sorted({record["tool"] for record in peers})
    by = {(*key(record), record["tool"]): record for record in peers}
    shown = set(map(key, peers))
    right: Counter[str] = Counter()
    rows = []
    for own in (record for record in ours if key(record) in shown):
        name = own["name"]
        others = [by.get((*key(own), tool)) for tool in tools]
        sound = [other for other in others if other and other["status"] == "ran" and other["error"] <= ROUNDING]
        orders = [record["log10_order"] for record in [*sound, *([own] if is_sound(own) else [])]]
        floor = max([*orders, reference.get(key(own), 0.0)])
        cells = [own_cell(own, floor), *(peer_cell(other, floor) for other in others)]
        for tool, cell in zip(("autoperm", *tools), cells, strict=True):
            right[tool] += cell.startswith("right")
            right[f"{tool}, re-estimated"] += cell.startswith(("right", "(right"))
        rows.append([code(name), *cells])
    total = ["**fully right**", *(f"**{right[tool]} of {len(rows)}**" for tool in ("autoperm", *tools))]
    again = [
        "fully right once BatchNorm is re-estimated",
        *(f"{right[f'{tool}, re-estimated']} of {len(rows)}" for tool in ("autoperm", *tools)),
    ]
    found = {record["tool"]: record.get("version", "") for record in peers}
    heads = [f"{tool} {found[tool]}".strip() for tool in tools]
    return markdown(["model", "autoperm", *heads], [*rows, total, again])


def own_cell(record: Record, floor: float) -> str:
    """What autoperm gets right of a model."""
    if not is_sound(record):
        return record["status"] if not is_traced(record) else "changes the function"
    order = record["log10_order"]
    return f"right: {order:.1f}" if order >= floor - SLACK else f"sound, but finds {order:.1f} of {floor:.1f}"


def peer_cell(record: Record | None, floor: float) -> str:
    """What another tool gets right of a model."""
    if record is None:
        return ""
    if record["status"] != "ran":
        problem = record["problem"].partition(":")[0] if record["status"] == "crash" else record["problem"]
        return f"{record['status']}: {problem}"[:60].replace("|", "/")
    order = record["log10_order"]
    some = f", {record['right']} of {record['groups']} groups right" if "right" in record else ""
    complete = order >= floor - SLACK and not record.get("inapplicable")
    if record["error"] <= ROUNDING:
        return f"right: {order:.1f}" if complete else f"sound, but finds {order:.1f} of {floor:.1f}{some}"
    if record.get("error_batch_statistics", 1.0) <= ROUNDING:
        missing = "" if complete else f"; finds {order:.1f} of {floor:.1f}"
        return f"{'(right' if complete else '(sound'} once BatchNorm is re-estimated{missing})"
    return f"changes the function by {record['error']:.0e}{some}"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures as Markdown tables that can be read as they are."""

from pathlib import Path

from blender_addon.contract.arrays import atomic_file, write_json


def write_results(out: Path, summary: dict, table: str) -> None:
    """What an evaluation tells programs and people: `summary.json` and `table.md`."""
    write_json(out / "summary.json", summary)
    with atomic_file(out / "table.md") as file:
        file.write(table.encode())


def figures_table(corner: str, heads: dict[str, str], rows: dict[str, dict]) -> list[str]:
    """Lines of a table. `heads`: column head of each figure; `rows`: figures by label, those that a row lacks blank."""
    cells = [[label.replace("|", "/"), *(cell(row.get(name)) for name in heads)] for label, row in rows.items()]
    return aligned([[corner, *heads.values()], *cells])


def aligned(cells: list[list[str]]) -> list[str]:
    """A table whose columns stand below each other; the first row is its head."""
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return [lines[0], rule, *lines[1:]]


def cell(value: float | None) -> str:
    """A figure with as many digits as say something."""
    return "" if value is None else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def caveats(summary: dict) -> list[str]:
    """List items of what a summary lacks, and why."""
    lines = [f"- Not finished: {summary['missing']} clips are missing."] if summary.get("missing") else []
    for heading, notes in (("Not measured", "not_measured"), ("Left out", "left_out"), ("Failed", "failed")):
        lines += [f"- {heading}: {name}: {reason}" for name, reason in summary.get(notes, {}).items()]
    return lines

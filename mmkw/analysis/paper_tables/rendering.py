"""The paper's tables in Markdown, with our parameters beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

from .tables import NOTES, TABLES, Table

# Differences of parameters above this part need a reason.
TOLERANCE = 0.005


def render(
    count: Callable[[str], int],
    tables: Sequence[Table] = TABLES,
    notes: Mapping[str, str] = NOTES,
) -> str:
    """All tables in Markdown, in the order in which they come.

    Args:
        count: gives the parameters of the model of a config; asked once for each.
        tables: which ones. Defaults to all.
        notes: reasons why a count is not the paper's, by config.

    Raises:
        ValueError: if a count differs from the paper's by more than 0.5 % and has no note.
    """
    configs = {row.config: None for table in tables for row in table.rows}
    parameters = {config: count(config) for config in configs}
    return '\n'.join(_render_table(table, parameters, notes) for table in tables)


def _render_table(table: Table, counts: Mapping[str, int], notes: Mapping[str, str]) -> str:
    columns = ['model', 'config', 'parameters (paper)', 'parameters (ours)', 'difference']
    if table.rows[0].millions is None:
        columns = ['model', 'config', 'parameters (ours)']
    names = [f'{column} (paper)' for column in table.columns]
    lines = [
        f'## Table {table.number}: {table.title}',
        '',
        _line(columns + names),
        _line(['---', '---'] + ['---:'] * (len(columns) - 2 + len(names))),
    ]
    used: list[str] = []
    for row in table.rows:
        parameters = counts[row.config]
        cells = [row.model, f'`{row.config}`']
        if row.millions is not None:
            difference = parameters / 1e6 / row.millions - 1
            if abs(difference) > TOLERANCE and row.config not in notes:
                raise ValueError(
                    f'{row.config} has {parameters:,} parameters, but the paper prints '
                    f'{row.millions:.2f}M; write the reason of the difference into NOTES'
                )
            printed = f'{row.millions:.2f}'
            is_equal = f'{parameters / 1e6:.2f}' == printed
            cells += [f'{printed}M', f'{parameters:,}', '' if is_equal else f'{difference:+.1%}']
            if row.config in notes:
                used.append(notes[row.config])
                cells[-1] += f' ({len(used)})'
        else:
            cells.append(f'{parameters:,}')
        lines.append(_line([*cells, *row.values]))
    for number, note in enumerate(used, start=1):
        lines += ['', f'({number}) {note}']
    if table.remark:
        lines += ['', table.remark]
    return '\n'.join(lines) + '\n'


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'

"""tools/analysis_tools/paper_tables.py: its page is the one in docs, its counts are the models'."""

import re
from pathlib import Path

import pytest
from tiny_runs import load_tool, refused

from mmkw.analysis.paper_tables import TABLES, count_parameters

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
ABLATIONS = sorted((CONFIGS / 'ablations').glob('*.py'))


def listed(folder: str) -> dict[str, list[str]]:
    """The cells of the table rows in a README that begin with a link to a config."""
    text = (CONFIGS / folder / 'README.md').read_text(encoding='utf-8')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines()]
    links = [(re.fullmatch(r'\[(.+)\]\(\1\.py\)', cells[0]), cells) for cells in rows]
    return {link[1]: cells[1:] for link, cells in links if link}


def test_the_page_in_docs():
    """With the parameters of the READMEs, which other tests compare with the built models."""
    columns = dict(imagenet=0, coco=0, ablations=1)
    counts = {
        f'{folder}/{name}': int(cells[column].replace(',', ''))
        for folder, column in columns.items()
        for name, cells in listed(folder).items()
    }
    page = load_tool('analysis_tools/paper_tables').page(counts.__getitem__)
    assert page == (ROOT / 'docs' / 'tables.md').read_text(encoding='utf-8')


def test_every_ablation_is_in_a_table_and_in_the_readme():
    rows = {}
    for table in TABLES:
        for row in table.rows:
            tables, _ = rows.setdefault(row.config, ([], row.values))
            tables.append(str(table.number))
    readme = {f'ablations/{name}': cells for name, cells in listed('ablations').items()}
    assert set(readme) == {f'ablations/{path.stem}' for path in ABLATIONS}
    for config, (tables, _, *accuracies) in readme.items():
        assert (tables.split(', '), tuple(accuracies)) == rows[config], config


@pytest.mark.parametrize('path', ABLATIONS, ids=lambda path: path.stem)
def test_parameters_of_ablations(path):
    assert listed('ablations')[path.stem][1] == f'{count_parameters(path):,}'


def test_prints_tables(capsys):
    load_tool('analysis_tools/paper_tables').main(['--tables', '17'])
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if 'od-heads' in line)
    assert '| 12.51M | 12,506,207 |  | 76.54 | 92.35 |' in row
    assert 'Table 1:' not in out


def test_errors(tmp_path):
    tool = load_tool('analysis_tools/paper_tables')
    assert 'there is no table 14 here; there are 1, 2' in refused(tool, '--tables', '14')
    with pytest.raises(ValueError, match='resnet50.* 26,000,000 parameters.* prints 25.56M'):
        tool.page(lambda config: 26_000_000, [7])

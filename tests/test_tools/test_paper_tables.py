"""tools/analysis_tools/paper_tables.py: its page is the one in docs, its counts are the models'."""

import pytest
from config_models import CONFIGS, readme_rows
from tiny_runs import ROOT, load_tool, refused

# Puts the tool's folder on the path.
tool = load_tool('analysis_tools/paper_tables')

from paper import PARAMETER_TABLES, TABLES, BuiltModels, printed  # noqa: E402

# The column of the parameters in the READMEs; the paper's numbers follow it.
PARAMETERS = dict(imagenet=0, coco=0, ablations=1)
# Box and mask AP in FDConv's own paper.
FDCONV = {
    'mask-rcnn_fdconv-resnet50_fpn_ms-1x_coco': ['42.4', '38.6'],
    'faster-rcnn_fdconv-resnet50_fpn_1x_coco': ['39.4', '-'],
}
ABLATIONS = sorted((CONFIGS / 'ablations').glob('*.py'))


class ModelsOfReadmes(BuiltModels):
    """With the parameters of the READMEs, which other tests compare with the built models."""

    def __init__(self):
        super().__init__(CONFIGS)
        self.counts = {
            f'{folder}/{name}': int(cells[column].replace(',', ''))
            for folder, column in PARAMETERS.items()
            for name, cells in readme_rows(folder).items()
        }

    def parameters(self, config):
        return self.counts[config]


def test_all_tables_of_the_paper_are_there():
    assert [table.number for table in TABLES] == list(range(1, 18))
    for table in PARAMETER_TABLES:
        for row in table.rows:
            assert len(row.values) == len(table.columns)
            assert (CONFIGS / f'{row.config}.py').is_file()


def test_the_page_in_docs():
    page = tool.page(ModelsOfReadmes())
    assert page == (ROOT / 'docs' / 'tables.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('folder', PARAMETERS)
def test_readmes_have_the_papers_numbers(folder):
    """Detectors without the numbers of small, medium and large objects."""
    rows = readme_rows(folder)
    assert set(rows) == {path.stem for path in (CONFIGS / folder).glob('*.py')}
    for name, cells in rows.items():
        numbers = cells[PARAMETERS[folder] + 1 :]
        row = printed(f'{folder}/{name}')
        if name in FDCONV:
            assert numbers == FDCONV[name]
        elif row is None:
            assert set(numbers) == {'-'} or numbers[0].endswith(' (release)'), name
        elif folder == 'coco':
            assert tuple(numbers) == row.values[:3] + row.values[6:9], name
        else:
            assert tuple(numbers) == row.values, name


def test_the_readme_of_ablations_names_their_tables():
    tables = {}
    for table in PARAMETER_TABLES:
        for row in table.rows:
            tables.setdefault(row.config, []).append(str(table.number))
    for name, cells in readme_rows('ablations').items():
        assert cells[0].split(', ') == tables[f'ablations/{name}'], name


@pytest.mark.parametrize('path', ABLATIONS, ids=lambda path: path.stem)
def test_parameters_of_ablations(path):
    parameters = BuiltModels(CONFIGS).parameters(f'ablations/{path.stem}')
    assert readme_rows('ablations')[path.stem][1] == f'{parameters:,}'


def test_prints_tables(capsys):
    tool.main(['--tables', '17'])
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if 'od-heads' in line)
    assert '| 12.51M | 12,506,207 |  | 76.54 | 92.35 |' in row
    assert 'Table 1:' not in out


def rows_of(number):
    """The cells of a table in docs, without its head."""
    text = (ROOT / 'docs' / 'tables.md').read_text(encoding='utf-8')
    section = text.split(f'## Table {number}: ')[1].split('## Table')[0]
    lines = [line for line in section.splitlines() if line.startswith('|')][2:]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_sizes_and_stages_of_warehouses_are_the_papers():
    """All but those of MobileNetV2 0.5x, for which the paper repeats the numbers of 1.0x."""
    for backbone, _, _, m, our_m, n, our_n in rows_of(14):
        assert (m == our_m and n == our_n) != backbone.startswith('MobileNetV2 (0.5x)')
    unlisted = []
    for layer, _, _, cell, our_cell, stage, our_stage, new_cell, our_new_cell in rows_of(15):
        if stage:
            assert (cell, stage, new_cell) == (our_cell, our_stage, our_new_cell), layer
        else:
            unlisted.append(layer)
    assert unlisted == [f'`layer{stage}.0.downsample.0`' for stage in (2, 3, 4)]


class OtherModels(BuiltModels):
    def parameters(self, config):
        return 26_000_000

    def warehouses(self, config):
        return super().warehouses(config)[1:]


def test_errors():
    assert 'there is no table 18 here; there are 1, 2' in refused(tool, '--tables', '18')
    with pytest.raises(ValueError, match='resnet50.* 26,000,000 parameters.* prints 25.56M'):
        tool.page(OtherModels(CONFIGS), [7])
    with pytest.raises(ValueError, match=r'1d4x.* m = \(188, 188, 108\).* prints m = \(224, 188'):
        tool.page(OtherModels(CONFIGS), [14])

"""What the paper prints about warehouses: their sizes (Table 14) and their layers (Table 15)."""

from __future__ import annotations

from typing import NamedTuple


class SizesRow(NamedTuple):
    """A network of Table 14.

    Attributes:
        backbone, budget: as the paper prints them.
        config: below ``configs``, without its suffix.
        mixtures: ``m`` of each warehouse.
        cells: ``n`` of each warehouse.
    """

    backbone: str
    budget: str
    config: str
    mixtures: tuple[int, ...]
    cells: tuple[int, ...]


class SizesTable(NamedTuple):
    """Table 14.

    Attributes:
        number: of the table.
        title: what it shows.
        rows: its networks.
        remark: what else is to be known.
        notes: reasons why sizes are not the paper's, by config.
    """

    number: int
    title: str
    rows: tuple[SizesRow, ...]
    remark: str
    notes: dict[str, str]


class StagesRow(NamedTuple):
    """A layer of Table 15.

    Attributes:
        layer: its name in the backbone, which begins with its stage in the plain network.
        original_cell: a cell's dimensions if the layers of that stage shared a warehouse.
        stage: the reassigned one, whose warehouse the layer has.
        cell: a cell's dimensions in that warehouse.
    """

    layer: str
    original_cell: str
    stage: str
    cell: str


class StagesTable(NamedTuple):
    """Table 15.

    Attributes:
        number: of the table.
        title: what it shows.
        config: of its network, below ``configs`` and without its suffix.
        rows: the layers that the paper lists.
        remark: what else is to be known.
    """

    number: int
    title: str
    config: str
    rows: tuple[StagesRow, ...]
    remark: str


_CONFIGS = {
    'ResNet18': 'imagenet/kw-resnet18-{}x_8xb512-300e_in1k',
    'ResNet50': 'imagenet/kw-resnet50-{}x_8xb512-300e_in1k',
    'ConvNeXt-Tiny': 'imagenet/kw-convnext-tiny-{}x_8xb512-300e_in1k',
    'MobileNetV2 (1.0x)': 'imagenet/kw-mobilenet-v2-w100-{}x_8xb32-150e_in1k',
    'MobileNetV2 (0.5x)': 'imagenet/kw-mobilenet-v2-w050-{}x_8xb32-150e_in1k',
}
# m and n, by budget.
_Sizes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
_FIRST = (16, 4, 4, 4)
_MOBILENET_V2: _Sizes = {
    '1/2': (
        (9, 36, 18, 27, 36, 27, 12, 27, 80, 40),
        (9, 36, 18, 27, 36, 27, 6, 27, 40, 20),
    ),
    '1': ((9, 36, 34, 78, 18, 42, 27, 102, 36, 120, 27, 58, 27),) * 2,
    '4': (
        (9, 36, 11, 1, 2, 18, 7, 3, 27, 4, 4, 36, 9, 3, 27, 11, 3, 27, 20),
        (36, 144, 44, 4, 8, 72, 28, 12, 108, 16, 16, 144, 36, 12, 108, 44, 12, 108, 80),
    ),
}
_SIZES: dict[str, _Sizes] = {
    'ResNet18': {
        '1/4': ((224, 188, 188, 108), (56, 47, 47, 27)),
        '1/2': ((224, 188, 188, 108), (112, 94, 94, 54)),
        '1': ((56, 47, 47, 27), (56, 47, 47, 27)),
        '2': ((56, 47, 47, 27), (112, 94, 94, 54)),
        '4': ((56, 47, 47, 27), (224, 188, 188, 108)),
    },
    'ResNet50': {
        '1/2': ((348, 416, 552, 188), (174, 208, 276, 94)),
        '1': ((87, 104, 138, 47), (87, 104, 138, 47)),
        '4': ((87, 104, 138, 47), (348, 416, 552, 188)),
    },
    'ConvNeXt-Tiny': {
        '1': (_FIRST + (147, 24) * 6,) * 2,
        '3/4': (_FIRST + (147, 24) * 4 + (147, 96) * 2, _FIRST + (147, 24) * 4 + (147, 48) * 2),
    },
    'MobileNetV2 (1.0x)': _MOBILENET_V2,
    'MobileNetV2 (0.5x)': _MOBILENET_V2,
}
_SIZES_ROWS = tuple(
    SizesRow(backbone, budget, _CONFIGS[backbone].format(budget.replace('/', 'd')), mixtures, cells)
    for backbone, sizes in _SIZES.items()
    for budget, (mixtures, cells) in sizes.items()
)
SIZES = SizesTable(
    number=14,
    title='Linear mixtures m and kernel cells n of each warehouse',
    rows=_SIZES_ROWS,
    remark='Warehouses come in the order in which the layers first use them.',
    notes={
        row.config: (
            'The paper prints one row for both widths. At 0.5x other channels, and so other '
            "greatest common divisors, give other numbers; the authors' released models have as "
            'many cells as ours.'
        )
        for row in _SIZES_ROWS
        if row.backbone == 'MobileNetV2 (0.5x)'
    },
)


def _stages_rows(text: str) -> tuple[StagesRow, ...]:
    lines = text.strip().splitlines()
    return tuple(StagesRow(*(cell.strip() for cell in line.split('|'))) for line in lines)


STAGES = StagesTable(
    number=15,
    title='Which layers of ResNet18 with KW (1x) share a warehouse',
    config='imagenet/kw-resnet18-1x_8xb512-300e_in1k',
    rows=_stages_rows("""
  layer1.0.conv1 | 1x1x64x64 | 1 | 1x1x64x64
  layer1.0.conv2 | 1x1x64x64 | 1 | 1x1x64x64
  layer1.1.conv1 | 1x1x64x64 | 1 | 1x1x64x64
  layer1.1.conv2 | 1x1x64x64 | 1 | 1x1x64x64
  layer2.0.conv1 | 1x1x64x128 | 1 | 1x1x64x64
  layer2.0.conv2 | 1x1x64x128 | 2 | 1x1x128x128
  layer2.1.conv1 | 1x1x64x128 | 2 | 1x1x128x128
  layer2.1.conv2 | 1x1x64x128 | 2 | 1x1x128x128
  layer3.0.conv1 | 1x1x128x256 | 2 | 1x1x128x128
  layer3.0.conv2 | 1x1x128x256 | 3 | 1x1x256x256
  layer3.1.conv1 | 1x1x128x256 | 3 | 1x1x256x256
  layer3.1.conv2 | 1x1x128x256 | 3 | 1x1x256x256
  layer4.0.conv1 | 1x1x256x512 | 3 | 1x1x256x256
  layer4.0.conv2 | 1x1x256x512 | 4 | 1x1x512x512
  layer4.1.conv1 | 1x1x256x512 | 4 | 1x1x512x512
  layer4.1.conv2 | 1x1x256x512 | 4 | 1x1x512x512
    """),
    remark='Dimensions are kernel height and width, input and output channels. The paper does not '
    'list the downsampling layers.',
)

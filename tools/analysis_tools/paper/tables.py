"""What the paper prints in all tables but 14 and 15, each row with the config of its model.

The numbers stand here alone. The page of the docs is made from them, the tables of the READMEs in
``configs`` are checked with them, and the benchmark shows them beside its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        model: as the paper names it.
        config: below ``configs``, without its suffix.
        millions: parameters that the paper prints, in millions; ``None`` where it prints none.
        values: what else the paper prints.
    """

    model: str
    config: str
    millions: float | None
    values: tuple[str, ...]


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        number: of the table.
        title: what it compares.
        columns: of the paper's values.
        rows: its rows.
        remark: what else is to be known; may be empty.
    """

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    remark: str = ''


ACCURACY = ('top-1', 'top-5')
SPEED = ('top-1', 'images/s')
MEMORY = ('training', 'inference')
BOX_AND_MASK_AP = tuple(
    f'{kind} {measure}'
    for kind in ('box', 'mask')
    for measure in ('AP', 'AP50', 'AP75', 'APS', 'APM', 'APL')
)
_FOLDERS = {
    '100': 'imagenet/{}_8xb32-100e_in1k',
    '150': 'imagenet/{}_8xb32-150e_in1k',
    '300': 'imagenet/{}_8xb512-300e_in1k',
    'deit': 'imagenet/{}_8xb128-300e_in1k',
    'ablation': 'ablations/{}_8xb512-300e_in1k',
    'ablation100': 'ablations/{}_8xb32-100e_in1k',
    'ablation150': 'ablations/{}_8xb32-150e_in1k',
    'coco': 'coco/mask-rcnn_{}_fpn_ms-1x_coco',
}
_MEASURED = 'For speeds and memory measured with this code see [Memory and speed](memory_speed.md).'


def _table(number: int, title: str, columns: tuple[str, ...], text: str, remark: str = '') -> Table:
    """Rows are lines of name, kind and name of the config, millions, and values.

    A line that begins with a bar goes on with the row before.
    """
    rows = []
    for line in re.sub(r'\n *\|', ' |', text).strip().splitlines():
        model, kind, name, millions, *values = (cell.strip() for cell in line.split('|'))
        rows.append(
            Row(
                model,
                _FOLDERS[kind].format(name),
                None if millions == '-' else float(millions),
                tuple(values),
            )
        )
    return Table(number, title, columns, tuple(rows), remark)


PARAMETER_TABLES = (
    _table(1, 'ResNet18 on ImageNet, traditional training (100 epochs)', ACCURACY, """
  ResNet18 | 100 | resnet18 | 11.69 | 70.25 | 89.38
  + SE | ablation100 | se-resnet18 | 11.78 | 70.98 | 90.03
  + CBAM | ablation100 | cbam-resnet18 | 11.78 | 71.01 | 89.85
  + ECA | ablation100 | eca-resnet18 | 11.69 | 70.60 | 89.68
  + CGC | ablation100 | cgc-resnet18 | 11.69 | 71.60 | 90.35
  + WeightNet | ablation100 | weightnet-resnet18 | 11.93 | 71.56 | 90.38
  + DCD | 100 | dcd-resnet18 | 14.70 | 72.33 | 90.65
  + CondConv (8x) | 100 | condconv-resnet18-8x | 81.35 | 71.99 | 90.27
  + DY-Conv (4x) | 100 | dyconv-resnet18-4x | 45.47 | 72.76 | 90.79
  + ODConv (4x) | 100 | odconv-resnet18-4x | 44.90 | 73.97 | 91.35
  + KW (1/2x) | 100 | kw-resnet18-1d2x | 7.43 | 72.81 | 90.66
  + KW (1x) | 100 | kw-resnet18-1x | 11.93 | 73.67 | 91.17
  + KW (2x) | 100 | kw-resnet18-2x | 23.24 | 74.03 | 91.37
  + KW (4x) | 100 | kw-resnet18-4x | 45.86 | 74.16 | 91.42
    """),
    _table(2, 'ResNet18, ResNet50 and ConvNeXt-Tiny on ImageNet, advanced training (300 epochs)',
           ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + DY-Conv (4x) | 300 | dyconv-resnet18-4x | 45.47 | 73.82 | 91.48
  + ODConv (4x) | 300 | odconv-resnet18-4x | 44.90 | 74.45 | 91.67
  + KW (1/4x) | 300 | kw-resnet18-1d4x | 4.08 | 72.73 | 90.83
  + KW (1/2x) | 300 | kw-resnet18-1d2x | 7.43 | 73.33 | 91.42
  + KW (1x) | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (2x) | 300 | kw-resnet18-2x | 23.24 | 75.19 | 92.18
  + KW (4x) | 300 | kw-resnet18-4x | 45.86 | 76.05 | 92.68
  ResNet50 | 300 | resnet50 | 25.56 | 78.44 | 94.24
  + DY-Conv (4x) | 300 | dyconv-resnet50-4x | 100.88 | 79.00 | 94.27
  + ODConv (4x) | 300 | odconv-resnet50-4x | 90.67 | 80.62 | 95.16
  + KW (1/2x) | 300 | kw-resnet50-1d2x | 17.64 | 79.30 | 94.71
  + KW (1x) | 300 | kw-resnet50-1x | 28.05 | 80.38 | 95.19
  + KW (4x) | 300 | kw-resnet50-4x | 102.02 | 81.05 | 95.21
  ConvNeXt-Tiny | 300 | convnext-tiny | 28.59 | 82.07 | 95.86
  + KW (3/4x) | 300 | kw-convnext-tiny-3d4x | 24.53 | 82.23 | 95.88
  + KW (1x) | 300 | kw-convnext-tiny-1x | 32.99 | 82.55 | 96.08
    """),
    _table(3, 'Mask R-CNN on COCO', BOX_AND_MASK_AP, """
  ResNet50 | coco | resnet50 | - | 39.6 | 61.6 | 43.3 | 24.4 | 43.7 | 50.0
    | 36.4 | 58.7 | 38.6 | 20.4 | 40.4 | 48.4
  + DY-Conv (4x) | coco | dyconv-resnet50-4x | - | 39.6 | 62.1 | 43.1 | 24.7 | 43.3 | 50.5
    | 36.6 | 59.1 | 38.6 | 20.9 | 40.2 | 49.1
  + ODConv (4x) | coco | odconv-resnet50-4x | - | 42.1 | 65.1 | 46.1 | 27.2 | 46.1 | 53.9
    | 38.6 | 61.6 | 41.4 | 23.1 | 42.3 | 52.0
  + KW (1x) | coco | kw-resnet50-1x | - | 41.8 | 64.5 | 45.9 | 26.6 | 45.5 | 53.0
    | 38.4 | 61.4 | 41.2 | 22.2 | 42.0 | 51.6
  + KW (4x) | coco | kw-resnet50-4x | - | 42.4 | 65.4 | 46.3 | 27.2 | 46.2 | 54.6
    | 38.9 | 62.0 | 41.5 | 22.7 | 42.6 | 53.1
  MobileNetV2 (1.0x) | coco | mobilenet-v2 | - | 33.8 | 55.2 | 35.8 | 19.7 | 36.5 | 44.4
    | 31.7 | 52.4 | 33.3 | 16.4 | 34.4 | 43.7
  + DY-Conv (4x) | coco | dyconv-mobilenet-v2-4x | - | 37.0 | 58.6 | 40.3 | 21.9 | 40.1 | 47.9
    | 34.1 | 55.7 | 36.1 | 18.6 | 37.1 | 46.3
  + ODConv (4x) | coco | odconv-mobilenet-v2-4x | - | 37.2 | 59.4 | 39.9 | 22.6 | 40.0 | 48.0
    | 34.5 | 56.4 | 36.3 | 19.3 | 37.3 | 46.8
  + KW (1x) | coco | kw-mobilenet-v2-1x | - | 36.4 | 58.3 | 39.2 | 22.0 | 39.6 | 47.0
    | 33.7 | 55.1 | 35.7 | 18.9 | 36.7 | 45.6
  + KW (4x) | coco | kw-mobilenet-v2-4x | - | 38.0 | 60.0 | 40.8 | 23.1 | 40.7 | 50.0
    | 34.9 | 56.6 | 37.0 | 19.4 | 37.9 | 47.8
  ConvNeXt-Tiny | coco | convnext-tiny | - | 43.4 | 65.8 | 47.7 | 27.6 | 46.8 | 55.9
    | 39.7 | 62.6 | 42.4 | 23.1 | 43.1 | 53.7
  + KW (3/4x) | coco | kw-convnext-tiny-3d4x | - | 44.1 | 66.8 | 48.4 | 29.7 | 47.4 | 56.7
    | 40.2 | 63.6 | 43.0 | 24.8 | 43.6 | 54.3
  + KW (1x) | coco | kw-convnext-tiny-1x | - | 44.8 | 67.7 | 48.9 | 29.8 | 48.3 | 57.3
    | 40.6 | 64.4 | 43.4 | 24.7 | 44.1 | 54.8
    """, 'APS, APM and APL are those of small, medium and large objects. The paper prints no '
         'parameters of detectors.'),
    _table(4, 'MobileNetV2 on ImageNet (150 epochs)', ACCURACY, """
  MobileNetV2 (0.5x) | 150 | mobilenet-v2-w050 | 1.97 | 64.30 | 85.21
  + DY-Conv (4x) | 150 | dyconv-mobilenet-v2-w050-4x | 4.57 | 69.05 | 88.37
  + ODConv (4x) | 150 | odconv-mobilenet-v2-w050-4x | 4.44 | 70.01 | 89.01
  + KW (1/2x) | 150 | kw-mobilenet-v2-w050-1d2x | 1.47 | 65.19 | 85.98
  + KW (1x) | 150 | kw-mobilenet-v2-w050-1x | 2.85 | 68.29 | 87.93
  + KW (4x) | 150 | kw-mobilenet-v2-w050-4x | 4.65 | 70.26 | 89.19
  MobileNetV2 (1.0x) | 150 | mobilenet-v2-w100 | 3.50 | 72.02 | 90.43
  + DY-Conv (4x) | 150 | dyconv-mobilenet-v2-w100-4x | 12.40 | 74.94 | 91.83
  + ODConv (4x) | 150 | odconv-mobilenet-v2-w100-4x | 11.52 | 75.42 | 92.18
  + KW (1/2x) | 150 | kw-mobilenet-v2-w100-1d2x | 2.65 | 72.59 | 90.71
  + KW (1x) | 150 | kw-mobilenet-v2-w100-1x | 5.17 | 74.68 | 91.90
  + KW (4x) | 150 | kw-mobilenet-v2-w100-4x | 11.38 | 75.92 | 92.22
    """),
    _table(5, 'Kernel partition', ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + KW (1x) | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (1x), without partition | ablation | kw-resnet18-1x-whole-kernels | 11.78 | 70.49 | 89.84
    """),
    _table(6, 'Which layers share a warehouse', ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + KW (1x), those of a stage | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (1x), within each layer | ablation | kw-resnet18-1x-share-layer | 11.81 | 74.34 | 91.82
  + KW (1x), without sharing | ablation | kw-resnet18-1x-share-none | 11.78 | 72.49 | 90.81
    """),
    _table(7, 'Sharing between kernels of different dimensions', ACCURACY, """
  ResNet50 | 300 | resnet50 | 25.56 | 78.44 | 94.24
  + KW (1x), different ones | 300 | kw-resnet50-1x | 28.05 | 80.38 | 95.27
  + KW (1x), equal ones only | ablation | kw-resnet50-1x-share-equal-shapes | 26.95 | 79.80 | 95.01
    """, "Table 2 has another top-5 accuracy of KW (1x), 95.19."),
    _table(8, 'Attention functions', ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + KW (1x), CAF | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (1x), softmax | ablation | kw-resnet18-1x-softmax | 11.93 | 72.67 | 90.82
  + KW (1x), sigmoid | ablation | kw-resnet18-1x-sigmoid | 11.93 | 72.09 | 90.70
  + KW (1x), CAF of positive parts | ablation | kw-resnet18-1x-nonnegative | 11.93 | 72.74 | 90.86
    """),
    _table(9, 'Initialisation of attentions', ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + KW (1x) | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (1x), without | ablation | kw-resnet18-1x-no-annealing | 11.93 | 73.39 | 91.24
    """),
    _table(10, 'The attention function in other methods', ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + DY-Conv (4x), softmax | 300 | dyconv-resnet18-4x | 45.47 | 73.82 | 91.48
  + DY-Conv (4x), CAF | ablation | dyconv-resnet18-4x-caf | 45.47 | 73.74 | 91.45
  + ODConv (4x), softmax | 300 | odconv-resnet18-4x | 44.90 | 74.45 | 91.67
  + ODConv (4x), CAF | ablation | odconv-resnet18-4x-caf | 44.90 | 74.27 | 91.62
  + KW (1x), softmax | ablation | kw-resnet18-1x-softmax | 11.93 | 72.67 | 90.82
  + KW (1x), CAF | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (4x), softmax | ablation | kw-resnet18-4x-softmax | 45.86 | 74.31 | 91.75
  + KW (4x), CAF | 300 | kw-resnet18-4x | 45.86 | 76.05 | 92.68
    """),
    _table(11, 'Vision transformers', ACCURACY, """
  DeiT-Small | deit | deit-small | 22.06 | 79.78 | 94.99
  + KW (3/4x) | deit | kw-deit-small-3d4x | 19.23 | 79.94 | 95.05
  + KW (1x) | deit | kw-deit-small-1x | 24.36 | 80.63 | 95.24
  DeiT-Tiny | deit | deit-tiny | 5.72 | 72.13 | 91.32
  + KW (1x) | deit | kw-deit-tiny-1x | 6.39 | 73.56 | 91.82
  + KW (4x) | deit | kw-deit-tiny-4x | 20.44 | 76.51 | 93.05
    """),
    _table(12, 'Speed, images/s on an NVIDIA TITAN X at batch 100', SPEED, """
  ResNet50 | 300 | resnet50 | 25.56 | 78.44 | 647.0
  + DY-Conv (4x) | 300 | dyconv-resnet50-4x | 100.88 | 79.00 | 322.7
  + ODConv (4x) | 300 | odconv-resnet50-4x | 90.67 | 80.62 | 142.3
  + KW (1/2x) | 300 | kw-resnet50-1d2x | 17.64 | 79.30 | 227.8
  + KW (1x) | 300 | kw-resnet50-1x | 28.05 | 80.38 | 265.4
  + KW (4x) | 300 | kw-resnet50-4x | 102.02 | 81.05 | 191.1
  MobileNetV2 (1.0x) | 150 | mobilenet-v2-w100 | 3.50 | 72.02 | 1410.8
  + DY-Conv (4x) | 150 | dyconv-mobilenet-v2-w100-4x | 12.40 | 74.94 | 862.4
  + ODConv (4x) | 150 | odconv-mobilenet-v2-w100-4x | 11.52 | 75.42 | 536.5
  + KW (1/2x) | 150 | kw-mobilenet-v2-w100-1d2x | 2.65 | 72.59 | 926.0
  + KW (1x) | 150 | kw-mobilenet-v2-w100-1x | 5.17 | 74.68 | 798.7
  + KW (4x) | 150 | kw-mobilenet-v2-w100-4x | 11.38 | 75.92 | 786.9
    """, _MEASURED),
    _table(13, 'Which cells mixtures start from', ACCURACY, """
  ResNet18 | 300 | resnet18 | 11.69 | 70.44 | 89.72
  + KW (1x), 1 cell to 1 mixture | 300 | kw-resnet18-1x | 11.93 | 74.77 | 92.13
  + KW (1x), all cells to 1 mixture | ablation | kw-resnet18-1x-all-to-one | 11.93 | 73.36 | 91.41
  + KW (1x), without | ablation | kw-resnet18-1x-no-annealing | 11.93 | 73.39 | 91.24
  + KW (4x), 1 cell to 1 mixture | 300 | kw-resnet18-4x | 45.86 | 76.05 | 92.68
  + KW (4x), 4 cells to 1 mixture | ablation | kw-resnet18-4x-four-to-one | 45.86 | 76.03 | 92.53
  + KW (1/2x), 1 cell to 1 mixture | 300 | kw-resnet18-1d2x | 7.43 | 73.33 | 91.42
  + KW (1/2x), 1 cell to 2 mixtures | ablation | kw-resnet18-1d2x-one-to-two | 7.43 | 72.89 | 91.34
    """),
    _table(16, 'Memory in MB: training at batch 128 (ResNet50) or 32, inference at batch 100',
           MEMORY, """
  ResNet50 | 300 | resnet50 | 25.56 | 11,084 | 1,249
  + DY-Conv (4x) | 300 | dyconv-resnet50-4x | 100.88 | 24,552 | 2,062
  + ODConv (4x) | 300 | odconv-resnet50-4x | 90.67 | 31,892 | 5,405
  + KW (1/2x) | 300 | kw-resnet50-1d2x | 17.64 | 23,323 | 2,121
  + KW (1x) | 300 | kw-resnet50-1x | 28.05 | 23,231 | 2,200
  + KW (4x) | 300 | kw-resnet50-4x | 102.02 | 24,905 | 2,762
  MobileNetV2 (1.0x) | 150 | mobilenet-v2-w100 | 3.50 | 2,486 | 1,083
  + DY-Conv (4x) | 150 | dyconv-mobilenet-v2-w100-4x | 12.40 | 2,924 | 1,151
  + ODConv (4x) | 150 | odconv-mobilenet-v2-w100-4x | 11.52 | 4,212 | 1,323
  + KW (1/2x) | 150 | kw-mobilenet-v2-w100-1d2x | 2.65 | 3,002 | 1,076
  + KW (1x) | 150 | kw-mobilenet-v2-w100-1x | 5.17 | 2,823 | 1,096
  + KW (4x) | 150 | kw-mobilenet-v2-w100-4x | 11.38 | 2,916 | 1,144
    """, _MEASURED),
    _table(17, 'KernelWarehouse with the heads of ODConv', ACCURACY, """
  MobileNetV2 (1.0x) | 150 | mobilenet-v2-w100 | 3.50 | 72.02 | 90.43
  + ODConv (4x) | 150 | odconv-mobilenet-v2-w100-4x | 11.52 | 75.42 | 92.18
  + KW (4x) | 150 | kw-mobilenet-v2-w100-4x | 11.38 | 75.92 | 92.22
  + KW* (4x) | ablation150 | kw-mobilenet-v2-w100-4x-od-heads | 12.51 | 76.54 | 92.35
    """),
)  # fmt: skip


def printed(config: str, columns: tuple[str, ...] | None = None) -> Row | None:
    """What the paper prints of a config's network, in the first of its tables that has it.

    Args:
        config: below ``configs``, without its suffix.
        columns: of the tables to look in. Defaults to those of accuracies and precisions.

    Returns:
        ``None`` if it is in none of them.
    """
    wanted = (ACCURACY, BOX_AND_MASK_AP) if columns is None else (columns,)
    rows = (row for table in PARAMETER_TABLES if table.columns in wanted for row in table.rows)
    return next((row for row in rows if row.config == config), None)


# Why a count is not the paper's, by config. Both counts are printed before the reason.
NOTES = {
    'ablations/cgc-resnet18_8xb32-100e_in1k': (
        'The plain network alone has 11,689,512, so the printed count leaves room for 5,488 more '
        'at most. The gates of every convolution larger than 1x1, the stem included, have 32,279.'
    ),
    'ablations/weightnet-resnet18_8xb32-100e_in1k': (
        'No placement that we tried gives the printed count. Here each convolution has a reduction '
        'of its own and downsampling stays plain; one reduction for each block, with downsampling '
        'converted, would give 11,915,192.'
    ),
    'imagenet/kw-resnet18-1d4x_8xb512-300e_in1k': (
        "The authors' released model has as many parameters as ours."
    ),
    'imagenet/kw-deit-tiny-4x_8xb128-300e_in1k': (
        'The paper does not give the plan of its warehouses, nor is the model released. Ours is '
        'the plan that fits DeiT-Tiny 1x and DeiT-Small 1x.'
    ),
}

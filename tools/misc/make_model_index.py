"""Write model-index.yml and the metafiles that it lists from the tables in configs/*/README.md.

Run it after a change to a table. MMEngine, MMPretrain and mim find the models in these files. A
table row counts where its first cell links a config and its header has a column ``parameters``.
"""

import re
from pathlib import Path

import yaml

from mmkw.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
# The papers whose numbers the tables have.
PAPERS = {
    'KernelWarehouse': dict(
        Title='KernelWarehouse: Rethinking the Design of Dynamic Convolution',
        URL='https://arxiv.org/abs/2406.07879',
    ),
    'FDConv': dict(
        Title='Frequency Dynamic Convolution for Dense Image Prediction',
        URL='https://arxiv.org/abs/2503.18783',
    ),
}
NO_WEIGHTS = 'none; tools/model_converters/released_to_mmkw.py converts those of its authors'
# The methods whose authors released models.
RELEASED = ('KernelWarehouse', 'ODConv')
# The folder of configs -> what its models are trained on, the task, and the names of the scores.
FOLDERS = {
    'imagenet': (
        'ImageNet-1k',
        'Image Classification',
        {'top-1 (paper)': 'Top 1 Accuracy (paper)', 'top-5 (paper)': 'Top 5 Accuracy (paper)'},
    ),
    'ablations': (
        'ImageNet-1k',
        'Image Classification',
        {'top-1 (paper)': 'Top 1 Accuracy (paper)', 'top-5 (paper)': 'Top 5 Accuracy (paper)'},
    ),
    'coco': (
        'COCO',
        'Instance Segmentation',
        {
            'box AP (paper)': 'box AP (paper)',
            'mask AP (paper)': 'mask AP (paper)',
            "box AP (FDConv's paper)": 'box AP (paper)',
            "mask AP (FDConv's paper)": 'mask AP (paper)',
        },
    ),
    'segmentation': ('ADE20K', 'Semantic Segmentation', {}),
}


def table_rows(text):
    """The rows of the tables of models in a README: header -> cell, with the file as ``config``."""
    rows, header = [], None
    for line in text.splitlines():
        if not line.startswith('|'):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        link = re.fullmatch(r'\[.*\]\(([^/()]+\.py)\)', cells[0])
        if header is None:
            header = cells
        elif link and 'parameters' in header:
            rows.append(dict(zip(header, cells), config=link[1]))
    return rows


def metafile(folder, text):
    """What the metafile of a folder of configs holds, from the text of its README."""
    data, task, scores = FOLDERS[folder]
    models = []
    for row in table_rows(text):
        name = row['config'][: -len('.py')]
        trained_on = 'Cityscapes' if 'cityscapes' in name else data
        metadata = dict(
            {'Training Data': trained_on}, Parameters=int(row['parameters'].replace(',', ''))
        )
        recipe = re.search(r'_(\d+)xb(\d+)-(\d+)e_', name)
        if recipe:
            metadata['Epochs'] = int(recipe[3])
            metadata['Batch Size'] = int(recipe[1]) * int(recipe[2])
        model = dict(
            {'Name': name, 'In Collection': collection(name), 'Metadata': metadata},
            Config=f'configs/{folder}/{row["config"]}',
        )
        metrics = {
            score: float(row[column])
            for column, score in scores.items()
            if re.fullmatch(r'[\d.]+', row.get(column, ''))
        }
        if metrics:
            box_only = name.startswith('faster-rcnn_')
            model['Results'] = [
                dict(Dataset=data, Task='Object Detection' if box_only else task, Metrics=metrics)
            ]
        models.append(model)
    collections = [
        dict(
            Name=name,
            Metadata=dict(Pretrained=NO_WEIGHTS if name in RELEASED else 'none'),
            **(dict(Paper=dict(PAPERS[name])) if name in PAPERS else {}),
            README=f'configs/{folder}/README.md',
        )
        for name in sorted({model['In Collection'] for model in models})
    ]
    return dict(Collections=collections, Models=models)


def collection(name):
    """The group of a model: a method, or the plain networks."""
    has_head = name.split('_')[0].endswith(('-rcnn', 'pspnet', 'upernet'))
    backbone = name.split('_')[1] if has_head else name
    methods = dict(
        kw='KernelWarehouse', odconv='ODConv', dyconv='DY-Conv', condconv='CondConv', dcd='DCD',
        fdconv='FDConv', se='SE', cbam='CBAM', eca='ECA', cgc='CGC', weightnet='WeightNet',
    )  # fmt: skip
    return methods.get(backbone.split('-')[0], 'Plain networks')


def render():
    """The text of each file, by its path relative to the root."""
    contents = {'model-index.yml': dict(Import=[])}
    for folder in FOLDERS:
        text = (ROOT / 'configs' / folder / 'README.md').read_text(encoding='utf-8')
        path = f'configs/{folder}/metafile.yml'
        contents['model-index.yml']['Import'].append(path)
        contents[path] = metafile(folder, text)
    note = '# Written by tools/misc/make_model_index.py from the tables in configs/*/README.md.\n'
    return {
        path: note + yaml.safe_dump(content, sort_keys=False, width=100)
        for path, content in contents.items()
    }


def main():
    for path, text in render().items():
        write_whole(text, ROOT / path)
        print(path)


if __name__ == '__main__':
    main()

"""Classes that would get wrong names end a training before its first iteration."""

import json
from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset
from mmengine.dataset import ConcatDataset, RepeatDataset

from mmkw.openmmlab.hooks import ClassNamesHook


def runner(folder, classes, wrap=lambda dataset: dataset):
    names = ['cat', 'dog', 'cow']
    content = dict(
        images=[dict(id=1, file_name='1.png', width=8, height=8)],
        annotations=[],
        categories=[dict(id=number, name=name) for number, name in enumerate(names)],
    )
    (folder / 'file.json').write_text(json.dumps(content))
    dataset = CocoDataset(
        ann_file=str(folder / 'file.json'),
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
        pipeline=[],
    )
    loader = SimpleNamespace(dataset=wrap(dataset))
    return SimpleNamespace(train_dataloader=loader, val_dataloader=None)


@pytest.mark.parametrize('classes', [('cat', 'dog', 'cow'), ('cat', 'cow')])
def test_classes_of_the_file_or_some_of_them(tmp_path, classes):
    ClassNamesHook().before_train(runner(tmp_path, classes))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda dataset: dataset,
        lambda dataset: RepeatDataset(dataset, times=2),
        lambda dataset: ConcatDataset([dataset, dataset]),
    ],
    ids=['plain', 'repeated', 'concatenated'],
)
@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('cat', 'Dog', 'cow'), 'file.json: .* does not: Dog; the file has cat, dog, cow'),
        ('cat', r"a single class needs a comma: \('cat',\)"),
        (('dog', 'cat'), r"another order than in the file.* use \('cat', 'dog'\)"),
    ],
)
def test_wrong_names_and_order(tmp_path, classes, message, wrap):
    with pytest.raises(ValueError, match=message):
        ClassNamesHook().before_train(runner(tmp_path, classes, wrap))


def test_data_without_an_annotation_file(tmp_path):
    with pytest.raises(ValueError, match='list has no annotation file.*remove it'):
        ClassNamesHook().before_train(runner(tmp_path, ('cat',), lambda dataset: []))

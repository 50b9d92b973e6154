"""A dataset in COCO format against the configs of configs/own_data."""

from __future__ import annotations

import json
import shutil

import mmcv
import pytest
from mmengine.config import Config
from PIL import Image
from tiny_runs import ROOT, load_tool

CONFIGS = sorted((ROOT / 'configs/own_data').glob('*_own.py'))


def coco(number=2):
    """Two squares in every image."""
    boxes = [[2, 2, 8, 8], [16, 16, 10, 10]]
    return dict(
        images=[
            dict(id=i, file_name=f'{i}.png', width=32, height=32) for i in range(1, number + 1)
        ],
        annotations=[
            dict(
                id=10 * i + k,
                image_id=i,
                category_id=k + 1,
                bbox=boxes[k],
                area=boxes[k][2] * boxes[k][3],
                iscrowd=0,
                segmentation=[[2, 2, 10, 2, 10, 10]],
            )
            for i in range(1, number + 1)
            for k in (0, 1)
        ],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )


@pytest.fixture
def dataset(tmp_path):
    """A copy of the folder of configs, and data that fits it."""
    shutil.copytree(ROOT / 'configs/own_data', tmp_path / 'own_data')
    for split in ('train', 'val'):
        folder = tmp_path / 'data' / split
        folder.mkdir(parents=True)
        for number in (1, 2):
            Image.new('RGB', (32, 32)).save(folder / f'{number}.png')
        (tmp_path / 'data/annotations').mkdir(exist_ok=True)
        (tmp_path / 'data/annotations' / f'{split}.json').write_text(json.dumps(coco()))
    settings = tmp_path / 'own_data/dataset.py'
    text = settings.read_text().replace("'data/own/'", f'{str(tmp_path / "data") + "/"!r}')
    settings.write_text(text)
    return tmp_path


def check(folder, capsys, kind='mask-rcnn_kw-resnet50-1x'):
    tool = load_tool('misc/check_dataset')
    status = None
    try:
        tool.main([str(folder / f'own_data/{kind}_fpn_own.py')])
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr().out


def change(folder, edit, split='train'):
    path = folder / f'data/annotations/{split}.json'
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def set_classes(folder, classes):
    settings = folder / 'own_data/dataset.py'
    settings.write_text(settings.read_text().replace("('cat', 'dog')", classes))


def test_sound_dataset(dataset, capsys):
    status, output = check(dataset, capsys)
    assert status is None
    assert 'train: 2 images, 0 of them without objects\n  objects: cat 2, dog 2\n' in output
    assert 'nothing is wrong' in output


def test_categories_that_the_config_leaves_out(dataset, capsys):
    """Classes that do not fit the file are those of test_class_names_hook.py."""
    set_classes(dataset, "('cat',)")
    status, output = check(dataset, capsys)
    assert 'things to put right' in status
    assert 'categories that the config does not: dog' in output


def test_a_category_without_a_name(dataset, capsys):
    change(dataset, lambda content: content['categories'][0].pop('name'))
    status, output = check(dataset, capsys)
    assert 'things to put right' in status
    assert 'classes that the file does not: cat; the file has None, dog' in output


def annotation(**values):
    return lambda content: content['annotations'][0].update(values)


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (annotation(category_id=7), 'an unknown category_id: 10'),
        (annotation(image_id=7), 'an unknown image_id: 10'),
        (annotation(bbox=[2, 2, 0, 8]), 'an empty box (width or height 0): 10'),
        (annotation(bbox=[2, 2, 30, 40]), 'a box that leaves the image'),
        (annotation(segmentation=[]), 'have no segmentation'),
        (
            lambda content: content['images'][0].update(width=64),
            'another size than the file says: 1.png',
        ),
        (lambda content: content['images'][0].update(file_name='no.png'), 'are missing in'),
    ],
)
def test_annotations(dataset, capsys, edit, message):
    change(dataset, edit)
    status, output = check(dataset, capsys)
    assert status == 'error: 1 things to put right, see above'
    (wrong,) = (line for line in output.splitlines() if 'WRONG' in line)
    assert message in wrong


def test_photographs_that_a_camera_turned(dataset, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to show it
    Image.new('RGB', (48, 32)).save(dataset / 'data/train/1.jpg', exif=exif)
    loaded = mmcv.imread(dataset / 'data/train/1.jpg')
    assert loaded.shape[:2] == (48, 32)

    change(dataset, lambda content: content['images'][0].update(file_name='1.jpg', height=48))
    assert check(dataset, capsys)[0] is None
    change(dataset, lambda content: content['images'][0].update(width=48, height=32))
    assert 'as their EXIF orientation says' in check(dataset, capsys)[1]


def test_unreadable_files(dataset, capsys):
    (dataset / 'data/train/1.png').write_bytes(b'none')
    assert 'images cannot be read: 1.png' in check(dataset, capsys)[1]
    (dataset / 'data/annotations/train.json').write_text('{}')
    assert 'not in COCO format: it has no list named images' in check(dataset, capsys)[0]
    (dataset / 'data/annotations/train.json').unlink()
    assert 'train_dataloader.dataset.ann_file: cannot read' in check(dataset, capsys)[0]


def test_masks_are_for_the_mask_rcnn(dataset, capsys):
    change(dataset, annotation(segmentation=[]))
    assert check(dataset, capsys, 'faster-rcnn_kw-resnet50-1x')[0] is None


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_all_follows_from_one_file(dataset, path):
    settings, url = dataset / 'own_data/dataset.py', 'https://example.org/detector.pth'
    text = settings.read_text()

    def read(start=None):
        """The config and its backbone, with another start than the one written."""
        if start is not None:
            settings.write_text(text.replace("'torchvision://resnet50'\n", f'{start}\n'))
        config = Config.fromfile(dataset / 'own_data' / path.name)
        return config, config.model.backbone.get('backbone', config.model.backbone)

    config, backbone = read()
    assert backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    assert (backbone.frozen_stages, backbone.norm_eval, config.load_from) == (1, True, None)
    for start in ('detector.pth', url):
        config, backbone = read(repr(start))
        assert (backbone.init_cfg, config.load_from) == (None, start)
    config, backbone = read('None')
    assert (backbone.init_cfg, config.load_from) == (None, None)
    assert (backbone.frozen_stages, backbone.norm_eval) == (-1, False)

    text = text.replace('epochs = 12', 'epochs = 4')
    text = text.replace("('cat', 'dog')", "('cat', 'dog', 'cow')")
    config, _ = read("'detector.pth'")
    assert config.train_cfg.max_epochs == 4 and config.custom_hooks[0].epochs == 1
    find = load_tool('misc/check_dataset').find_class_counts
    assert {count for _, count in find(config.model)} == {3}

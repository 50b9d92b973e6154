"""tools/dataset_converters/digits.py: the files it writes, read back by those who will use them."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.utils import register_all_modules
from mmpretrain.datasets import ImageNet
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

import mmkw

TOOLS = Path(mmkw.__file__).parents[1] / 'tools'
sys.path.insert(0, str(TOOLS))

from dataset_converters import digits as maker  # noqa: E402
from dataset_converters.digits import CLASSES, DigitsSettings, make_digits  # noqa: E402

SMALL = DigitsSettings(renderings=1, image_size=32, train_scenes=6, val_scenes=4)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    assert make_digits(folder, SMALL)
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def scans_in_pictures(root, split):
    return {int(path.stem[4:8]) for path in (root / 'imagenet' / split).glob('*/*.png')}


def scans_in_scenes(root, split):
    file = root / f'coco/annotations/instances_{split}.json'
    return {annotation['scan'] for annotation in json.loads(file.read_text())['annotations']}


def test_no_scan_is_in_training_and_validation(root):
    train, val = scans_in_pictures(root, 'train'), scans_in_pictures(root, 'val')
    assert not train & val
    assert train | val == set(range(1797))
    assert scans_in_scenes(root, 'train') <= train
    assert scans_in_scenes(root, 'val') <= val


def test_every_class_is_split_80_to_20_and_named_as_scikit_learn_has_it(root):
    labels = load_digits().target
    for digit in range(10):
        train = list((root / 'imagenet/train' / str(digit)).iterdir())
        val = list((root / 'imagenet/val' / str(digit)).iterdir())
        assert len(train) == round(0.8 * (labels == digit).sum())
        assert {labels[int(path.stem[4:8])] for path in train + val} == {digit}


def test_mmpretrain_reads_the_pictures_as_imagenet(root):
    dataset = ImageNet(
        data_root=str(root / 'imagenet'), split='val', metainfo=dict(classes=CLASSES)
    )
    assert len(dataset) == 360 - 1
    info = dataset.get_data_info(0)
    assert cv2.imread(info['img_path']).shape == (32, 32, 3)
    assert CLASSES[info['gt_label']] == Path(info['img_path']).parent.name


@pytest.mark.parametrize('split, scenes', [('train', 6), ('val', 4)])
def test_boxes_and_areas_are_those_of_the_masks(root, split, scenes):
    coco = COCO(root / f'coco/annotations/instances_{split}.json')
    labels = load_digits().target
    assert len(coco.imgs) == scenes
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        assert tuple(annotation['bbox']) == box
        assert annotation['area'] == mask.sum() > 0
        assert coco.cats[annotation['category_id']]['name'] == str(labels[annotation['scan']])


def test_masks_are_where_the_digits_were_painted():
    scans, _ = maker.load_scans()
    for seed in range(20):
        picture, digits = maker.render_scene(np.random.default_rng(seed), scans, np.arange(50), 128)
        ground = maker.texture(np.random.default_rng(seed), 128)
        brightened = picture.mean(-1) - ground.mean(-1)
        covered = sum(digit['mask'].astype(int) for digit in digits)
        assert 1 <= len(digits) <= 5
        assert covered.max() == 1
        # A digit is at least 90 brighter than its ground on average, and opaque to more than
        # 0.35 inside its mask alone.
        assert np.median(brightened[covered == 1]) > 40
        assert (brightened[covered == 1] > 0).mean() > 0.99
        assert brightened[covered == 0].max() <= 0.35 * 255 + 1


def test_mmdetection_reads_the_scenes_as_coco(root):
    register_all_modules()
    dataset = CocoDataset(
        data_root=str(root / 'coco'),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    coco = COCO(root / 'coco/annotations/instances_train.json')
    assert len(dataset) == 6
    scene = dataset[3]
    annotations = coco.imgToAnns[scene['img_id']]
    assert scene['img'].shape == (128, 128, 3)
    assert [CLASSES[label] for label in scene['gt_bboxes_labels']] == [
        coco.cats[annotation['category_id']]['name'] for annotation in annotations
    ]
    for mask, annotation in zip(scene['gt_masks'].masks, annotations):
        assert np.array_equal(mask, coco.annToMask(annotation))


def test_equal_seeds_give_equal_files_and_others_do_not(root, tmp_path):
    make_digits(tmp_path / 'same', SMALL)
    assert contents(tmp_path / 'same') == contents(root)
    make_digits(tmp_path / 'other', dataclasses.replace(SMALL, seed=1))
    assert scans_in_pictures(tmp_path / 'other', 'val') != scans_in_pictures(root, 'val')


def test_complete_data_is_used_again_and_other_data_made_anew(root, tmp_path):
    folder = tmp_path / 'digits'
    shutil.copytree(root, folder)
    before = contents(folder)
    assert not make_digits(folder, SMALL)

    next((folder / 'imagenet/train/3').iterdir()).unlink()
    assert make_digits(folder, SMALL)
    assert contents(folder) == before

    assert make_digits(folder, dataclasses.replace(SMALL, val_scenes=5))
    assert len(list((folder / 'coco/val').iterdir())) == 5
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_interruption_leaves_nothing_behind(root, tmp_path, monkeypatch):
    folder = tmp_path / 'digits'
    shutil.copytree(root, folder)
    before = contents(folder)

    def full_disk(path, image, real=maker.write_image):
        if path.parent.name == '1':
            raise OSError('disk full')
        real(path, image)

    monkeypatch.setattr(maker, 'write_image', full_disk)
    with pytest.raises(OSError, match='disk full'):
        make_digits(folder, dataclasses.replace(SMALL, seed=2))
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


@pytest.mark.parametrize('content', [None, 'no json', '{"maker": "somebody else"}'])
def test_foreign_folders_are_left_alone(tmp_path, content):
    (tmp_path / 'holiday.png').write_text('mine')
    if content is not None:
        (tmp_path / 'manifest.json').write_text(content)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='was not made by'):
        make_digits(tmp_path, SMALL)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    'name, value', [('renderings', 0), ('scene_size', 64), ('seed', -1), ('train_scenes', 2.5)]
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f'{name} is {value}, expected an integer of at least'):
        DigitsSettings(**{name: value})


def test_command_line_reports_bad_values_in_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, TOOLS / 'dataset_converters/digits.py', tmp_path, '--val-scenes', '0'],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith('error: val_scenes is 0')
    assert 'Traceback' not in run.stderr


def test_missing_scikit_learn_says_how_to_get_it(tmp_path):
    # An import hook in a process of its own, as scikit-learn is installed here.
    code = (
        'import sys, runpy; sys.modules["sklearn"] = None; '
        f'sys.argv = ["digits.py", {str(tmp_path / "digits")!r}]; '
        f'runpy.run_path({str(TOOLS / "dataset_converters/digits.py")!r}, run_name="__main__")'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 1
    assert 'pip install scikit-learn' in run.stderr
    assert 'Traceback' not in run.stderr
    assert not (tmp_path / 'digits').exists()

"""Check the annotations and images of a detector's config, before training.

python tools/misc/check_dataset.py configs/own_data/mask-rcnn_kw-resnet50-1x_fpn_own.py
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import argument_parser, clear_errors, fail, load_config  # noqa: E402
from PIL import ExifTags, Image  # noqa: E402

from mmkw.networks.replacing import some_of  # noqa: E402
from mmkw.openmmlab.hooks.class_names_hook import misnamed_classes  # noqa: E402

LIMIT = 5
QUARTER_TURNS = (5, 6, 7, 8)  # values of EXIF's orientation that swap height and width


def dataset_of(config, split):
    """The innermost dataset of a split's loader, and its option."""
    dataset = (config.get(f'{split}_dataloader') or {}).get('dataset')
    option = f'{split}_dataloader.dataset'
    while dataset and 'dataset' in dataset:
        dataset, option = dataset['dataset'], f'{option}.dataset'
    if not dataset or 'ann_file' not in dataset:
        fail(f'{option} has no ann_file; expected a dataset in COCO format')
    return dataset, option


def read_annotations(path, option):
    """Read a COCO file.

    Raises:
        ValueError: If it is missing or not in COCO format.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(
            f'{option}.ann_file: cannot read {path}: {error.strerror}; paths are relative to '
            f'data_root'
        ) from error
    except ValueError as error:
        raise ValueError(f'{option}.ann_file: {path} is no JSON file: {error}') from error
    lists = ('images', 'annotations', 'categories')
    missing = [
        name
        for name in lists
        if not isinstance(content, dict) or not isinstance(content.get(name), list)
    ]
    if missing:
        raise ValueError(
            f'{path} is not in COCO format: it has no list named {some_of(missing)}; it needs '
            f'{", ".join(lists)}'
        )
    return content


def find_class_counts(value, option='model'):
    """Every ``num_classes`` of a model's config, with its option."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if key == 'num_classes':
            yield f'{option}.{key}', item
        elif isinstance(item, (dict, list, tuple)):
            yield from find_class_counts(item, f'{option}.{key}')


def check_classes(classes, categories, heads):
    """Yield what is wrong with names and numbers of classes."""
    names = [category.get('name') for category in categories]
    for name in (name for name, count in Counter(names).items() if count > 1):
        yield f'the file has the category {name!r} more than once'
    misnamed = misnamed_classes(classes, names)
    if misnamed:
        yield misnamed
    unused = [name for name in names if name not in classes]
    if unused:
        yield f'the file has categories that the config does not: {some_of(unused, LIMIT)}'
    for option, count in heads:
        if count != len(classes):
            yield f'{option} is {count}, but there are {len(classes)} classes'


def check_images(images, folder):
    """Yield what is wrong with the image files."""
    missing, broken, turned, sizes = [], [], [], []
    for image in images:
        path = folder / image['file_name']
        try:
            with Image.open(path) as opened:
                opened.load()
                stored = opened.size
                orientation = opened.getexif().get(ExifTags.Base.Orientation)
        except FileNotFoundError:
            missing.append(image['file_name'])
        except (OSError, ValueError, SyntaxError):
            broken.append(image['file_name'])
        else:
            # MMDetection turns photographs as cameras ask for.
            loaded = stored[::-1] if orientation in QUARTER_TURNS else stored
            said = (image.get('width'), image.get('height'))
            if said not in (loaded, stored):
                sizes.append(image['file_name'])
            elif said != loaded:
                turned.append(image['file_name'])
    if missing:
        yield f'images are missing in {folder}: {some_of(missing, LIMIT)}'
    if broken:
        yield f'images cannot be read: {some_of(broken, LIMIT)}'
    if turned:
        yield (
            f'images are turned while loading, as their EXIF orientation says, but the file gives '
            f'their size before that; annotate them upright: {some_of(turned, LIMIT)}'
        )
    if sizes:
        yield f'images have another size than the file says: {some_of(sizes, LIMIT)}'


def check_objects(content, with_mask):
    """Yield what is wrong with the annotations."""
    sizes = {image['id']: (image.get('width'), image.get('height')) for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    found = {kind: [] for kind in ('category', 'image', 'empty', 'outside', 'mask')}
    for annotation in content['annotations']:
        number, box = annotation.get('id'), annotation.get('bbox') or [0, 0, 0, 0]
        size = sizes.get(annotation.get('image_id'))
        wrong = dict(
            category=annotation.get('category_id') not in categories,
            image=size is None,
            empty=min(box[2:]) <= 0,
            outside=size is not None
            and None not in size
            and (min(box[:2]) < -1 or any(box[i] + box[i + 2] > size[i] + 1 for i in (0, 1))),
            mask=with_mask and not annotation.get('segmentation'),
        )
        for kind in (kind for kind, is_so in wrong.items() if is_so):
            found[kind].append(number)
    messages = dict(
        category='annotations have an unknown category_id',
        image='annotations have an unknown image_id',
        empty='annotations have an empty box (width or height 0)',
        outside='annotations have a box that leaves the image; boxes are [x, y, width, height]',
        mask='annotations have no segmentation, which masks need; take the Faster R-CNN without',
    )
    for kind, message in messages.items():
        if found[kind]:
            yield f'{message}: {some_of(found[kind], LIMIT)}'


def check_split(config, split):
    """Check one split; return what is there and what is wrong with it."""
    dataset, option = dataset_of(config, split)
    root = Path(os.path.expanduser(dataset.get('data_root') or ''))
    content = read_annotations(root / dataset['ann_file'], option)
    classes = (dataset.get('metainfo') or {}).get('classes') or ()
    if isinstance(classes, str):
        fail(misnamed_classes(classes, ()))
    if not classes:
        fail(f'{option}.metainfo.classes is empty; name the classes of your data')
    with_mask = any(step.get('with_mask') for step in dataset.get('pipeline') or ())
    problems = [
        *check_classes(tuple(classes), content['categories'], find_class_counts(config.model)),
        *check_images(content['images'], root / (dataset.get('data_prefix') or {}).get('img', '')),
        *check_objects(content, with_mask),
    ]
    names = {category['id']: category.get('name') for category in content['categories']}
    counts = Counter(names.get(item.get('category_id')) for item in content['annotations'])
    filled = {annotation.get('image_id') for annotation in content['annotations']}
    empty = sum(image['id'] not in filled for image in content['images'])
    facts = [
        f'{len(content["images"])} images, {empty} of them without objects',
        'objects: ' + ', '.join(f'{name} {counts[name]}' for name in classes),
    ]
    return facts, problems


def main(argv=None):
    args = argument_parser(__doc__).parse_args(argv)
    with clear_errors(args.debug):
        config = load_config(args)
        wrong = 0
        for split in ('train', 'val'):
            facts, problems = check_split(config, split)
            print(f'{split}: {facts[0]}')
            print(f'  {facts[1]}')
            for problem in problems:
                print(f'  WRONG: {problem}')
            wrong += len(problems)
        if wrong:
            fail(f'{wrong} things to put right, see above')
        print('nothing is wrong with the dataset')


if __name__ == '__main__':
    main()

"""Pretrain, fine-tune and evaluate KernelWarehouse on handwritten digits, within minutes.

Makes the data (tools/dataset_converters/digits.py), pretrains a classifier, fine-tunes a Mask
R-CNN from it (the configs in configs/demo) and evaluates both, with the same tools/train.py and
tools/test.py that serve any other config. What one run finished, the next one uses again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Callable

from analysis_tools.plot_logs import plot_logs
from cli_common import add_debug_option, clear_errors, fail
from dataset_converters.digits import DigitsSettings, make_digits
from mmengine.config import Config
from predictions import draw_predictions

TOOLS = Path(__file__).resolve().parent
CONFIGS = Path(os.path.relpath(TOOLS.parent / 'configs'))
CLASSIFIER = CONFIGS / 'demo/kw-resnet18-1x_digits.py'
DETECTOR = CONFIGS / 'demo/mask-rcnn_kw-resnet18-1x_fpn_digits.py'
NEXT = CONFIGS / 'imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

# Threads that spin while they wait slow each other down many times over on a busy machine.
QUIET_THREADS = dict(OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT='0')
SECONDS_BETWEEN_LINES = 15

QUICK_DATA = DigitsSettings(renderings=1, train_scenes=16, val_scenes=4)
QUICK_DIGITS = 48


class DemoError(Exception):
    """A step failed; the message says which, why and where to read on."""


def say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def step(title: str):
    """Announce a step, and say afterwards how long it took."""
    start = time.monotonic()
    say(f'\n{title}')
    yield
    say(f'  done in {minutes(time.monotonic() - start)}')


def minutes(seconds: float) -> str:
    return f'{int(seconds) // 60} min {int(seconds) % 60:02d} s'


def describe_progress(line: str) -> str | None:
    """Shorten a line of MMEngine's log to iteration, loss, temperature and time left."""
    place = re.search(r'Epoch\(\w+\).*?\[ *(\d+)/(\d+)\].*? eta: (\S+)', line)
    if place is None:
        return None
    parts = [f'iteration {place[1]:>4} of {place[2]}']
    for name in ('loss', 'temperature'):
        value = re.search(rf' {name}: ([\d.]+)', line)
        if value is not None:
            parts.append(f'{name} {float(value[1]):.2f}')
    return '   '.join([*parts, f'time left {place[3]}'])


def run_tool(command: list[str], log: Path) -> None:
    """Run a tool with its output in ``log`` and short lines of progress on the terminal.

    Raises:
        DemoError: If the tool fails; holds the command and the end of its output.
    """
    live = sys.stdout.isatty()
    spoken = time.monotonic()
    tail: deque[str] = deque(maxlen=25)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(log, 'w', encoding='utf-8'))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding='utf-8',
                errors='replace',
                env={**os.environ, **QUIET_THREADS},
            )
        )
        stack.callback(lambda: process.poll() is None and process.terminate())
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            progress = describe_progress(line)
            if progress is None:
                continue
            if live:
                print(f'\r  {progress:<76}', end='', flush=True)
            elif time.monotonic() - spoken > SECONDS_BETWEEN_LINES:
                spoken = time.monotonic()
                say(f'  {progress}')
        process.wait()
    if live:
        print('\r' + ' ' * 78, end='\r')
    if process.returncode:
        raise DemoError(
            f'this command failed with exit code {process.returncode}:\n\n'
            f'  {shlex.join(command)}\n\nits output is in {log} and ends with:\n\n{"".join(tail)}'
        )


def run_once(
    command: list[str], folder: Path, settings: list, fresh: bool, read_result: Callable
) -> dict:
    """Run a tool, unless ``folder`` holds the finished run of the same command and settings.

    Args:
        command: The command; ``--work-dir`` is added to it.
        folder: The work dir. What another or an unfinished run left there is removed.
        settings: What the outcome depends on, beside the command.
        fresh: Whether to run in any case.
        read_result: Takes ``folder`` after the run and returns a dict of what came out.

    Returns:
        What ``read_result`` returned, and the time at which it was ``made``.

    Raises:
        DemoError: If the tool fails, or ``folder`` holds something else.
    """
    command = [*command, '--work-dir', str(folder)]
    identity = json.loads(json.dumps([command, settings], default=str))
    finished, log = folder / 'finished.json', folder / 'output.log'
    if finished.exists() and not fresh:
        record = json.loads(finished.read_text())
        if record['identity'] == identity and Path(record.get('checkpoint', folder)).exists():
            say(f'  {folder} is finished already (--fresh starts anew)')
            return record
    if folder.exists():
        if not log.exists():
            raise DemoError(f'{folder} exists, but not from the demo; choose another --work-dir')
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    run_tool(command, log)
    record = dict(identity=identity, made=time.time(), **read_result(folder))
    beside = finished.with_suffix('.partial')
    beside.write_text(json.dumps(record))
    os.replace(beside, finished)
    return record


def train_and_test(
    folder: Path, config: Path, data: dict, start: dict, made_from: list, fresh: bool
) -> tuple[dict, dict]:
    """Train a config in ``folder`` and evaluate the last checkpoint in ``<folder>-test``.

    Args:
        folder: Work dir of the training.
        config: The config file.
        data: Settings to change in the config, dotted key -> value, for training and testing.
        start: The same, for training alone.
        made_from: What the outcome depends on, beside the config.
        fresh: Whether to run even if the same run is there, finished.

    Returns:
        The record of the training, with the path of its ``checkpoint``, and the scores.
    """
    settings = [Config.fromfile(config, import_custom_modules=False).to_dict(), made_from]

    def command(tool: str, *arguments: str, **options) -> list[str]:
        return [
            *(sys.executable, os.path.relpath(TOOLS / f'{tool}.py'), str(config), *arguments),
            *('--cfg-options', *(f'{key}={value}' for key, value in options.items())),
        ]

    trained = run_once(
        command('train', '--no-validate', **data, **start),
        folder,
        settings,
        fresh,
        lambda folder: dict(
            # Relative, as --cfg-options drops the spaces that the folders above may have.
            checkpoint=os.path.relpath((folder / 'last_checkpoint').read_text().strip())
        ),
    )
    tested = run_once(
        command('test', trained['checkpoint'], **data),
        folder.with_name(f'{folder.name}-test'),
        [*settings, trained['made']],
        fresh,
        lambda folder: dict(scores=json.loads(next(folder.glob('*/*.json')).read_text())),
    )
    return trained, tested['scores']


def warm_start(out: Path, digits: dict, made_from: list, fresh: bool) -> dict[str, dict]:
    """Train a plain ResNet18, convert it, and train it for as long again, annealed and not.

    Returns:
        The scores of all three, by name.
    """
    plain, plain_scores = train_and_test(
        out / 'plain',
        CLASSIFIER,
        {**digits, 'model.backbone.budget': None},
        {'custom_hooks': '[]'},
        made_from,
        fresh,
    )
    converted = out / 'plain/kw.pth'
    tool = os.path.relpath(TOOLS / 'model_converters/plain_to_mmkw.py')
    run_tool(
        [sys.executable, tool, str(CLASSIFIER), plain['checkpoint'], str(converted)],
        out / 'plain/plain_to_mmkw.log',
    )
    results = {'plain ResNet18': plain_scores}
    for name, folder, settings in (
        ('KWResNet18 1x from the plain one', 'warm-start', {}),
        ('the same, not annealed', 'not-annealed', {'custom_hooks.0.iters': 1}),
    ):
        _, results[name] = train_and_test(
            out / folder,
            CLASSIFIER,
            digits,
            {'load_from': converted, **settings},
            [*made_from, plain['made']],
            fresh,
        )
    return results


def result_table(classifiers: dict[str, dict], finetuned: dict[str, dict]) -> str:
    """Format the scores of tools/test.py as a table."""
    rows = [('', 'top-1', 'box AP', 'box AP50', 'mask AP', 'mask AP50')]
    for name, scores in classifiers.items():
        rows.append((name, f'{scores["accuracy/top1"]:.1f} %', '', '', '', ''))
    for name, scores in finetuned.items():
        keys = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')
        rows.append((name, '', *(f'{scores[f"coco/{key}"]:.3f}' for key in keys)))
    return '\n'.join(
        f'  {name:<34}' + ''.join(f'{value:>11}' for value in values) for name, *values in rows
    )


def run_demo(args: argparse.Namespace) -> None:
    """Do all steps and say what came out."""
    begin = time.monotonic()
    data, out = Path(args.data_root), Path(args.work_dir)
    for option, folder in ('--data-root', data), ('--work-dir', out):
        if re.search(r'[\s,]', str(folder)):
            raise DemoError(
                f'{option} {str(folder)!r} has a space or a comma in it, which MMEngine drops from '
                f'--cfg-options; choose a folder without, or go there and name it relative to it'
            )
    settings = QUICK_DATA if args.quick else DigitsSettings()

    with step(f'1/4  Making digits and scenes in {data}'):
        if not make_digits(data, settings):
            say('  they are there already')
    made_from = [asdict(settings)]
    digits, scenes = {}, {'test_evaluator.ann_file': data / 'coco/annotations/instances_val.json'}
    for split in ('train', 'test'):
        digits[f'{split}_dataloader.dataset.data_root'] = data / 'imagenet'
        scenes[f'{split}_dataloader.dataset.data_root'] = data / 'coco'
        if args.quick:
            digits[f'{split}_dataloader.dataset.indices'] = QUICK_DIGITS

    with step('2/4  Pretraining KWResNet18 1x on digits; the temperature falls from 1 to 0'):
        classifier, top1 = train_and_test(
            out / 'pretrain', CLASSIFIER, digits, {}, made_from, args.fresh
        )
    classifiers = {'KWResNet18 1x': top1}
    if args.warm_start:
        with step('2/4  A plain ResNet18, and KWResNet18 1x from its weights, for comparison'):
            classifiers.update(warm_start(out, digits, made_from, args.fresh))
    start_key = 'model.backbone.init_cfg'
    with step('3/4  Fine-tuning Mask R-CNN from it on scenes; the temperature is held at 0'):
        detector, scores = train_and_test(
            out / 'finetune',
            DETECTOR,
            scenes,
            {f'{start_key}.checkpoint': classifier['checkpoint']},
            [*made_from, classifier['made']],
            args.fresh,
        )
    curves = {'loss': out / 'finetune'}
    table = {'Mask R-CNN from it': scores}
    if args.from_scratch:
        with step('3/4  The same from random weights, for comparison'):
            _, scores = train_and_test(
                out / 'from-scratch', DETECTOR, scenes, {start_key: None}, made_from, args.fresh
            )
        curves = {'loss, pretrained': out / 'finetune', 'loss, random start': out / 'from-scratch'}
        table['Mask R-CNN from random weights'] = scores

    pictures = out / 'predictions.png', out / 'training.png'
    with step('4/4  Drawing'):
        draw_predictions(
            DETECTOR,
            detector['checkpoint'],
            sorted((data / 'coco/val').glob('*.png'))[:8],
            pictures[0],
        )
        plot_logs(
            {'Pretraining': {'loss': out / 'pretrain'}, 'Fine-tuning Mask R-CNN': curves},
            pictures[1],
        )
        if args.warm_start:
            starts = {
                'plain ResNet18, from random weights': out / 'plain',
                'KWResNet18 1x, from random weights': out / 'pretrain',
                'KWResNet18 1x, from the plain one': out / 'warm-start',
                'the same, not annealed': out / 'not-annealed',
            }
            plot_logs({'Training loss': starts}, out / 'warm_start.png')

    say(f'\n{result_table(classifiers, table)}\n')
    say(f'  boxes and masks      {pictures[0]}')
    say(f'  loss, temperature    {pictures[1]}')
    if args.warm_start:
        say(f'  warm start           {out / "warm_start.png"}')
    say(f'  took                 {minutes(time.monotonic() - begin)}\n')
    say('Next, the real thing, with ImageNet in data/imagenet and 8 GPUs:')
    say(f'  bash {os.path.relpath(TOOLS / "dist_train.sh")} {NEXT} 8')


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description='Pretrain, fine-tune and evaluate KernelWarehouse on handwritten digits.'
    )
    parser.add_argument(
        '--data-root', default='data/digits', help='folder of the data (default: %(default)s)'
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/demo', help='folder of the results (default: %(default)s)'
    )
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='fine-tune from random weights as well, to see what pretraining gives',
    )
    parser.add_argument(
        '--warm-start',
        action='store_true',
        help='also train a plain ResNet18, and KWResNet18 1x from its weights, annealed and not',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='a few images only, to see that everything works; the scores mean nothing',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='train and evaluate again what is finished already'
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    try:
        with clear_errors(args.debug):
            try:
                run_demo(args)
            except DemoError as error:
                fail(error)
    except KeyboardInterrupt:
        parser.exit(130, '\ninterrupted; the same command goes on where this one stopped\n')


if __name__ == '__main__':
    main()

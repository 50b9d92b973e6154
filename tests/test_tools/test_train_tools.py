"""tools/train.py, test.py and their launchers: real processes on tiny data."""

import os
import pickle
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from tiny_runs import (
    ROOT,
    TOOLS,
    assert_trained_alike,
    assert_trained_as_one,
    environment,
    load_tool,
    refused,
    run,
    scalars,
    weights,
    write_random_model,
    write_tiny,
)

import mmkw
from mmkw.checkpoints import load_checkpoint

# Annealing runs through 3 epochs of 2 iterations.
TEMPERATURES = [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0, 0]

INTERRUPTED = """
_base_ = './tiny.py'
custom_imports = dict(imports=['mmkw', 'power_cut'], allow_failed_imports=False)
custom_hooks = [dict(type='KWTemperatureHook', epochs=3), dict(type='PowerCut')]
"""
POWER_CUT = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class PowerCut(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5:
            raise KeyboardInterrupt
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp('tools'))
    (folder / 'interrupted.py').write_text(INTERRUPTED)
    (folder / 'power_cut.py').write_text(POWER_CUT)
    return folder


@pytest.fixture(scope='module')
def one_thread():
    """As in the processes that ``run`` starts: sums over more threads are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def single(folder, one_thread):
    """Work dir of an uninterrupted run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        load_tool('train').main(['tiny.py', '--auto-scale-lr'])
    return folder / 'work_dirs' / 'tiny'


def test_log_message_hub_and_checkpoint_agree(single):
    logged = [line['temperature'] for line in scalars(single)]
    np.testing.assert_allclose(logged, TEMPERATURES, atol=1e-12)
    for epoch in range(1, 5):
        checkpoint = load_checkpoint(single / f'epoch_{epoch}.pth')
        hub, _ = checkpoint['message_hub']['log_scalars']['train/temperature'].data
        np.testing.assert_allclose(hub, TEMPERATURES[: 2 * epoch], atol=1e-12)
        stored = [
            value.item()
            for name, value in checkpoint['state_dict'].items()
            if name.endswith('.temperature')
        ]
        assert len(stored) == 4
        np.testing.assert_allclose(stored, TEMPERATURES[2 * epoch - 1], rtol=1e-6)


def test_learning_rate_is_scaled(single):
    # 8 images per iteration at a rate for 16, reached after the warm-up
    rates = [line['lr'] for line in scalars(single)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.04)


@pytest.mark.slow
def test_two_processes_train_like_one(folder, single):
    """By default, test_faults.py has two ranks, and a test below the command of the script."""
    output = run(
        folder,
        TOOLS / 'dist_train.sh',
        'tiny.py',
        2,
        '--work-dir=two',
        '--auto-scale-lr',
        '--cfg-options',
        'train_dataloader.batch_size=4',
    )
    assert_trained_as_one(folder / 'two', single, output)


@pytest.mark.slow
def test_two_machines_train_like_one(folder, single):
    shared = environment(folder)
    command = ['bash', str(TOOLS / 'dist_train.sh'), 'tiny.py', '1', '--work-dir=machines']
    command += ['--auto-scale-lr', '--cfg-options', 'train_dataloader.batch_size=4']
    nodes = [
        subprocess.Popen(command, cwd=folder, env={**shared, 'NNODES': '2', 'NODE_RANK': str(rank)})
        for rank in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert_trained_alike(folder / 'machines', single)


def test_interrupted_training_resumes_exactly(folder, single, monkeypatch):
    """By epochs; test_faults.py has real kills, by iterations."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    arguments = ['--auto-scale-lr', f'--work-dir={folder / "resumed"}']
    with pytest.raises(KeyboardInterrupt):
        load_tool('train').main(['interrupted.py', *arguments])
    assert not (folder / 'resumed' / 'epoch_3.pth').exists()

    load_tool('train').main(['tiny.py', *arguments, '--resume'])
    resumed = load_checkpoint(folder / 'resumed' / 'epoch_4.pth')
    expected = load_checkpoint(single / 'epoch_4.pth')
    for name, value in expected['state_dict'].items():
        torch.testing.assert_close(resumed['state_dict'][name], value, rtol=0, atol=0)
    hub, _ = resumed['message_hub']['log_scalars']['train/temperature'].data
    np.testing.assert_allclose(hub, TEMPERATURES, atol=1e-12)
    logged = {line['step']: line['temperature'] for line in scalars(folder / 'resumed')}
    np.testing.assert_allclose([logged[step] for step in range(1, 9)], TEMPERATURES, atol=1e-12)


@pytest.mark.slow
def test_two_processes_test_like_one_model(folder, single):
    checkpoint = single / 'epoch_1.pth'
    run(
        folder,
        TOOLS / 'dist_test.sh',
        'tiny.py',
        checkpoint,
        2,
        '--out=out/predictions.pkl',
        '--show-dir=drawn',
        '--work-dir=tested',
    )
    results = pickle.loads((folder / 'out' / 'predictions.pkl').read_bytes())
    config = Config.fromfile(folder / 'tiny.py')
    model = MODELS.build(dict(config.model, _scope_='mmpretrain')).eval()
    model.load_state_dict(weights(checkpoint))
    assert mmkw.get_temperature(model) == pytest.approx(4 / 6)
    assert len(results) == 16
    for result in results:
        image = cv2.imread(result['img_path'])
        inputs = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127.5) / 64
        with torch.no_grad():
            scores = model(inputs, mode='tensor').softmax(1)[0]
        torch.testing.assert_close(result['pred_score'], scores, rtol=1e-4, atol=1e-5)
    # The first process draws, and has every second image.
    drawn = {path.name for path in (folder / 'drawn').glob('*.png')}
    assert drawn == {f'{name}{index}.png_0.png' for name in ('dark', 'bright') for index in '0246'}


def test_detection(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    write_random_model('detector.py', 'detector.pth')
    options = ['--out=objects.pkl', '--show-dir=drawn', '--work-dir=detected']
    load_tool('test').main(['detector.py', 'detector.pth', *options])
    output = capsys.readouterr().out
    assert 'coco/segm_mAP' in output
    results = pickle.loads((folder / 'objects.pkl').read_bytes())
    assert [result['img_id'] for result in results] == [0, 1]
    for result in results:
        masks = result['pred_instances']['masks']
        assert 0 < len(masks) <= 5
        assert masks[0]['size'] == [64, 64] and isinstance(masks[0]['counts'], bytes)
    assert len(list((folder / 'detected').rglob('drawn/*.png'))) == 2


def test_augmented_detection_is_of_boxes(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    write_random_model('detector.py', 'detector.pth')
    options = ['--out=boxes.pkl', '--tta', '--work-dir=boxes']
    load_tool('test').main(['detector.py', 'detector.pth', *options])
    output = capsys.readouterr().out
    assert 'coco/bbox_mAP' in output and 'segm' not in output.split('--tta tests boxes alone')[1]
    results = pickle.loads((folder / 'boxes.pkl').read_bytes())
    # Two views give up to five boxes each.
    assert max(len(result['pred_instances']['scores']) for result in results) > 5
    assert 'masks' not in results[0]['pred_instances']


@pytest.mark.slow
def test_detection_trains(folder):
    run(
        folder,
        *(sys.executable, TOOLS / 'train.py', 'detector.py'),
        *('--no-validate', '--work-dir=trained'),
    )
    (line,) = scalars(folder / 'trained')
    assert {'loss_rpn_cls', 'loss_bbox', 'loss_mask'} < set(line)


def test_folding_changes_nothing_but_rounding(folder, single, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    last, first = single / 'epoch_4.pth', single / 'epoch_1.pth'
    results = []
    for options in ([], ['--fold', '0']):
        tested = ['tiny.py', str(last), '--work-dir=folded', '--out=scores.pkl']
        load_tool('test').main([*tested, *options])
        results.append(pickle.loads((folder / 'scores.pkl').read_bytes()))
    folded = re.search(r'attentions of (\d+) layers are folded', capsys.readouterr().out)
    assert int(folded[1]) > 15
    for one, other in zip(*results):
        torch.testing.assert_close(one['pred_score'], other['pred_score'], rtol=1e-4, atol=1e-6)
    line = refused(load_tool('test'), 'tiny.py', first, '--work-dir=folded', '--fold', '0')
    assert 'at temperature 0 only' in line


def test_checkpoint_of_another_model_is_refused(single, monkeypatch, capsys):
    monkeypatch.chdir(single.parents[1])
    checkpoint = single / 'epoch_1.pth'
    options = ['--work-dir=other', '--cfg-options', 'model.backbone.budget=None']
    line = refused(load_tool('test'), 'tiny.py', checkpoint, *options)
    assert 'epoch_1.pth does not fit the model of tiny.py' in line
    assert 'accuracy' not in capsys.readouterr().out


def test_missing_files(folder):
    assert 'config file no.py does not exist' in refused(load_tool('train'), 'no.py')
    tiny = folder / 'tiny.py'
    assert 'no.pth does not exist' in refused(load_tool('test'), tiny, 'no.pth')
    assert 'no.pth does not exist' in refused(load_tool('train'), tiny, '--resume', 'no.pth')


@pytest.mark.parametrize('demo', ['kw-resnet18-1x', 'mask-rcnn_kw-resnet18-1x_fpn'])
def test_missing_data_folder(demo, folder, tmp_path, monkeypatch):
    """As somebody would meet it who starts with a config of the demo."""
    monkeypatch.chdir(tmp_path)
    config = ROOT / 'configs' / 'demo' / f'{demo}_digits.py'
    for error in (
        refused(load_tool('train'), config),
        refused(load_tool('test'), config, folder / 'tiny.py'),
    ):
        assert re.search(r'data folder data/digits/\w+/? does not exist', error)
        assert 'dataloader.dataset.data_root=' in error and 'dataset_converters/digits.py' in error
    assert not list(tmp_path.iterdir())


def test_bad_arguments(folder, capsys):
    with pytest.raises(SystemExit):
        load_tool('test').main([str(folder / 'tiny.py'), 'x.pth', '--out', 'predictions.json'])
    assert "'predictions.json'" in capsys.readouterr().err

    error = refused(load_tool('train'), folder / 'detector.py', '--auto-scale-lr')
    assert 'auto_scale_lr.base_batch_size' in error and 'detector.py' in error

    option = 'default_hooks.visualization.type=Other'
    error = refused(
        load_tool('test'), folder / 'tiny.py', __file__, '--show', '--cfg-options', option
    )
    assert 'DetVisualizationHook' in error and 'Other' in error

    error = refused(load_tool('train'), folder / 'tiny.py', '--launcher=pytorch')
    assert 'dist_train.sh' in error


def changed_config(tool, *args):
    args = tool.parse_args([str(arg) for arg in args])
    config = tool.load_config(args)
    tool.apply_arguments(config, args)
    return config


def test_mixed_precision(folder):
    tool, tiny = load_tool('train'), folder / 'tiny.py'
    if get_device() == 'cpu':
        assert '--amp needs a GPU' in refused(tool, tiny, '--amp')
    else:
        config = changed_config(tool, tiny, '--amp')
        assert config.optim_wrapper.type == 'AmpOptimWrapper'
        assert config.optim_wrapper.loss_scale == 'dynamic'
    option = 'optim_wrapper.type=ApexOptimWrapper'
    error = refused(tool, tiny, '--amp', '--cfg-options', option)
    assert 'ApexOptimWrapper' in error


def test_arguments_change_the_config(folder, single):
    tool, tiny = load_tool('train'), folder / 'tiny.py'
    config = changed_config(tool, tiny)
    assert config.work_dir == os.path.join('.', 'work_dirs', 'tiny')
    assert not config.get('resume') and config.val_cfg is not None
    assert config.train_dataloader.collate_fn.type == 'default_collate'

    options = ['--resume', '--cfg-options', 'load_from=old.pth']
    config = changed_config(tool, tiny, '--work-dir', single, *options)
    assert config.resume is True and config.load_from == str(single / 'epoch_4.pth')
    config = changed_config(tool, tiny, '--work-dir=new', *options)
    assert config.resume is False and config.load_from == 'old.pth'
    config = changed_config(tool, tiny, '--resume', tiny, '--work-dir=w', '--no-validate')
    assert config.resume is True and config.load_from == str(tiny) and config.work_dir == 'w'
    assert config.val_cfg is config.val_dataloader is config.val_evaluator is None
    options = ['--work-dir', single, '--cfg-options', 'resume=True']
    assert changed_config(tool, tiny, *options).load_from == str(single / 'epoch_4.pth')
    assert 'collate_fn' not in changed_config(tool, folder / 'detector.py').train_dataloader

    tool = load_tool('test')
    config = changed_config(tool, tiny, tiny, '--tta', '--cfg-options', 'resume=True')
    assert config.resume is False and config.load_from == str(tiny)
    assert config.model.type == 'AverageClsScoreTTA'
    assert config.model.module.type == 'ImageClassifier'
    flips, (pack,) = config.test_dataloader.dataset.pipeline[-1].transforms
    assert [flip.prob for flip in flips] == [1, 0] and pack.type == 'PackInputs'


def test_keeping_one_checkpoint_only_is_risky(folder):
    hooks = dict(checkpoint=dict(type='CheckpointHook', max_keep_ckpts=1))
    (folder / 'risky.py').write_text(f"_base_ = './tiny.py'\ndefault_hooks = {hooks}\n")
    with pytest.warns(UserWarning, match='max_keep_ckpts=1.*keep 2'):
        changed_config(load_tool('train'), folder / 'risky.py')


def test_shell_scripts_say_how_to_use_them(folder):
    for script, arguments in (
        ('dist_train.sh', ['tiny.py']),
        ('dist_test.sh', ['tiny.py', 'x.pth']),
        ('slurm_train.sh', ['partition', 'job', 'tiny.py']),
    ):
        output = run(folder, TOOLS / script, *arguments, expect=2)
        assert output.startswith('usage: ') and script in output and 'CONFIG' in output


@pytest.fixture
def show_arguments(tmp_path):
    """Makes a program of that name, which prints its arguments line by line."""

    def make(name):
        (tmp_path / name).write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\n')
        (tmp_path / name).chmod(0o755)
        return tmp_path / name

    return make


def test_distributed_testing_starts_test_py(folder, show_arguments):
    """As dist_train.sh starts train.py."""
    scripts = {}
    for script, arguments in (('dist_train.sh', ['a b.py']), ('dist_test.sh', ['a b.py', 'c.pth'])):
        scripts[script] = run(
            folder,
            *(TOOLS / script, *arguments, 2, '--work-dir=two'),
            PYTHON=str(show_arguments('python')),
            PORT='29511',
        ).splitlines()
    expected = [line.replace('train.py', 'test.py') for line in scripts['dist_train.sh']]
    expected.insert(expected.index('a b.py') + 1, 'c.pth')
    assert scripts['dist_test.sh'] == expected
    assert expected[expected.index('a b.py') - 1] == str(TOOLS / 'test.py')


def test_slurm_job(folder, tmp_path, show_arguments):
    show_arguments('srun')
    output = run(
        folder,
        TOOLS / 'slurm_train.sh',
        'gpus',
        'my job',
        'tiny.py',
        'work dir',
        '--amp',
        PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}',
        GPUS='16',
        SRUN_ARGS='--exclude=node1 --time=10',
    )
    assert output.splitlines() == [
        '--partition=gpus',
        '--job-name=my job',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--exclude=node1',
        '--time=10',
        sys.executable,
        '-u',
        str(TOOLS / 'train.py'),
        'tiny.py',
        '--work-dir=work dir',
        '--launcher=slurm',
        '--amp',
    ]

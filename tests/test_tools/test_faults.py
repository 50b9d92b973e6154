"""Training runs that are killed, cut off, stopped or shared by two ranks: real processes.

Importing torch and OpenMMLab takes seconds, so one process does so and forks for every run.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_runs import TOOLS, assert_trained_as_one, environment, write_tiny

from mmkw.checkpoints import load_checkpoint

ITERS = 24
TIMEOUT = 120
RANK_TIMEOUT = 10
RANK_ITERS = 14

CONFIG = f"""
_base_ = './tiny.py'
custom_imports = dict(imports=['mmkw', 'cut_write'], allow_failed_imports=False)
model = dict(backbone=dict(base_channels=8, stem_channels=8), head=dict(in_channels=64))
train_dataloader = dict(sampler=dict(type='InfiniteSampler', _delete_=True), num_workers=1)
val_dataloader = val_cfg = val_evaluator = None
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters={ITERS}, val_interval={ITERS + 1}
)
custom_hooks = [dict(type='KWTemperatureHook', iters=10), dict(type='EMAHook', momentum=0.1)]
log_processor = dict(by_epoch=False)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=3)
)
"""

# The kernel ends the process, as abruptly as kill -9, at a byte in the middle of a checkpoint.
CUT_WRITE = """
import os, resource, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class CutWrite(Hook):
    def __init__(self, iteration, size):
        self.iteration, self.size = iteration, size

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
"""

# Reads lines of JSON: arguments, environment and log file of a run to start, or the id of one to
# wait for.
LAUNCHER = """
import gc, json, os, sys
import mmengine.visualization, mmpretrain.apis, train

gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    if 'wait' in request:
        status = os.waitpid(request['wait'], 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.environ.update(request['env'])
        log = os.open(request['log'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.exit(train.main(request['args']))
    print(pid, flush=True)
"""


class Run:
    """A process of tools/train.py."""

    def __init__(self, launcher, log_path, args, env):
        self.launcher, self.log_path, self.ended = launcher, log_path, False
        self.pid = int(launcher(args=[str(a) for a in args], env=env, log=str(log_path)))

    def output(self):
        return self.log_path.read_text() if self.log_path.exists() else ''

    def wait_for_iterations(self, count):
        deadline = time.monotonic() + TIMEOUT
        while self.output().count('Iter(train)') < count:
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)

    def end(self, expect):
        """Wait for the process and check how it ended: its status, or minus a signal."""
        status = int(self.launcher(wait=self.pid))
        self.ended = True
        assert status == expect, self.output()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp('faults'))
    (folder / 'long.py').write_text(CONFIG)
    (folder / 'cut_write.py').write_text(CUT_WRITE)
    return folder


@pytest.fixture(scope='module')
def start(folder):
    """Starts tools/train.py with the arguments given; leaves nothing running in the end."""
    env = environment(folder, OPENBLAS_NUM_THREADS='1')
    env['PYTHONPATH'] = os.pathsep.join([env['PYTHONPATH'], str(TOOLS)])
    runs = []
    with subprocess.Popen(
        [sys.executable, '-c', LAUNCHER],
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def launcher(**request):
            process.stdin.write(json.dumps(request) + '\n')
            process.stdin.flush()
            return process.stdout.readline()

        def start(*args, **env):
            runs.append(Run(launcher, folder / f'log{len(runs)}.txt', args, env))
            return runs[-1]

        yield start
        for run in runs:
            if not run.ended:
                os.kill(run.pid, signal.SIGKILL)
        process.stdin.close()


@pytest.fixture(scope='module')
def whole(folder, start):
    """The work dir of a run that nothing interrupts."""
    start('long.py', '--work-dir=whole').end(expect=0)
    return folder / 'whole'


def assert_same_end(work_dir, whole, iters=ITERS):
    """Bit by bit the weights, their averages, the optimizer's state and the temperatures."""
    assert not list(work_dir.glob('.*.partial'))
    ended, expected = (load_checkpoint(path / f'iter_{iters}.pth') for path in (work_dir, whole))
    for key in ('state_dict', 'ema_state_dict'):
        assert list(ended[key]) == list(expected[key])
        for name, value in expected[key].items():
            assert torch.equal(ended[key][name], value), name
    for one, other in zip(*(c['optimizer']['state'].values() for c in (ended, expected))):
        assert torch.equal(one['momentum_buffer'], other['momentum_buffer'])
    temperatures = [max(0, 1 - step / 10) for step in range(1, iters + 1)]
    for checkpoint in (ended, expected):
        hub = checkpoint['message_hub']['log_scalars']['train/temperature']
        np.testing.assert_allclose(hub.data[0], temperatures, atol=1e-12)


def kill_at_random_moments(count, start, work_dir):
    """While a run starts, or some iterations later, within one or while it saves."""
    seed = random.SystemRandom().randrange(2**32)
    print(f'seed of the moments: {seed}')
    moments = random.Random(seed)
    for _ in range(count):
        run = start('long.py', f'--work-dir={work_dir}', '--resume')
        iterations = moments.randrange(3)
        run.wait_for_iterations(iterations)
        time.sleep(moments.uniform(0, 0.05 if iterations else 0.5))
        os.kill(run.pid, signal.SIGKILL)
        run.end(expect=-signal.SIGKILL)


def test_cut_off_stopped_and_killed(folder, start, whole):
    """One training that meets each of them once, and ends as if it had not."""
    work_dir = folder / 'faults'
    size = (whole / f'iter_{ITERS}.pth').stat().st_size // 2
    cut = dict(type='CutWrite', iteration=5, size=size)
    (folder / 'cut.py').write_text(
        f"_base_ = './long.py'\ncustom_hooks = [*_base_.custom_hooks, {cut}]\n"
    )
    start('cut.py', f'--work-dir={work_dir}').end(expect=-signal.SIGXFSZ)
    (partial,) = work_dir.glob('.*.partial')
    assert partial.name.startswith('.iter_6.pth') and partial.stat().st_size == size
    assert not (work_dir / 'iter_6.pth').exists()

    run = start('long.py', f'--work-dir={work_dir}', '--resume')
    run.wait_for_iterations(4)
    os.kill(run.pid, signal.SIGTERM)
    run.end(expect=-signal.SIGTERM)
    assert 'iter: 4' in run.output()

    kill_at_random_moments(1, start, work_dir)
    start('long.py', f'--work-dir={work_dir}', '--resume').end(expect=0)
    assert_same_end(work_dir, whole)


@pytest.mark.slow
def test_killed_at_ten_random_moments(folder, start, whole):
    work_dir = folder / 'killed'
    kill_at_random_moments(10, start, work_dir)
    run = start('long.py', f'--work-dir={work_dir}', '--resume')
    run.end(expect=0)
    assert 'resumed' in run.output()
    assert_same_end(work_dir, whole)


def test_damaged_last_checkpoint(folder, start, whole):
    """Another writer, a copy or a disk may damage a file; no later run may stumble over it."""
    work_dir = folder / 'damaged'
    shutil.copytree(whole, work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / f'iter_{ITERS}.pth'))
    for iteration in (ITERS, ITERS - 2):
        content = (work_dir / f'iter_{iteration}.pth').read_bytes()
        (work_dir / f'iter_{iteration}.pth').write_bytes(content[: len(content) // 2])
    run = start('long.py', f'--work-dir={work_dir}', '--resume')
    run.end(expect=0)
    fallback = rf'resuming from .*iter_{ITERS - 4}.pth, since .*iter_{ITERS}.pth is truncated'
    assert re.search(f'UserWarning: {fallback}', run.output())
    assert_same_end(work_dir, whole)

    for path in work_dir.glob('*.pth'):
        path.write_bytes(b'')
    run = start('long.py', f'--work-dir={work_dir}', '--resume')
    run.end(expect=1)
    line = run.output().splitlines()[-1]
    assert line.startswith('error: ') and 'has no complete checkpoint to resume from' in line
    assert 'Traceback' not in run.output()


@pytest.fixture(scope='module')
def two_ranks(folder, start):
    """Starts two processes that train together over gloo."""

    def start_both(*args):
        port = environment(folder)['PORT']
        env = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2')
        args = ['--launcher=pytorch', *args]
        return [start(*args, RANK=str(rank), LOCAL_RANK=str(rank), **env) for rank in range(2)]

    return start_both


def test_two_ranks_train_like_one(folder, start, two_ranks):
    start('tiny.py', '--auto-scale-lr', '--work-dir=one').end(expect=0)
    halves = ['--cfg-options', 'train_dataloader.batch_size=4']
    ranks = two_ranks('tiny.py', '--auto-scale-lr', '--work-dir=both', *halves)
    for run in ranks:
        run.end(expect=0)
    output = ''.join(run.output() for run in ranks)
    assert_trained_as_one(folder / 'both', folder / 'one', output)


@pytest.fixture(scope='module')
def long_of_two(two_ranks):
    """Starts two processes that share the training of long.py."""
    # A worker of a killed process lives on for some seconds, and with it the connection.
    options = ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0']
    options += [f'env_cfg.dist_cfg.timeout={RANK_TIMEOUT}', f'train_cfg.max_iters={RANK_ITERS}']
    return lambda *args: two_ranks('long.py', *args, '--cfg-options', *options)


@pytest.fixture(scope='module')
def whole_of_two(folder, long_of_two):
    for run in long_of_two('--work-dir=two'):
        run.end(expect=0)
    return folder / 'two'


@pytest.mark.slow
@pytest.mark.parametrize('fault', [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_ranks_fails(fault, folder, long_of_two, whole_of_two):
    """The other one ends with an error within the time-out, and the run resumes."""
    work_dir = folder / f'two_{fault.name}'
    first, second = long_of_two(f'--work-dir={work_dir}')
    first.wait_for_iterations(5)
    begin = time.monotonic()
    os.kill(second.pid, fault)
    first.end(expect=1)
    # To end takes a process some seconds, too.
    assert time.monotonic() - begin < RANK_TIMEOUT + 10
    assert 'RuntimeError' in first.output()
    os.kill(second.pid, signal.SIGKILL)
    second.end(expect=-signal.SIGKILL)

    for run in long_of_two(f'--work-dir={work_dir}', '--resume'):
        run.end(expect=0)
    assert_same_end(work_dir, whole_of_two, RANK_ITERS)

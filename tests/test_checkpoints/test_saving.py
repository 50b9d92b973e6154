"""Whole files only, and the checkpoint that a run resumes from."""

import os
import platform
import resource
import signal
import subprocess
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hostile_pickles import creates
from mmengine.config import Config
from mmengine.runner.checkpoint import save_checkpoint as save_by_mmengine
from toy_runs import toy_runner

from mmkw.checkpoints import (
    CheckpointError,
    UnsafeCheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    take_seed,
)
from mmkw.files import remove_partial_files


@contextmanager
def full_disk():
    """No file can grow beyond 10 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize('write', [save_checkpoint, save_by_mmengine])
def test_failed_write_leaves_the_earlier_file(write, tmp_path):
    path = tmp_path / 'file.pth'
    path.write_bytes(b'earlier')
    with pytest.raises(OSError, match=f'File too large.*{path}'), full_disk():
        write(dict(weight=torch.zeros(5000)), str(path))
    assert path.read_bytes() == b'earlier'
    assert list(tmp_path.iterdir()) == [path]


def test_mmengine_creates_the_folder_and_replaces_files(tmp_path):
    path = tmp_path / 'a' / 'b' / 'file.pth'
    for content in (1, 2):
        save_by_mmengine(dict(content=content), str(path))
        assert load_checkpoint(path) == dict(content=content)
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_partial_files_of_dead_processes_are_removed(tmp_path):
    with subprocess.Popen(['true']) as dead:
        dead.wait()
    machine = platform.node()
    left = [f'.epoch_{number}.pth.{machine}.{dead.pid}.partial' for number in (2, 3)]
    running = f'.epoch_3.pth.{machine}.{os.getpid()}.partial'
    elsewhere = f'.epoch_3.pth.another{machine}.{dead.pid}.partial'
    kept = {running, elsewhere, 'epoch_2.pth', '.hidden', 'notes.partial', '.a.b.partial'}
    for name in (*kept, *left):
        (tmp_path / name).touch()
    save_checkpoint({}, tmp_path / 'epoch_2.pth')
    assert {path.name for path in tmp_path.iterdir()} == {*kept, left[1]}
    remove_partial_files(tmp_path)
    remove_partial_files(tmp_path / 'none')
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run: checkpoints of three epochs."""
    folder = tmp_path / tmp_path.name
    toy_runner(folder, epochs=3).train()
    for epoch in (1, 2, 3):
        os.utime(folder / f'epoch_{epoch}.pth', (epoch, epoch))
    return folder


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    """One bit of a weight, which torch itself would not notice."""
    content = bytearray(path.read_bytes())
    weight = load_checkpoint(path)['state_dict']['layers.0.weight'].numpy().tobytes()
    content[content.index(weight) + 5] ^= 1
    path.write_bytes(content)


def test_the_last_one_without_a_word(run):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert latest_checkpoint(run) == str(run / 'epoch_3.pth')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (truncate, 'epoch_3.pth is truncated'),
        (flip, r'epoch_3.pth cannot be read .*data/\d+ in it is damaged: Bad CRC'),
        (os.unlink, 'epoch_3.pth does not exist'),
    ],
)
def test_falls_back_to_the_newest_complete_one(damage, message, run):
    damage(run / 'epoch_3.pth')
    # Newer, but without the optimizer's state, a run would not go on the same from it.
    best = load_checkpoint(run / 'epoch_1.pth')
    del best['optimizer']
    torch.save(best, run / 'best_accuracy_epoch_1.pth')
    with pytest.warns(UserWarning, match=f'resuming from .*epoch_2.pth, since .*{message}'):
        assert latest_checkpoint(run) == str(run / 'epoch_2.pth')


def name_folder(run):
    (run / 'last_checkpoint').write_text(str(run))


def name_weights(run):
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), run / 'weights.pth')
    os.utime(run / 'weights.pth', (0, 0))
    (run / 'last_checkpoint').write_text(str(run / 'weights.pth'))


def name_no_text(run):
    (run / 'last_checkpoint').write_bytes(b'\xff\xfe\x80')


def name_no_path(run):
    (run / 'last_checkpoint').write_text('x' * 10_000)


def name_link(run):
    (run / 'link.pth').symlink_to(run / 'gone.pth')
    (run / 'last_checkpoint').write_text(str(run / 'link.pth'))


def be_a_link(run):
    (run / 'last_checkpoint').unlink()
    (run / 'last_checkpoint').symlink_to(run / 'gone')


def be_a_pipe(run):
    (run / 'last_checkpoint').unlink()
    os.mkfifo(run / 'last_checkpoint')


@pytest.mark.parametrize(
    ('prepare', 'message'),
    [
        (name_folder, 'is a folder'),
        (name_weights, 'weights.pth holds no state of a run'),
        (name_no_text, 'last_checkpoint cannot be read'),
        (name_no_path, 'last_checkpoint cannot be read'),
        (name_link, 'link.pth does not exist'),
        (be_a_link, 'last_checkpoint cannot be read'),
        (be_a_pipe, 'last_checkpoint cannot be read'),
    ],
)
def test_odd_notes_lead_to_the_next_good_one(prepare, message, run):
    prepare(run)
    with pytest.warns(UserWarning, match=f'epoch_3.pth, since .*{message}'):
        assert latest_checkpoint(run) == str(run / 'epoch_3.pth')


def test_a_file_that_another_run_removes_meanwhile(run, monkeypatch):
    truncate(run / 'epoch_3.pth')

    def glob(folder, pattern):
        return iter([*folder.iterdir(), folder / 'gone.pth']) if pattern == '*.pth' else iter([])

    monkeypatch.setattr(Path, 'glob', glob)
    with pytest.warns(UserWarning, match='epoch_2.pth, since .*epoch_3.pth is truncated'):
        assert latest_checkpoint(run) == str(run / 'epoch_2.pth')


def test_odd_files_beside_it(run):
    (run / 'last_checkpoint').unlink()
    (run / 'link.pth').symlink_to(run / 'gone.pth')
    (run / 'folder.pth').mkdir()
    with pytest.warns(UserWarning, match='epoch_3.pth, since .*gone|link'):
        assert latest_checkpoint(run) == str(run / 'epoch_3.pth')


@pytest.mark.newer_torch
def test_sparse_tensors_in_a_checkpoint(run):
    checkpoint = load_checkpoint(run / 'epoch_3.pth')
    checkpoint['state_dict']['sparse'] = torch.eye(3).to_sparse()
    checkpoint['state_dict']['rows'] = torch.eye(3).to_sparse_csr()
    torch.save(checkpoint, run / 'epoch_3.pth')
    assert latest_checkpoint(run) == str(run / 'epoch_3.pth')


def test_killed_while_noting_the_last_one(run):
    (run / 'last_checkpoint').write_text('')
    with pytest.warns(UserWarning, match='epoch_3.pth, since .*last_checkpoint is empty'):
        assert latest_checkpoint(run) == str(run / 'epoch_3.pth')
    (run / 'last_checkpoint').unlink()
    assert latest_checkpoint(run) == str(run / 'epoch_3.pth')


def test_checkpoints_elsewhere(run, tmp_path):
    """CheckpointHook(out_dir=...) saves in another folder than the work dir."""
    run.rename(tmp_path / 'out')
    run.mkdir()
    (run / 'last_checkpoint').write_text(str(tmp_path / 'out' / 'epoch_3.pth'))
    assert latest_checkpoint(run) == str(tmp_path / 'out' / 'epoch_3.pth')
    truncate(tmp_path / 'out' / 'epoch_3.pth')
    with pytest.warns(UserWarning):
        assert latest_checkpoint(run) == str(tmp_path / 'out' / 'epoch_2.pth')
    (run / 'last_checkpoint').write_text('s3://bucket/epoch_3.pth')
    assert latest_checkpoint(run) == 's3://bucket/epoch_3.pth'
    deepspeed = run / 'epoch_4.pth'
    deepspeed.mkdir()
    (deepspeed / 'mp_rank_00_model_states.pt').touch()
    (run / 'last_checkpoint').write_text(str(deepspeed))
    assert latest_checkpoint(run) == str(deepspeed)


def test_nothing_to_resume_from(run, tmp_path):
    assert latest_checkpoint(tmp_path / 'none') is None
    (tmp_path / 'new').mkdir()
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'new' / 'pretrained.pth')
    assert latest_checkpoint(tmp_path / 'new') is None

    for path in run.glob('*.pth'):
        truncate(path)
    with pytest.raises(CheckpointError) as error:
        latest_checkpoint(run)
    for part in ('no complete checkpoint', 'epoch_1.pth', 'epoch_3.pth', 'another work dir'):
        assert part in str(error.value)


@pytest.mark.parametrize('name', ['epoch_3.pth', 'epoch_2.pth'])
def test_classes_that_are_not_admitted_are_no_damage(name, run):
    if name == 'epoch_2.pth':
        (run / 'epoch_3.pth').unlink()
    torch.save(creates(run / 'ran'), run / name)
    with pytest.raises(UnsafeCheckpointError, match='posix.system'):
        latest_checkpoint(run)
    assert not (run / 'ran').exists()


def test_a_run_without_a_seed_is_resumed_with_its_own(tmp_path):
    """The same batches as without the interruption: DefaultSampler shuffles with this seed."""
    first = toy_runner(tmp_path, epochs=2, randomness=dict(seed=None))
    first.train()
    config = Config(dict(resume=True, load_from=latest_checkpoint(tmp_path)))
    take_seed(config, config.load_from)
    assert config.randomness == dict(seed=first.seed)
    second = toy_runner(tmp_path, epochs=3, **config)
    second.train()
    samplers = [runner.train_dataloader.sampler for runner in (first, second)]
    for sampler in samplers:
        sampler.set_epoch(2)
    assert list(samplers[0]) == list(samplers[1])

    config = dict(randomness=dict(seed=7, deterministic=True))
    take_seed(config, tmp_path / 'epoch_3.pth')
    assert config['randomness'] == dict(seed=7, deterministic=True)

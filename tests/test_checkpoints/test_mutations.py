"""Checkpoints damaged at random: each gives one clear error or a correct result, and runs nothing.

Two files are damaged: one of the release, which is read and converted, and one of a training run,
which is read and initialises a backbone through ``init_cfg``. Each use may compute for ten seconds,
in 1 GB more than what the process has at the beginning.
"""

import logging
import pickle
import random
import resource
import time
import zipfile
from collections import Counter
from functools import partial

import pytest
import torch
from golden import load_golden, make_released_checkpoint
from hostile_pickles import payloads
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import MODELS

from mmkw.checkpoints import CheckpointError, convert_released, load_checkpoint

BACKBONE = dict(type='KWResNet', depth=18, stem_channels=8, base_channels=8)
SECONDS = 10
GIGABYTE = 1 << 30


def truncate(random, path, save, **_):
    """Some bytes are missing at the end."""
    save()
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def flip(random, path, save, **_):
    """One to eight bits differ, anywhere in the file."""
    save()
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 8])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def flip_pickle(random, path, save, **_):
    """One to eight bits of the pickle differ, and the checksum is that of the damaged one."""
    save()
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith('data.pkl'))
    content = bytearray(records[name])
    for _ in range(random.choice([1, 1, 8])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    records[name] = bytes(content)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def rename(random, weights, save, **_):
    name = random.choice(list(weights))
    new_name = random.choice([f'{name}x', f'module.{name}', name[1:], name.replace('.', '_')])
    weights[new_name] = weights.pop(name)
    save()


def reshape(random, weights, save, **_):
    name = random.choice([name for name in weights if weights[name].dim()])
    value = weights[name]
    weights[name] = random.choice(
        [
            lambda: value[:-1],
            lambda: torch.cat([value, value]),
            lambda: value.flatten()[:3],
            lambda: value[..., None].expand(*value.shape, 2).clone(),
        ]
    )()
    save()


def retype(random, weights, save, **_):
    name = random.choice([name for name in weights if weights[name].is_floating_point()])
    dtype = random.choice(['float16', 'bfloat16', 'float64', 'int64', 'int8', 'bool', 'complex64'])
    weights[name] = weights[name].to(getattr(torch, dtype))
    save()


def not_finite(random, weights, save, **_):
    names = [name for name in weights if weights[name].is_floating_point()]
    name = random.choice(names)
    weights[name] = value = weights[name].clone()
    value.view(-1)[random.randrange(value.numel())] = float(random.choice(['nan', 'inf', '-inf']))
    save()


def drop(random, weights, save, **_):
    for name in random.sample(list(weights), random.choice([1, 1, 5])):
        del weights[name]
    save()


def add(random, weights, save, **_):
    name = random.choice(list(weights))
    weights[f'{name.rpartition(".")[0]}.surprise'] = torch.zeros(3)
    save()


def replace(random, weights, save, **_):
    """Something else in place of a tensor."""
    weights[random.choice(list(weights))] = random.choice([None, 'text', 3.0, [1.0, 2.0], {}])
    save()


def infect(random, path, checkpoint, weights, save, marker, **_):
    """A program in place of a tensor or beside the weights, or the file is one altogether."""
    payload, _ = payloads(marker)[random.choice(list(payloads(marker)))]
    where = random.randrange(3)
    if where == 0:
        path.write_bytes(pickle.dumps(payload, 2))
        return
    if where == 1:
        weights[random.choice(list(weights))] = payload
    else:
        checkpoint['args'] = payload
    save(_use_new_zipfile_serialization=random.random() < 0.5)


DAMAGES = (
    truncate,
    flip,
    flip_pickle,
    rename,
    reshape,
    retype,
    not_finite,
    drop,
    add,
    replace,
    infect,
)
# After these, values may differ from those of the whole file without an error.
MAY_CHANGE_VALUES = (flip_pickle, retype, not_finite)


@pytest.fixture(scope='module')
def files():
    """The content of both files, and under which key it has the weights."""
    torch.manual_seed(0)
    state_dict = MODELS.build(BACKBONE).state_dict()
    weights = {f'backbone.{name}': value for name, value in state_dict.items()}
    trained = dict(
        meta=dict(epoch=1, iter=2),
        state_dict=dict(weights, **{'head.fc.weight': torch.randn(2, 64)}),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])}),
        optimizer=dict(state={}, param_groups=[dict(lr=0.1, params=[0])]),
    )
    released = make_released_checkpoint(load_golden('kw_mobilenetv2_050_1d2x'))
    return (released, 'model'), (trained, 'state_dict')


@pytest.fixture(scope='module')
def whole(files, tmp_path_factory):
    """The file of the release, undamaged, converted."""
    path = tmp_path_factory.mktemp('whole') / 'released.pth'
    torch.save(files[0][0], path)
    return convert_released(path)['state_dict']


def same(one, other):
    return torch.equal(one, other) and one.dtype == other.dtype


@pytest.fixture
def log():
    """What MMEngine logs at present."""
    messages = []

    class Collector(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Collector()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def read(path, damage, weights):
    """Read it; the result is what was written, or where bits were flipped, the whole content."""
    checkpoint = load_checkpoint(path)
    if damage is flip_pickle:
        return
    found = checkpoint['model' if 'model' in checkpoint else 'state_dict']
    assert list(found) == list(weights)
    for name, value in weights.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert found[name] == value


def convert(path, damage, whole, out):
    """Convert it; an error leaves no file, and a result is that of the whole file."""
    try:
        result = convert_released(path, out)['state_dict']
    except (ValueError, CheckpointError):
        assert not out.exists()
        raise
    written = load_checkpoint(out)['state_dict']
    out.unlink()
    assert list(result) == list(written) == list(whole)
    for name, value in whole.items():
        assert same(result[name], written[name]), name
        if damage not in MAY_CHANGE_VALUES:
            assert same(result[name], value), name
        elif damage is retype:
            torch.testing.assert_close(result[name], value, rtol=1e-2, atol=1e-2)
        else:
            assert damage is flip_pickle, 'values that are not finite were converted'


def initialise(path, damage, weights, log):
    """Initialise a backbone: it has every tensor of the file that fits.

    MMEngine logs a warning with the names of the others.
    """
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    backbone = MODELS.build(dict(BACKBONE, init_cfg=init_cfg))
    log.clear()
    backbone.init_weights()
    if damage is flip_pickle:
        return None
    outcome = None
    for name, value in backbone.state_dict().items():
        given = weights.get(f'backbone.{name}')
        if isinstance(given, torch.Tensor) and given.shape == value.shape:
            expected = given.to(value.dtype)
            torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
        elif not name.endswith(('num_batches_tracked', '.temperature')):
            assert any(name in message for message in log), name
            outcome = 'warning'
    return outcome


def peak_memory():
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture
def memory_limit():
    """A gigabyte more than the process has now."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open('/proc/self/statm') as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ('count', 'seed'),
    [(20, 0), *(pytest.param(486, seed, marks=pytest.mark.slow) for seed in (1, None))],
)
def test_damaged_checkpoints(count, seed, tmp_path, files, whole, log, memory_limit):
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f'\nseed of the damages: {seed}')
    choices = random.Random(seed)
    torch.manual_seed(seed)
    marker = tmp_path / 'payload' / 'ran'
    marker.parent.mkdir()
    outcomes, problems, longest = Counter(), [], (0, '')
    memory_before = peak_memory()
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        is_released = number // len(DAMAGES) % 3 == 0
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / 'damaged.pth'
        content, key = files[0 if is_released else 1]
        weights = dict(content[key])
        checkpoint = dict(content, **{key: weights})
        damage(
            random=choices,
            path=path,
            checkpoint=checkpoint,
            weights=weights,
            save=partial(torch.save, checkpoint, path),
            marker=marker,
        )
        second = partial(convert, whole=whole, out=folder / 'out.pth')
        if not is_released:
            second = partial(initialise, weights=weights, log=log)
        for use in (partial(read, weights=weights), second):
            begin = time.process_time()
            try:
                outcome = use(path, damage) or 'correct'
            except (CheckpointError, ValueError) as error:
                outcome = type(error).__name__
                names = [name.removeprefix('backbone.') for name in (*content[key], *weights)]
                if not any(part in str(error) for part in (str(path), *names)):
                    problems.append(f'file {number}, {damage.__name__}: {error} does not name it')
            except Exception as error:
                outcome = 'PROBLEM'
                problems.append(f'file {number}, {damage.__name__}: {error!r}')
            longest = max(
                longest, (time.process_time() - begin, f'file {number}, {damage.__name__}')
            )
            outcomes[damage.__name__, use.func.__name__, outcome] += 1
            assert not marker.exists(), f'the payload of file {number} ran'
            assert list(folder.iterdir()) == [path], f'file {number} left another file'
        path.unlink()
    for (damage, use, outcome), times in sorted(outcomes.items()):
        print(f'{damage:<12} {use:<11} {outcome:<22} {times:>3}')
    print(
        f'{count} damaged checkpoints, {sum(outcomes.values())} uses; {longest[0]:.1f} s at most '
        f'({longest[1]}), peak of memory {peak_memory():.0f} MiB ({memory_before:.0f} before)'
    )
    assert not problems, '\n'.join(problems)
    assert {outcome for damage, _, outcome in outcomes if damage == 'truncate'} == {
        'CheckpointError'
    }
    assert {outcome for damage, _, outcome in outcomes if damage == 'infect'} == {
        'UnsafeCheckpointError'
    }
    assert longest[0] < SECONDS

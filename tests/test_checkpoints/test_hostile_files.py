"""Files built to run code, to hang the reader or to exhaust it: each is refused, and quickly.

Every file is read in a process that ends after five seconds of computing, or with more than 1 GB.
"""

import os
import resource
import signal
import threading

import pytest
import torch
from hostile_constructions import CHANGES, TRAPS, archive_of, constructions

from mmkw.checkpoints import CheckpointError, load_checkpoint, publish_checkpoint

GIGABYTE = 1 << 30


def read_in_bounds(path, content):
    """In a process of its own; returns what it says, or how it was ended, and what it used."""
    path.write_bytes(content)
    reader, writer = os.pipe()
    with open('/proc/self/statm') as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, 5)
        message = 'accepted'
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            message = f'refused: {error}'
        except BaseException as error:
            message = f'PROBLEM: {error!r}'[:500]
        os.write(writer, message[:2000].encode())
        os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as file:
        message = file.read().decode()
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    return message or f'ended by {status}', seconds, usage.ru_maxrss / 1024


def check(tmp_path, files):
    path = tmp_path / 'hostile.pth'
    before = set(tmp_path.iterdir())
    used, problems = {}, []
    for label, content in files:
        message, *used[len(used), label] = read_in_bounds(path, content)
        if not message.startswith('refused') or str(path) not in message:
            problems.append(f'{label} ({len(content)} bytes): {message}')
    (_, slowest), (_, largest) = (max(used, key=lambda file: used[file][i]) for i in range(2))
    seconds, memory = map(max, zip(*used.values()))
    print(
        f'{len(used)} files; at most {seconds:.2f} s of computing ({slowest}) and {memory:.0f} MiB '
        f'with all that a process has to begin with ({largest})'
    )
    assert not problems, '\n'.join(problems)
    assert set(tmp_path.iterdir()) - before <= {path}
    return len(used)


def test_small_files(tmp_path):
    bodies = (TRAPS | CHANGES).items()
    check(tmp_path, ((label, archive_of(body)) for label, body in bodies if len(body) < 10_000))


@pytest.mark.slow
def test_all_constructions(tmp_path):
    assert check(tmp_path, constructions()) > 565


def test_loading_leaves_no_state_behind(tmp_path, monkeypatch):
    """Neither settings of torch, nor a bad sparse tensor, nor another thread's reading matter."""
    bad = torch.sparse_coo_tensor([[5]], [1.0], (2,), check_invariants=False)
    good = torch.eye(2).to_sparse()
    for zipped in (True, False):
        torch.save(bad, tmp_path / 'bad.pth', _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match='indices'):
            load_checkpoint(tmp_path / 'bad.pth')
        torch.save(good, tmp_path / 'good.pth', _use_new_zipfile_serialization=zipped)
        assert load_checkpoint(tmp_path / 'good.pth').to_dense().tolist() == [[1, 0], [0, 1]]
    assert torch.load(tmp_path / 'good.pth').is_sparse

    checks = torch.sparse.check_sparse_tensor_invariants
    seen = []

    def watch():
        while len(seen) < 2000:
            seen.append(checks.is_enabled())

    watcher = threading.Thread(target=watch)
    watcher.start()
    while watcher.is_alive():
        load_checkpoint(tmp_path / 'good.pth')
    watcher.join()
    assert not any(seen)

    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(a={1, 2}), tmp_path / 'set.pth')
    assert load_checkpoint(tmp_path / 'set.pth') == dict(a={1, 2})


def test_tensors_of_shared_storages_are_no_trap(tmp_path):
    value = torch.arange(6.0)
    saved = dict(state_dict=dict(a=value, b=value[2:], c=value[:1].expand(100)))
    torch.save(saved, tmp_path / 'a.pth')
    loaded = load_checkpoint(tmp_path / 'a.pth')['state_dict']
    assert all(torch.equal(loaded[name], saved['state_dict'][name]) for name in 'abc')
    publish_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth')

"""Files built to run code, to hang the reader or to exhaust it: each is refused, and quickly.

Every file is read in a process that ends after five seconds of computing, or with more than 1 GB.
"""

import io
import os
import pickle
import resource
import signal
import threading
import zipfile

import pytest
import torch
from hostile_pickles import stream_of

from mmkw.checkpoints import CheckpointError, load_checkpoint, publish_checkpoint

GIGABYTE = 1 << 30
BIG = b'\x8a\x05' + (10**11).to_bytes(5, 'little')
ZERO, ONE = b'K\x00', b'K\x01'


def name(module, function):
    return f'c{module}\n{function}\n'.encode()


def text(value):
    return b'X' + len(value).to_bytes(4, 'little') + value.encode()


def call(function, *args):
    return name(*function.rsplit('.', 1)) + b'(' + b''.join(args) + b'tR'


def deep(levels):
    return b')' + b'\x85' * levels


SHARED_TUPLE = b')' + b'2\x86' * 60
SHARED_LIST = b']' + b''.join(b'q%c0](h%ch%ce' % (level, level, level) for level in range(60))
RANGE = call('builtins.range', ZERO, BIG, ONE)
STORAGE = name('torch', 'FloatStorage')
REFERENCE = b'(' + text('storage') + STORAGE + text('0') + text('cpu') + ONE + b'tQ'


def rebuild(*args):
    return call('torch._utils._rebuild_tensor_v2', *args)


HOOKS = call('collections.OrderedDict')
DTYPE = call('numpy.dtype', text('f8'), b'\x89', b'\x88')
ARRAY = call(
    'numpy._core.multiarray._reconstruct', name('numpy', 'ndarray'), ZERO + b'\x85', b'C\x01b'
)
HISTORY = name('mmengine.logging.history_buffer', 'HistoryBuffer')
NAMESPACE = name('argparse', 'Namespace')

# What hangs or fills the memory of a reader that takes it at its word.
TRAPS = {
    'bytearray': call('builtins.bytearray', BIG),
    'bytes': call('builtins.bytes', BIG),
    'set': call('builtins.set', RANGE),
    'frozenset': call('builtins.frozenset', RANGE),
    'counter': call('collections.Counter', RANGE),
    'ordered_dict': call('collections.OrderedDict', RANGE),
    'size': call('torch.Size', RANGE),
    'config': call('mmengine.config.config.ConfigDict', RANGE),
    'history': call('mmengine.logging.history_buffer.HistoryBuffer', RANGE),
    'array': call(
        'numpy._core.multiarray._reconstruct', name('numpy', 'ndarray'), BIG + b'\x85', b'C\x01b'
    ),
    'array_state': ARRAY + b'(' + ONE + BIG + b'\x85' + DTYPE + b'\x89C\x00tb',
    'scalar': call(
        'numpy._core.multiarray.scalar', call('numpy.dtype', text('U900000000')), b'C\x00'
    ),
    'storage': b'(' + text('storage') + STORAGE + text('0') + text('cpu') + BIG + b'tQ',
    'storage_negative': b'('
    + text('storage') + STORAGE + text('0') + text('cpu') + b'J\xff\xff\xff\xfftQ',
    'storage_key': b'(' + text('storage') + STORAGE + SHARED_TUPLE + text('cpu') + ONE + b'tQ',
    'storage_type': b'(' + text('storage') + SHARED_TUPLE + text('0') + text('cpu') + ONE + b'tQ',
    'tensor': rebuild(REFERENCE, ZERO, BIG + b'\x85', ONE + b'\x85', b'\x89', HOOKS),
    'tensor_repeated': rebuild(REFERENCE, ZERO, BIG + b'\x85', ZERO + b'\x85', b'\x89', HOOKS),
    'tensor_offset': rebuild(REFERENCE, BIG, ONE + b'\x85', ONE + b'\x85', b'\x89', HOOKS),
    'shared_key': b'}' + SHARED_TUPLE + ONE + b's',
    'deep_key': b'}' + deep(200_000) + ONE + b's',
    'shared_member': call('builtins.set', b'](' + SHARED_TUPLE + b'e'),
    'shared_pair': call('collections.OrderedDict', b'](' + SHARED_TUPLE + ONE + b'\x86e'),
    'slice_key': b'}' + call('builtins.slice', SHARED_TUPLE, ONE, ONE) + ONE + b's',
    'shared_members': b'\x8f(' + SHARED_TUPLE + b'\x90',
    'shared_dict': b'(' + SHARED_TUPLE + ONE + b'd',
    'shared_frozenset': b'(' + SHARED_TUPLE + b'\x91',
    'shared_config': call(
        'mmengine.config.config.ConfigDict', b'}' + text('a') + SHARED_LIST + b's'
    ),
    'shared_tuple': SHARED_TUPLE,
    'shared_list': SHARED_LIST,
    'deep_tuple': deep(200_000),
    'cycle': b']q\x01h\x01a',
    'reference': SHARED_TUPLE + b'Q',
    'state': NAMESPACE + b')\x81' + SHARED_TUPLE + b'b',
    'dtype_state': DTYPE + SHARED_TUPLE + b'b',
    'dtype_code': call('numpy.dtype', SHARED_TUPLE),
    'encoding': call('_codecs.encode', text('a'), SHARED_TUPLE),
    'statistic': call('builtins.getattr', HISTORY, SHARED_TUPLE),
    'argument': call('torch.device', SHARED_TUPLE),
    'function': SHARED_TUPLE + b')R',
    'copies': b']q\x01(' + ONE * 50_000 + b'e0](' + name('builtins', 'set') + b'q\x020'
    + b'h\x02h\x01\x85R' * 50_000 + b'e',
    'bytes_copies': b'B' + (100_000).to_bytes(4, 'little') + bytes(100_000) + b'q\x010'
    + name('builtins', 'bytearray') + b'q\x020](' + b'h\x02h\x01\x85R' * 50_000 + b'e',
    'byte_array': b'\x96' + (10**11).to_bytes(8, 'little'),
    'big_integers': b'}(' + b''.join(
        b'\x8a\x20' + (number * (2**61 - 1)).to_bytes(32, 'little') + ONE
        for number in range(2, 20_000)
    ) + b'u',
}  # fmt: skip

# What changes a class, or an object that was only named.
CHANGES = {
    'append_to_class': name('numpy', 'ndarray') + ONE + b'a',
    'append_to_name': name('builtins', 'list') + ONE + b'a',
    'appends_to_set': b'\x8f(' + ONE + b'e',
    'setitem_of_name': name('builtins', 'dict') + text('a') + ONE + b's',
    'setitems_of_list': b'](' + ZERO + ONE + b'u',
    'additems_of_name': name('builtins', 'set') + b'(' + ONE + b'\x90',
    'build_class': NAMESPACE + b'}' + text('a') + ONE + b'sb',
    'build_dtype': name('torch', 'float32') + b'}b',
    'build_function': name('torch._utils', '_rebuild_tensor_v2') + b'}b',
    'build_type': STORAGE + b'}b',
    'method': call('collections.OrderedDict') + b'}' + text('items') + ONE + b'sb',
    'setstate': NAMESPACE + b')\x81}' + text('__setstate__') + HISTORY + b'sb',
    'class_of': NAMESPACE + b')\x81}' + text('__class__') + HISTORY + b'sb',
    'slots': NAMESPACE + b')\x81N}' + text('a') + ONE + b's\x86b',
    'hooks': rebuild(
        REFERENCE, ZERO, b')', b')', b'\x89',
        HOOKS + ZERO + name('builtins', 'dict') + b's',
    ),
    'new_tensor': STORAGE + b')\x81',
    'call_type': name('builtins', 'dict') + b')R',
    'call_array': call('numpy.ndarray', BIG),
}  # fmt: skip

# What Python can do and a checkpoint must not.
FUNCTIONS = (
    *('os.system', 'posix.system', 'subprocess.Popen', 'builtins.eval', 'builtins.exec'),
    *('builtins.open', 'builtins.__import__', 'builtins.compile', 'builtins.setattr'),
    *('builtins.map', 'builtins.print', 'builtins.input', 'builtins.vars', 'builtins.type'),
    *('functools.partial', 'functools.reduce', 'operator.attrgetter', 'operator.methodcaller'),
    *('importlib.import_module', 'runpy.run_path', 'pty.spawn', 'shutil.rmtree', 'os.remove'),
    *('pickle.loads', '_pickle.loads', 'marshal.loads', 'types.FunctionType', 'types.CodeType'),
    *('torch.load', 'torch.hub.load', 'torch.jit.load', 'torch.storage._load_from_bytes'),
    *('torch.compile', 'torch._utils._rebuild_wrapper_subclass', 'torch.set_num_threads'),
    *('torch.ops.load_library', 'numpy.load', 'numpy.fromfile', 'numpy.memmap', 'socket.socket'),
    *('mmengine.config.Config.fromfile', 'mmengine.registry.build_from_cfg', 'webbrowser.open'),
    *('copyreg._reconstructor', 'copyreg.add_extension', 'logging.config.dictConfig'),
    *('mmkw.checkpoints.allow_classes', 'mmkw.checkpoints.uninstall', 'torch._C._cuda_init'),
    *('ctypes.CDLL', 'asyncio.run', 'sys.exit', 'os._exit', 'site.addsitedir', 'gc.disable'),
)


def calls(function):
    """The ways in which a pickle can have a function called."""
    module, attribute = function.rsplit('.', 1)
    target, arg = name(module, attribute), text('true')
    yield target + arg + b'\x85R'
    yield target + arg + b'\x85\x81'
    yield target + arg + b'\x85}\x92'
    yield b'(' + target + arg + b'o'
    yield b'(' + arg + f'i{module}\n{attribute}\n'.encode()
    yield text(module) + text(attribute) + b'\x93' + arg + b'\x85R'
    yield call('collections.defaultdict', target)
    yield call('builtins.getattr', target, text('__globals__'))


def places(body):
    """Where it can stand in what a checkpoint holds."""
    yield body
    yield b'}' + text('state_dict') + body + b's'


def archive_of(body):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02' + body + b'.')
        archive.writestr('a/data/0', bytes(4))
        archive.writestr('a/version', b'3\n')
    return buffer.getvalue()


def constructions():
    bodies = [*TRAPS.items(), *CHANGES.items()]
    for label, body in bodies:
        for place in places(body):
            yield label, archive_of(place)
            yield label, stream_of(b'\x80\x02' + place + b'.')
    for function in FUNCTIONS:
        for body in calls(function):
            yield function, archive_of(body)
    shared = b'\x80\x02' + SHARED_TUPLE + b'.'
    yield 'version', pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + shared
    yield (
        'storages',
        stream_of(pickle.dumps({}, 2))[: -len(pickle.dumps([], 2))]
        + (b'\x80\x02](' + SHARED_TUPLE + b'e.'),
    )
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, 'w', method) as archive:
            archive.writestr('a/data.pkl', pickle.dumps({}, 2))
            for number in range(20):
                archive.writestr(f'a/data/{number}', bytes(20_000_000))
        yield 'bomb', buffer.getvalue()


def read_in_bounds(path, content):
    """In a process of its own; returns what it says, or how it was ended."""
    path.write_bytes(content)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with open('/proc/self/statm') as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
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
    _, status = os.waitpid(pid, 0)
    return message or f'ended by {status}'


def check(tmp_path, files):
    path = tmp_path / 'hostile.pth'
    before = torch.get_num_threads(), set(tmp_path.iterdir())
    count, problems = 0, []
    for label, content in files:
        count += 1
        message = read_in_bounds(path, content)
        if not message.startswith('refused') or str(path) not in message:
            problems.append(f'{label} ({len(content)} bytes): {message}')
    print(f'{count} files')
    assert not problems, '\n'.join(problems)
    assert set(tmp_path.iterdir()) - before[1] <= {path}
    return count


def test_traps(tmp_path):
    check(tmp_path, ((label, archive_of(body)) for label, body in (TRAPS | CHANGES).items()))


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

"""Files built to run code, to hang their reader or to exhaust its memory."""

import io
import itertools
import pickle
import struct
import zipfile

import torch
from hostile_pickles import stream_of

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


def many(items):
    """All of them, for an instruction that takes what is above the mark."""
    return b'(' + b''.join(items)


def copies(body, count):
    """A list of one object many times."""
    return body + b'q\x010]' + many([b'h\x01'] * count) + b'e'


def integer(value):
    return b'\x8a\x08' + value.to_bytes(8, 'little', signed=True)


def keys_of_one_hash(count):
    """Pairs of integers for which Python's hash of tuples, xxHash, is the same."""
    word, start = 2**64, 2870177450012600261
    first, second = 11400714785074694791, 14029467366897019727

    def rotate(value, bits):
        return (value << bits | value >> 64 - bits) % word

    inverse = [pow(prime, -1, word) for prime in (first, second)]
    for left in itertools.count(2):
        state = rotate((start + left * second) % word, 31) * first
        right = (rotate(12345 * inverse[0] % word, 33) - state) * inverse[1] % word
        right -= word if right >= word // 2 else 0
        if abs(right) < 2**61 - 1:
            yield integer(left) + integer(right) + b'\x86'
            count -= 1
        if not count:
            return


SHARED_TUPLE = b')' + b'2\x86' * 60


def shared_list(levels):
    return b']' + b''.join(b'q%c0](h%ch%ce' % (level, level, level) for level in range(levels))


SHARED_LIST = shared_list(60)
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
COO = call('torch.serialization._get_layout', text('torch.sparse_coo'))
SCALAR = rebuild(REFERENCE, ZERO, b')', b')', b'\x89', HOOKS)
PAIRS = list(keys_of_one_hash(25_000))


def sparse(data):
    return call('torch._utils._rebuild_sparse_tensor', COO, data)


def array_of(shape):
    return ARRAY + b'(' + ONE + shape + DTYPE + b'\x89C\x00tb'


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
    'array_state': array_of(BIG + b'\x85'),
    'array_range': array_of(RANGE),
    'array_integers': b'\x8b' + (10_000).to_bytes(4, 'little') + b'\x01' * 10_000 + b'q\x010'
    + array_of(many([b'h\x01'] * 20_000) + b't'),
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
    'tensor_range': rebuild(REFERENCE, ZERO, RANGE, RANGE, b'\x89', HOOKS),
    'tensor_dimensions': integer(2**62) + b'q\x010'
    + rebuild(REFERENCE, ZERO, *[many([b'h\x01'] * 500_000) + b't'] * 2, b'\x89', HOOKS),
    'sparse_range': sparse(RANGE),
    'sparse_list': sparse(b'(' + ZERO + shared_list(28) + ONE + b'\x85t'),
    'tensor_offset': rebuild(REFERENCE, BIG, ONE + b'\x85', ONE + b'\x85', b'\x89', HOOKS),
    'shared_key': b'}' + SHARED_TUPLE + ONE + b's',
    'deep_key': b'}' + deep(200_000) + ONE + b's',
    'wide_key': b')0' + ZERO + b''.join(
        b'q%c0' % level + many([b'h%c' % level] * 900) + b't' for level in range(7)
    ) + b'q\x7f0}h\x7f' + ONE + b's',
    'tuples_of_one_hash': b'}' + many(pair + ONE for pair in PAIRS) + b'u',
    'members_of_one_hash': call('builtins.set', b']' + many(PAIRS) + b'e'),
    'pairs_of_one_hash': call(
        'collections.OrderedDict', b']' + many(pair + ONE + b'\x86' for pair in PAIRS) + b'e'
    ),
    'complex_of_one_hash': name('builtins', 'complex') + b'q\x010}' + many(
        b'h\x01' + struct.pack('>cdcd', b'G', -1000003.0 * part, b'G', part) + b'\x86R' + ONE
        for part in range(1, 25_000)
    ) + b'u',
    'counters_of_one_hash': b'}' + many(pair + ONE for pair in PAIRS[:1000]) + b'uq\x010'
    + name('collections', 'Counter') + b'q\x020]' + many([b'h\x02h\x01\x85R'] * 1000) + b'e',
    'configs_of_one_hash': b'}' + text('a') + b'}' + many(pair + ONE for pair in PAIRS[:1000])
    + b'usq\x010' + name('mmengine.config.config', 'ConfigDict') + b'q\x020]'
    + many([b'h\x02h\x01\x85R'] * 1000) + b'e',
    'slice': call('builtins.slice', SHARED_TUPLE, ONE, ONE),
    'history_of': HISTORY + b')\x81}' + text('a') + SHARED_TUPLE + b'sb',
    'history_cycle': HISTORY + b')\x81q\x01}' + text('a') + b'h\x01sb',
    'parameter_of': call(
        'torch._utils._rebuild_parameter_with_state',
        SCALAR, b'\x89', HOOKS, b'}' + text('a') + SHARED_TUPLE + b's',
    ),
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
    'cycles': b']' + b'2a' * 300_000,
    'lists': copies(b']' + many([ONE] * 200_000) + b'e', 200_000),
    'attributes': copies(
        HOOKS + b'}' + many(text(f'x{number}') + ONE for number in range(50_000)) + b'ub', 50_000
    ),
    'reference': SHARED_TUPLE + b'Q',
    'state': NAMESPACE + b')\x81' + SHARED_TUPLE + b'b',
    'dtype_state': DTYPE + SHARED_TUPLE + b'b',
    'dtype_code': call('numpy.dtype', SHARED_TUPLE),
    'dtype_shape': call('numpy.dtype', text('(' + '1,' * 400_000 + ')f8')),
    'dtype_depth': call('numpy.dtype', text('(' * 100_000 + '1' + ')' * 100_000 + 'f8')),
    'encoding': call('_codecs.encode', text('a'), SHARED_TUPLE),
    'statistic': call('builtins.getattr', HISTORY, SHARED_TUPLE),
    'argument': call('torch.device', SHARED_TUPLE),
    'function': SHARED_TUPLE + b')R',
    'copies': b']q\x01(' + ONE * 50_000 + b'e0](' + name('builtins', 'set') + b'q\x020'
    + b'h\x02h\x01\x85R' * 50_000 + b'e',
    'bytes_copies': b'B' + (100_000).to_bytes(4, 'little') + bytes(100_000) + b'q\x010'
    + name('builtins', 'bytearray') + b'q\x020](' + b'h\x02h\x01\x85R' * 50_000 + b'e',
    'byte_array': b'\x96' + (10**11).to_bytes(8, 'little'),
    **{
        f'length_{instruction.hex()}': instruction + length + SHARED_TUPLE
        for instructions, length in (
            (b'\x8d\x8e\x95', (10**11).to_bytes(8, 'little')),
            (b'BX', b'\xff\xff\xff\xff'),
            (b'T\x8b', b'\xff\xff\xff\x7f'),
        )
        for instruction in (instructions[i : i + 1] for i in range(len(instructions)))
    },
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
    """All of them, with their names."""
    for label, body in (TRAPS | CHANGES).items():
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

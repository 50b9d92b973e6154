"""Rooms of the package import only from rooms below them, and files make no circles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import mmkw

ROOT = Path(mmkw.__file__).parent
# From the ground up. Each room also imports from its own row and from single files of the package.
ROOMS = (
    'ops',
    'methods',
    'networks',
    'analysis',
    'openmmlab',
    'checkpoints',
    'deployment',
)
WITHOUT_OPENMMLAB = ('ops', 'methods', 'networks')


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        if parts[0] != '.mim':
            found['.'.join(['mmkw', *parts]).removesuffix('.__init__')] = path
    return found


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of mmkw and top-level names of others that a file imports."""
    package = module.split('.') if path.name == '__init__.py' else module.split('.')[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = '.'.join([*start, *([node.module] if node.module else [])])
            submodules = {f'{base}.{alias.name}' for alias in node.names} & set(known)
            is_all = len(submodules) == len(node.names)
            found |= submodules | (set() if is_all else {base})
    return found


def room(module: str) -> str:
    return module.split('.')[1] if module.count('.') else ''


def test_rooms_import_from_below_only():
    known = modules()
    upwards = []
    for module, path in known.items():
        if room(module) not in ROOMS:
            continue
        height = ROOMS.index(room(module))
        for imported in imports(module, path, known) & set(known):
            if imported == 'mmkw' or room(imported) in ROOMS[height + 1 :]:
                upwards.append(f'{module} imports {imported}')
    assert not upwards
    assert {room(module) for module in known} >= set(ROOMS)


def test_lower_rooms_know_nothing_of_openmmlab():
    known = modules()
    for module, path in known.items():
        if room(module) in WITHOUT_OPENMMLAB:
            others = {name.partition('.')[0] for name in imports(module, path, known)}
            assert not others & {'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg'}, module


def test_there_are_no_circles():
    known = modules()
    graph = {
        module: {name for name in imports(module, path, known) if name in known and name != module}
        for module, path in known.items()
    }
    list(TopologicalSorter(graph).static_order())

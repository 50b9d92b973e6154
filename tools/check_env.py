"""See whether this Python can run mmkw: ``python tools/check_env.py MODULE...``.

Imports each module and compares its version with the lower bound in pyproject.toml. Where
something is amiss it says what, with the pip line to type, and exits with 1. Installs nothing.
"""

import importlib
import re
import shlex
import sys
import warnings
from pathlib import Path

METADATA = Path(__file__).resolve().parent.parent / 'pyproject.toml'
PACKAGE_OF_MODULE = {
    'mim': 'openmim',
    'sklearn': 'scikit-learn',
    'cv2': 'opencv-python',
    'xdist': 'pytest-xdist',
    'mmseg': 'mmsegmentation',
}


def read_requirements():
    """Return the requirements in pyproject.toml by package name; Python 3.9 has no tomllib."""
    lines = METADATA.read_text(encoding='utf-8')
    return {name: name + bounds for name, bounds in re.findall(r'"([\w-]+)(>=[^"]+)"', lines)}


def parse_version(text):
    """Return the leading numbers of a version: ``'2.11.0+cu130'`` -> ``(2, 11, 0)``."""
    return tuple(int(part) for part in re.match(r'\d+(\.\d+)*', text).group().split('.'))


def find_problem(name, requirements):
    """Return what is wrong with a module and the package that mends it, each None if unknown."""
    package = name.split('.')[0]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # mmdet does not import where mmcv is missing: what to install is mmcv.
        return f'import {name}: {error}', error.name.split('.')[0]
    except Exception as error:
        return f'import {name}: {type(error).__name__}: {error}', None
    wanted = requirements.get(package, '')
    minimum = re.search(r'>=([\d.]+)', wanted)
    found = getattr(sys.modules[package], '__version__', None)
    if minimum and parse_version(found) < parse_version(minimum.group(1)):
        return f'{package} is {found}; mmkw needs {wanted}', package
    return None, None


def describe_remedy(packages, requirements):
    """Return the lines to type that install the packages."""
    pip = f'{shlex.quote(sys.executable)} -m pip install'
    needed = {package: shlex.quote(requirements.get(package, package)) for package in packages}
    mmcv = needed.pop('mmcv', None)
    lines = [f'  {pip} {" ".join(needed.values())}'] if needed else []
    if mmcv:
        lines += [
            f"  {pip} 'setuptools<82' wheel ninja psutil",
            f'  MMCV_WITH_OPS=1 {pip} --no-build-isolation {mmcv}',
            '(the last compiles for some minutes; with a torch that OpenMMLab has wheels for,',
            f'"mim install {mmcv}" is quicker)',
        ]
    return '\n'.join(lines)


def main():
    if sys.version_info < (3, 9):  # noqa: UP036, for the environment that somebody brings
        sys.exit(f'{sys.executable} is Python {sys.version.split()[0]}; mmkw needs 3.9 or newer.')
    warnings.simplefilter('ignore')
    sys.path.append(f'{sys.prefix}/mim')  # where tools/setup_env.sh puts it
    requirements = read_requirements()
    problems, missing = [], {}
    for name in sys.argv[1:]:
        problem, package = find_problem(name, requirements)
        if problem:
            problems.append(f'  {problem}')
        if package:
            missing[PACKAGE_OF_MODULE.get(package, package)] = True
    if not problems:
        return
    message = [f'PYTHON={sys.executable} lacks something:', *problems]
    if missing:
        message += ['Type', describe_remedy(missing, requirements)]
    message += ['or leave PYTHON= out: then make installs all that is needed into .venv.']
    sys.exit('\n'.join(message))


if __name__ == '__main__':
    main()

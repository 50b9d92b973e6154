"""What README and documentation show works.

Python blocks are executed, one namespace a page; what they describe (a backbone, a neck, or a
config with a base) is built. Shell blocks are run in the repository. A block after the line
`<!-- not run: REASON -->` is not run, but the files that it names must exist.
"""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tiny_runs import ROOT, environment

from mmkw.methods import DynamicLayer

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'^(<!-- not run: .+ -->\n)?```(python|shell|console)\n(.*?)^```$', re.M | re.S)


def blocks(language, marked):
    for page in PAGES:
        for mark, kind, code in BLOCK.findall(page.read_text(encoding='utf-8')):
            if (kind == 'python') == (language == 'python') and bool(mark) == marked:
                yield page, code


def build(settings):
    """Build the backbone and the neck that the names of a block describe, if any."""
    parts = [settings.get('backbone'), settings.get('neck')]
    if isinstance(settings.get('model'), dict):
        parts.append(settings['model'].get('backbone'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        return [MODELS.build(dict(part)) for part in parts if part and 'type' in part]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for of, code in blocks('python', marked=False):
        if of != page:
            continue
        if '_base_' in code:
            (tmp_path / 'config.py').write_text(code)
            assert Config.fromfile('config.py').model.backbone.type.startswith('KW')
            continue
        names = {}
        exec(compile(code, str(page), 'exec'), names)
        for module in build(names):
            assert sum(parameter.numel() for parameter in module.parameters()) > 0
            assert any(isinstance(layer, DynamicLayer) for layer in module.modules())
        network = names.get('network')
        if isinstance(network, torch.nn.Module):
            assert any(isinstance(layer, DynamicLayer) for layer in network.modules())


@pytest.mark.parametrize(
    'page, code',
    list(blocks('shell', marked=False)),
    ids=lambda value: getattr(value, 'name', '...'),
)
def test_shell_blocks_run(page, code, tmp_path):
    lines = [line.removeprefix('$ ') for line in code.splitlines()]
    script = '\n'.join(lines).replace('python ', f'{shlex.quote(sys.executable)} ')
    done = subprocess.run(
        ['bash', '-ec', script], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_blocks_that_are_not_run_name_files_and_targets_that_exist():
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M)
    for page, code in blocks('shell', marked=True):
        for path in re.findall(r'(?:configs|tools)/[\w./-]+\.(?:py|sh)', code):
            assert (ROOT / path).is_file(), f'{page.name}: {path}'
        for target in re.findall(r'^make ([a-z-]+)', code, re.M):
            assert target in targets, f'{page.name}: make {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_to_files(page):
    text = page.read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)#\s]+)', text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    links += re.findall(r'```\{image\} (\S+)', text)
    for link in links:
        if '://' not in link:
            assert (page.parent / link).exists(), link

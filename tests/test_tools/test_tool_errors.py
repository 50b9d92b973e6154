"""How the tools end after an error: one clear last line, the traceback where it was asked for."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_runs import load_tool, refused, write_tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp('errors'))


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    'content, expected',
    [
        ('model = dict(', '.*never closed'),
        ("_base_ = './gone.py'", '.*gone.py'),
        ('lr = base_lr', "NameError: name 'base_lr' is not defined"),
        ("custom_imports = dict(imports=['mmkv'])", '.*mmkv'),
    ],
)
@pytest.mark.parametrize('tool', ['train', 'analysis_tools/show_plan', 'analysis_tools/benchmark'])
def test_configs_that_cannot_be_read(content, expected, tool, folder):
    (folder / 'mine.py').write_text(content)
    with pytest.raises(
        SystemExit, match=f'^error: config file mine.py cannot be read: .*{expected}'
    ):
        load_tool(tool).main(['mine.py'])


@pytest.mark.parametrize('tool', ['train', 'analysis_tools/get_flops'])
def test_configs_without_a_model(tool, folder):
    (folder / 'mine.py').write_text('train_cfg = dict(max_epochs=1)')
    assert 'config file mine.py has no model' in refused(load_tool(tool), 'mine.py')


@pytest.mark.parametrize(
    'option, expected',
    [
        ('budget=1/7', "error: warehouse 'layer2': budget 1/7 leaves no whole number of cells"),
        ('conv_cfg.type=ODConv', "error: conv_cfg has no type 'ODConv'; did you mean 'ODConv2d'?"),
        ('type=KWResnet', 'error: KeyError: KWResnet is not in the '),
        ('budgets=2', 'error: TypeError: '),
    ],
)
def test_models_that_cannot_be_built(option, expected):
    options = ['--cfg-options', f'model.backbone.{option}']
    line = refused(load_tool('train'), 'tiny.py', '--work-dir=w', *options)
    assert line.startswith(expected)


def test_traceback_is_in_the_log_file_or_shown_with_debug(capsys):
    Path('failing.py').write_text("_base_ = './tiny.py'\nmodel = dict(head=dict(in_channels=100))")
    command = ['failing.py', '--work-dir=failing']
    last = refused(load_tool('train'), *command)
    assert last.startswith('error: RuntimeError: ')
    shown = capsys.readouterr()
    assert 'Traceback' not in shown.out + shown.err
    log = re.search(r'^the traceback is in (failing/\S+\.log)$', shown.err, re.M)[1]
    content = Path(log).read_text()
    assert 'Traceback (most recent call last)' in content and 'train.py' in content

    assert refused(load_tool('train'), *command, '--debug') == last
    assert 'Traceback (most recent call last)' in capsys.readouterr().err


def test_error_of_a_data_loaders_worker(tmp_path):
    """The file is named, not only the frames of the traceback that the worker sends."""
    write_tiny(tmp_path)
    image = next((tmp_path / 'images' / 'train').rglob('*.png'))
    image.write_bytes(b'none')
    workers = ['--cfg-options', 'train_dataloader.num_workers=1']
    line = refused(load_tool('train'), tmp_path / 'tiny.py', f'--work-dir={tmp_path}', *workers)
    assert line == f'error: AssertionError: failed to load image: {image}'


def test_unreadable_checkpoint(folder):
    (folder / 'broken.pth').write_bytes(b'not a checkpoint')
    for args in (['train', 'tiny.py', '--resume'], ['test', 'tiny.py']):
        line = refused(load_tool(args[0]), *args[1:], 'broken.pth', '--work-dir=w')
        assert 'broken.pth is not' in line


def test_missing_start_names_the_option_and_the_fix(folder):
    train = load_tool('train')
    line = refused(train, 'tiny.py', '--cfg-options', 'load_from=no.pth')
    assert line.startswith('error: load_from names the checkpoint no.pth, which does not exist')
    assert '--cfg-options load_from=' in line

    start = 'model.backbone.init_cfg'
    pretrained = "dict(type='Pretrained', checkpoint='no.pth')"
    text = f"_base_ = './tiny.py'\nmodel = dict(backbone=dict(init_cfg={pretrained}))"
    (folder / 'started.py').write_text(text)
    line = refused(train, 'started.py')
    assert line.startswith(f'error: {start} starts from the checkpoint no.pth')
    for fix in (f'{start}.checkpoint=', 'load_from=', f'{start}=None'):
        assert f'--cfg-options {fix}' in line
    check_start = load_tool('cli_common').check_start
    config = Config.fromfile('started.py')
    torch.save({}, 'all.pth')
    config.load_from = 'all.pth'
    with pytest.warns(UserWarning, match=f'{start}.checkpoint: no.pth .* not needed'):
        check_start(config)
    assert config.model.backbone.init_cfg is None


def test_missing_start_in_a_list(folder):
    inits = [dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint='no.pth')]
    inits += [dict(type='Pretrained', checkpoint='nor.pth'), dict(type='Constant', layer='Linear')]
    config = Config(dict(model=dict(neck=dict(init_cfg=inits))))
    with pytest.raises(SystemExit, match=r'model.neck.init_cfg.1.checkpoint=FILE'):
        load_tool('cli_common').check_start(config)

    torch.save({}, folder / 'all.pth')
    config.load_from = str(folder / 'all.pth')
    with pytest.warns(UserWarning, match='not needed'):
        load_tool('cli_common').check_start(config)
    assert [init.type for init in config.model.neck.init_cfg] == ['Kaiming', 'Constant']


def test_names_that_are_no_local_files_are_left_to_mmengine():
    url = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    config = Config(dict(load_from='https://x.org/x.pth', model=dict(init_cfg=url)))
    load_tool('cli_common').check_start(config)
    assert config.model.init_cfg == url


def test_logs_that_are_not_there(tmp_path):
    line = refused(load_tool('analysis_tools/plot_logs'), tmp_path)
    assert 'holds no */vis_data/scalars.json' in line


@pytest.mark.parametrize(
    ('tool', 'inputs', 'out'),
    [
        ('deployment/to_static', ['tiny.py', 'model.pth'], 'tiny.pth'),
        ('deployment/export_onnx', ['tiny.py', 'model.pth'], 'model.pth'),
        ('model_converters/plain_to_mmkw', ['tiny.py', 'model.pth'], 'model.pth'),
        ('model_converters/released_to_mmkw', ['model.pth'], 'model.pth'),
    ],
)
def test_no_result_takes_the_place_of_what_is_read(tool, inputs, out, folder):
    (folder / 'model.pth').write_bytes(b'weights')
    contents = {path: (folder / path).read_bytes() for path in ('model.pth', 'tiny.py')}
    line = refused(load_tool(tool), *inputs, out)
    assert re.search(r'cannot write (model.pth|tiny.py): the tool reads this file', line)
    for name, expected in (('no/x.pth', 'the folder no does not exist'), ('.', 'name')):
        if tool.startswith('model_converters'):
            assert expected in refused(load_tool(tool), *inputs, name)
    for path, content in contents.items():
        assert (folder / path).read_bytes() == content


@pytest.mark.parametrize('tool', ['plain_to_mmkw', 'released_to_mmkw', 'publish_model'])
def test_converters(tool, folder, monkeypatch):
    (folder / 'broken.pth').write_bytes(b'not a checkpoint')
    files = ['broken.pth', 'out.pth']
    args = ['tiny.py', *files] if tool == 'plain_to_mmkw' else files
    monkeypatch.setattr('sys.argv', [tool, *args])
    with pytest.raises(SystemExit, match=r'^error: broken\.pth is not'):
        load_tool(f'model_converters/{tool}').main()
    assert not Path('out.pth').exists()

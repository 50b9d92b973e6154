"""tools/demo.py: the driver of `make demo`, run as its user runs it."""

import json
import re
import shlex
import subprocess
import sys

import cv2
import pytest
from tiny_runs import TOOLS, load_tool, refused

demo = load_tool('demo')
plot_logs = demo.plot_logs


def run_demo(folder, *options):
    return subprocess.run(
        [sys.executable, TOOLS / 'demo.py', *options], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.slow
def test_quick_demo_from_nothing_and_again(tmp_path):
    tmp_path = tmp_path / 'a folder'
    tmp_path.mkdir()
    first = run_demo(tmp_path, '--quick', '--from-scratch', '--warm-start')
    assert first.returncode == 0, first.stdout + first.stderr
    rows = {
        name: [float(number) for number in re.findall(r'\d+\.\d+', line)]
        for line in first.stdout.splitlines()
        for name in (
            'KWResNet18 1x  ',
            'plain ResNet18',
            'KWResNet18 1x from the plain one',
            'the same, not annealed',
            'Mask R-CNN from it',
            'Mask R-CNN from random weights',
        )
        if line.startswith(f'  {name}')
    }
    assert [len(numbers) for numbers in rows.values()] == [1, 1, 1, 1, 4, 4]
    results = tmp_path / 'work_dirs/demo'
    finetuned = json.loads((results / 'finetune-test/finished.json').read_text())['scores']
    assert rows['Mask R-CNN from it'][0] == pytest.approx(finetuned['coco/bbox_mAP'], abs=6e-4)

    # The detector started from the classifier, the temperature at 0; the comparison did not.
    log = (results / 'finetune/output.log').read_text()
    assert 'the temperature is held at 0' in log
    assert re.search(r'load backbone\. in model from: \S*pretrain/epoch_1\.pth', log)
    assert 'load backbone.' not in (results / 'from-scratch/output.log').read_text()
    log = (results / 'warm-start/output.log').read_text()
    assert re.search(r'Load checkpoint from \S*plain/kw\.pth', log)
    assert cv2.imread(str(results / 'training.png')).shape[1] > 1000
    assert cv2.imread(str(results / 'warm_start.png')) is not None
    # Four scenes of 128 pixels, three times enlarged, each in a frame of 4.
    assert cv2.imread(str(results / 'predictions.png')).shape == (392, 4 * 392, 3)

    made = {path: path.stat().st_mtime_ns for path in results.glob('*/finished.json')}
    (results / 'finetune/finished.json').unlink()
    second = run_demo(tmp_path, '--quick')
    assert second.returncode == 0, second.stdout + second.stderr
    again = {path.parent.name for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert again == {'finetune', 'finetune-test'}


def test_foreign_data_folder_is_reported_in_one_line(tmp_path, monkeypatch):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/one.png').write_text('mine')
    monkeypatch.chdir(tmp_path)
    line = refused(demo, '--data-root', 'photos')
    assert line.startswith('error: photos exists and was not made by')


def test_folder_that_a_config_option_cannot_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(demo, '--work-dir', 'my results')
    assert line.startswith("error: --work-dir 'my results' has a space or a comma in it")
    assert not list(tmp_path.iterdir())


def test_failing_tool_is_reported_with_command_and_end_of_output(tmp_path):
    code = 'import sys; [print("line", i) for i in range(100)]; sys.exit("no such thing")'
    with pytest.raises(demo.DemoError) as failure:
        demo.run_tool([sys.executable, '-c', code], tmp_path / 'log')
    message = str(failure.value)
    assert 'exit code 1' in message
    assert f"{shlex.quote(sys.executable)} -c 'import sys;" in message
    assert 'no such thing' in message and 'line 99' in message and 'line 50' not in message
    assert 'line 50' in (tmp_path / 'log').read_text()


def test_progress_of_a_training_log_line():
    line = (
        '11/21 13:35:42 - mmengine - INFO - Epoch(train) [1][ 60/270]  lr: 1.7735e-03  '
        'eta: 0:04:43  time: 1.0807  data_time: 0.0103  temperature: 0.3333  loss: 1.9418'
    )
    assert demo.describe_progress(line) == (
        'iteration   60 of 270   loss 1.94   temperature 0.33   time left 0:04:43'
    )
    assert (
        demo.describe_progress('11/21 13:35:42 - mmengine - INFO - Checkpoints will be saved')
        is None
    )


def test_plotting_a_folder_without_a_log_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'holds no \*/vis_data/scalars.json'):
        plot_logs({'Training': {'loss': tmp_path}}, tmp_path / 'training.png')
    assert not (tmp_path / 'training.png').exists()

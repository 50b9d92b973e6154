"""Runs of the comparison, what they gave, and the files that keep it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mmkw.files import write_whole


class Run(NamedTuple):
    """One training: of which network, at which peak learning rate, from which seed."""

    network: str
    rate: float
    seed: int

    @property
    def file_name(self) -> str:
        """Of the run's files, without suffix."""
        name = re.sub('[^a-z0-9]+', '-', self.network.lower())
        return f'{name}_rate{self.rate:g}_seed{self.seed}'

    def __str__(self) -> str:
        return f'{self.network}, rate {self.rate:g}, seed {self.seed}'


class Point(NamedTuple):
    """A point of the learning curve; accuracies in percent.

    Attributes:
        progress: part of the training, up to 1.
        loss, train_accuracy: mean over the iterations since the point before.
        val_accuracy: at this point.
    """

    progress: float
    loss: float
    train_accuracy: float
    val_accuracy: float


@dataclass(frozen=True)
class Result:
    """What a finished run gave.

    Attributes:
        run: which.
        parameters: of the network.
        operations: multiply-adds of one image, with those of mixing kernels.
        seconds: of training without evaluations; on the CPU those of the processor, so that waiting
            for other programs does not count.
        elapsed: seconds from start to end by the clock, without interruptions.
        curve: the evaluations.
        test_accuracy: after the last iteration, in percent.
    """

    run: Run
    parameters: int
    operations: int
    seconds: float
    elapsed: float
    curve: list[Point]
    test_accuracy: float

    @property
    def val_accuracy(self) -> float:
        """After the last iteration, in percent; no evaluation is chosen after the fact."""
        return self.curve[-1].val_accuracy


def write_result(result: Result, setup: dict, folder: Path) -> None:
    """Write the file of a finished run, in one step."""
    content = dict(setup=setup, result=asdict(result))
    write_whole(json.dumps(content) + '\n', _file(result.run, folder), sync=True)


def read_result(run: Run, setup: dict, folder: Path) -> Result | None:
    """Read the file of a finished run; ``None`` if there is none.

    Raises:
        ValueError: if the run had another setup.
    """
    path = _file(run, folder)
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding='utf-8'))
    check_setup(path, content['setup'], setup)
    result = content['result']
    result['run'] = Run(*result['run'])
    result['curve'] = [Point(*point) for point in result['curve']]
    return Result(**result)


def check_setup(path: Path, found: dict, wanted: dict) -> None:
    """Refuse the file of a run with another recipe or network.

    Raises:
        ValueError: names the first setting that differs.
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f'{path} is of a run with {key}={found.get(key)!r}, but this comparison has '
                f'{key}={value!r}; name another --work-dir, or remove the old runs'
            )


def _file(run: Run, folder: Path) -> Path:
    return folder / f'{run.file_name}.json'

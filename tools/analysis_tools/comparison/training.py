"""Training one network of the comparison, and going on after an interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from mmkw.analysis.complexity import cost_by_stage
from mmkw.files import whole_file
from mmkw.methods import set_temperature

from .data import SIZE, Batch, render, scans_of
from .networks import Network
from .results import Point, Result, Run, check_setup

Show = Callable[[str], None]

# Seeds of images: of validation, of the test, and the first ones of each run.
_VAL_SEED, _TEST_SEED, _TRAIN_SEED = 10**7, 10**8, 10**9
_EVALUATED_AT_ONCE = 250


@dataclass(frozen=True)
class Recipe:
    """What all runs have in common.

    Attributes:
        iters: iterations of training.
        batch_size: images of an iteration, none of which is seen twice.
        rates: peak learning rates of AdamW, of which each network takes its best. A linear warm-up
            leads to them, and a cosine from there to 0.
        warmup: part of the iterations.
        weight_decay: of AdamW.
        annealing: part of the iterations over which temperatures are annealed: 10 of 100 epochs in
            the paper.
        evaluations: how often a run is validated, evenly spaced, the last time at its end.
        val_images: images for choosing the rate, always the same.
        test_images: images for the result, always the same.
        seeds: runs of each network at its best rate. They differ in weights and training images.
    """

    iters: int = 2500
    batch_size: int = 32
    rates: tuple[float, ...] = (1e-3, 3e-3, 9e-3)
    warmup: float = 0.05
    weight_decay: float = 0.05
    annealing: float = 0.1
    evaluations: int = 10
    val_images: int = 2000
    test_images: int = 10_000
    seeds: int = 3

    def setup(self, network: Network) -> dict:
        """All that decides what a run of a network gives, as JSON keeps it."""
        setup = {**asdict(self), **asdict(network)}
        # Which runs there are changes none of them.
        del setup['rates'], setup['seeds']
        return json.loads(json.dumps(setup))

    def rate_factor(self, progress: float) -> float:
        """Learning rate relative to its peak, at a part of the training between 0 and 1."""
        return min(progress / self.warmup, 1) * (1 + math.cos(math.pi * progress)) / 2


# To see within a minute that everything runs; the accuracies mean nothing.
QUICK = Recipe(
    iters=4, batch_size=4, rates=(3e-3,), evaluations=2, val_images=8, test_images=8, seeds=1
)


def train(
    run: Run,
    network: Network,
    recipe: Recipe,
    folder: Path,
    show: Show = print,
    save_interval: float = 180,
) -> Result:
    """Train a network to the end.

    On the CPU equal arguments give equal results, with or without an interruption.

    Args:
        run: names the run and its files.
        network: to train.
        recipe: of all runs.
        folder: for the state of the run, which is saved there until it has ended.
        show: takes a line on the progress at each evaluation.
        save_interval: seconds after which the state is saved again.

    Raises:
        ValueError: if the folder holds the state of this run with another recipe or network.
    """
    training = _Training(run, network, recipe)
    path = state_file(run, folder)
    if path.is_file():
        training.load(path)
    saved = time.perf_counter()
    while training.iteration < training.iters:
        training.step()
        if training.evaluate_if_due():
            point = training.curve[-1]
            show(
                f'{run}: {point.progress:.0%}, training {point.train_accuracy:.1f} %, validation '
                f'{point.val_accuracy:.1f} %'
            )
        if time.perf_counter() - saved > save_interval:
            training.save(path)
            saved = time.perf_counter()
    return training.result()


def state_file(run: Run, folder: Path) -> Path:
    """Where the state of an unfinished run is."""
    return folder / f'{run.file_name}.pth'


class _Training:
    """The state of a run between two iterations."""

    def __init__(self, run: Run, network: Network, recipe: Recipe) -> None:
        self.run, self.network, self.recipe = run, network, recipe
        self.iters = round(network.length * recipe.iters)
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        torch.manual_seed(run.seed)
        self.model = network.build().to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=run.rate, weight_decay=recipe.weight_decay
        )
        self.scans = scans_of('train')
        self.iteration = 0
        self.seconds = self.elapsed = 0.0
        # Loss and accuracy of the iterations since the last point of the curve.
        self.recent: list[tuple[float, float]] = []
        self.curve: list[Point] = []
        self.started = time.perf_counter()

    def step(self) -> None:
        """Train one iteration."""
        start = self._clock()
        progress = (self.iteration + 1) / self.iters
        for group in self.optimizer.param_groups:
            group['lr'] = self.run.rate * self.recipe.rate_factor(progress)
        if self.network.temperature is not None:
            begin, end = self.network.temperature
            annealed = min(progress / self.recipe.annealing, 1)
            set_temperature(self.model, begin + (end - begin) * annealed)
        seed = _TRAIN_SEED * (self.run.seed + 1) + self.iteration
        images, labels = self._to_device(render(self.scans, self.recipe.batch_size, seed))
        self.model.train()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        self.recent.append((loss.item(), 100 * accuracy))
        self.iteration += 1
        self.seconds += self._clock() - start

    def evaluate_if_due(self) -> bool:
        """Add a point to the curve where the next one is reached."""
        due = round((len(self.curve) + 1) * self.iters / self.recipe.evaluations)
        if self.iteration < due:
            return False
        loss, accuracy = (sum(values) / len(values) for values in zip(*self.recent))
        self.recent = []
        progress = self.iteration / self.iters
        val_accuracy = self._accuracy('val', self.recipe.val_images, _VAL_SEED)
        self.curve.append(Point(progress, loss, accuracy, val_accuracy))
        return True

    def result(self) -> Result:
        """What the finished run gave."""
        accuracy = self._accuracy('test', self.recipe.test_images, _TEST_SEED)
        self.elapsed += time.perf_counter() - self.started
        costs = cost_by_stage(self.model, (torch.zeros(1, 1, SIZE, SIZE, device=self.device),))
        return Result(
            run=self.run,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            operations=sum(cost.operations.total for cost in costs),
            seconds=self.seconds,
            elapsed=self.elapsed,
            curve=self.curve,
            test_accuracy=accuracy,
        )

    def save(self, path: Path) -> None:
        """Write the state to a file, in one step."""
        state = dict(
            setup=self.recipe.setup(self.network),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            iteration=self.iteration,
            seconds=self.seconds,
            elapsed=self.elapsed + time.perf_counter() - self.started,
            recent=self.recent,
            curve=[tuple(point) for point in self.curve],
        )
        with whole_file(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Go on from the state in a file."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        check_setup(path, state['setup'], self.recipe.setup(self.network))
        self.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.iteration = state['iteration']
        self.seconds, self.elapsed = state['seconds'], state['elapsed']
        self.recent = state['recent']
        self.curve = [Point(*point) for point in state['curve']]

    @torch.no_grad()
    def _accuracy(self, split: str, count: int, seed: int) -> float:
        self.model.eval()
        right = 0
        for start in range(0, count, _EVALUATED_AT_ONCE):
            size = min(_EVALUATED_AT_ONCE, count - start)
            images, labels = self._to_device(render(scans_of(split), size, seed + start))
            right += (self.model(images).argmax(1) == labels).sum().item()
        return 100 * right / count

    def _to_device(self, batch: Batch) -> Batch:
        return Batch(batch.images.to(self.device), batch.labels.to(self.device))

    def _clock(self) -> float:
        return time.process_time() if self.device.type == 'cpu' else time.perf_counter()

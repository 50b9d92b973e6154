"""Time and memory of networks relative to the plain network of the same round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Callable

from torch import Tensor

from mmkw.analysis.memory import kept_memory, peak_memory, tensor_bytes
from mmkw.analysis.operations import count_operations
from mmkw.analysis.timing import Rates, Spread, time_alternately

from .networks import Network
from .setting import Setting

MODES = ('inference', 'train', 'memory')

# A backward pass does each product twice, for the gradients of both factors.
TRAINING_FACTOR = {'inference': 1, 'train': 3}


def measure_time(
    networks: list[Network], mode: str, batch_size: int, rates: Rates, setting: Setting
) -> list[dict]:
    """Time networks in alternating rounds; the first is the plain one.

    Returns:
        For each network a record: ``seconds`` and ``ratio`` to the plain network of the same
        round, as :class:`Spread`; ``operations``; and two bounds in seconds. ``bound_seconds``
        has all operations at the machine's rates, ``plain_and_assembling_seconds`` has the plain
        network's measured time instead of its operations.
    """
    runs: dict[str, Callable[[], object]] = {}
    operations = {}
    for network in networks:
        network.model.train(mode == 'train')
        images, samples = network.make_batch(batch_size)
        if mode == 'train':
            runs[network.name] = network.training_step(images, samples)
        else:
            runs[network.name] = partial(network.infer, images, samples)
        operations[network.name] = count_operations(network.model, runs[network.name])
    seconds = time_alternately(runs, setting.rounds, device=setting.device)
    plain = seconds[networks[0].name]
    records = []
    for network in networks:
        own = seconds[network.name]
        count, factor = operations[network.name], TRAINING_FACTOR[mode]
        mixing = factor * (count.assembling + count.attention) / rates.matmul
        records.append(
            dict(
                batch_size=batch_size,
                seconds=Spread.of(own)._asdict(),
                images_per_second=batch_size / Spread.of(own).median,
                ratio=ratio_of_rounds(own, plain)._asdict(),
                operations=asdict(count),
                bound_seconds=factor * count.convolution / rates.convolution + mixing,
                plain_and_assembling_seconds=Spread.of(plain).median + mixing,
            )
        )
    return records


def ratio_of_rounds(seconds: list[float], plain_seconds: list[float]) -> Spread:
    """Spread of the ratios of the same round."""
    return Spread.of([own / plain for own, plain in zip(seconds, plain_seconds)])


def measure_memory(
    network: Network, train_batch_size: int, batch_size: int, setting: Setting
) -> dict:
    """Bytes that a network needs.

    Returns:
        ``kept_bytes``: what the backward pass of a training step needs, without parameters,
        buffers and images. ``train_peak_bytes`` and ``inference_peak_bytes``: the most at once,
        with parameters, buffers, images and, in training, gradients and momentum.
    """
    model = network.model
    resident = [*model.parameters(), *model.buffers()]

    model.train()
    images, samples = network.make_batch(train_batch_size)
    kept = kept_memory(partial(network.loss, images, samples), [*resident, images])
    step = network.training_step(images, samples)
    step()
    model.zero_grad(set_to_none=True)
    momentum = [
        value
        for state in step.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    train_peak = peak_memory(step, setting.device) + tensor_bytes([*resident, *momentum, images])
    model.zero_grad(set_to_none=True)
    del step, momentum

    model.eval()
    images, samples = network.make_batch(batch_size)
    infer = partial(network.infer, images, samples)
    infer()
    inference_peak = peak_memory(infer, setting.device) + tensor_bytes([*resident, images])
    return dict(
        train_batch_size=train_batch_size,
        batch_size=batch_size,
        kept_bytes=kept,
        train_peak_bytes=train_peak,
        inference_peak_bytes=inference_peak,
    )


def measure_group(
    networks: list[Network],
    setting: Setting,
    rates: Rates,
    modes: Sequence[str] = MODES,
    batch_sizes: Sequence[int] = (1, 8, 32),
    train_batch_size: int = 16,
    say: Callable[[str], object] = print,
) -> list[dict]:
    """Measure networks of the same plain twin.

    Args:
        networks: from :func:`.networks.build_group`, the plain one first.
        setting: where and how they compute.
        rates: the machine's, for the bounds.
        modes: what to measure, of ``MODES``. Defaults to all.
        batch_sizes: of inference; its memory is that of the largest.
        train_batch_size: of training steps.
        say: called with a line for each measured number. Defaults to ``print``.

    Returns:
        One record for each network, in their order.
    """
    plain = networks[0]
    records = []
    for network in networks:
        network.model.eval()
        count = count_operations(network.model, partial(network.infer, *network.make_batch(1)))
        records.append(
            dict(
                name=network.name,
                config=network.config,
                plain=plain.name,
                parameters=sum(parameter.numel() for parameter in network.model.parameters()),
                operations_per_image=asdict(count),
                folded_bytes=network.folded_bytes,
            )
        )
    for mode, sizes in (('inference', batch_sizes), ('train', [train_batch_size])):
        measurable = [
            (network, record)
            for network, record in zip(networks, records)
            if mode == 'inference' or not network.folded_bytes
        ]
        for batch_size in sizes if mode in modes else ():
            measured = measure_time([n for n, _ in measurable], mode, batch_size, rates, setting)
            for (_, record), times in zip(measurable, measured):
                record.setdefault(mode, []).append(times)
                say(
                    f'{record["name"]}: {mode}, batch {batch_size}: '
                    f'{1e3 * times["seconds"]["median"]:.1f} ms, '
                    f'{times["ratio"]["median"]:.2f} of {plain.name}'
                )
    if 'memory' in modes:
        for network, record in zip(networks, records):
            if network.folded_bytes:
                continue
            record['memory'] = measure_memory(network, train_batch_size, max(batch_sizes), setting)
            of_plain = records[0]['memory']
            record['memory']['ratio'] = {
                key: value / of_plain[key]
                for key, value in record['memory'].items()
                if key.endswith('_bytes')
            }
            say(
                f'{network.name}: kept for backward, batch {train_batch_size}: '
                f'{record["memory"]["kept_bytes"] / 1e6:.1f} MB, '
                f'{record["memory"]["ratio"]["kept_bytes"]:.2f} of {plain.name}'
            )
    return records

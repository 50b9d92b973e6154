"""Building networks from their configs, with random weights and images, ready to be run."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmkw.methods import DynamicLayer
from mmkw.methods.kernel_warehouse import fold_attentions
from mmkw.methods.kernel_warehouse.layers import KWLayer
from mmkw.ops import forced_route

from .candidates import Candidate
from .setting import Setting


@contextlib.contextmanager
def _quiet_mmengine() -> Iterator[None]:
    """MMEngine logs the initialisation of every single parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class Network:
    """A built network with what it takes to run it.

    Args:
        candidate: its config.
        setting: where and how it computes.
    """

    def __init__(self, candidate: Candidate, setting: Setting) -> None:
        self.name = candidate.name
        self.config = candidate.stem
        self.is_detector = candidate.scope == 'mmdet'
        self.is_reference = False
        self.folded_bytes = 0
        self.setting = setting
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(candidate.scope), _quiet_mmengine():
            self.model = MODELS.build(ConfigDict(copy.deepcopy(candidate.model)))
            self.model.init_weights()
        setting.prepare(self.model)
        self._settle_norms(*self.make_batch(8))

    @property
    def is_dynamic(self) -> bool:
        """Whether a layer of it has kernels of each sample's own."""
        return any(isinstance(module, DynamicLayer) for module in self.model.modules())

    @property
    def has_warehouses(self) -> bool:
        return any(isinstance(module, KWLayer) for module in self.model.modules())

    def by_reference_route(self) -> Network:
        """The same network, assembling all kernels."""
        network = copy.copy(self)
        network.name = f'{self.name} (reference)'
        network.is_reference = True
        return network

    def with_folded_attentions(self, min_saving: float) -> Network:
        """A copy for inference only, with attentions folded into the cells."""
        network = copy.copy(self)
        network.name = f'{self.name} (folded)'
        network.model = copy.deepcopy(self.model).eval()
        network.folded_bytes = sum(fold_attentions(network.model, min_saving).values())
        return network

    def make_batch(self, size: int) -> tuple[Tensor, list]:
        """Random images with a class, or with 8 boxes and masks, each."""
        resolution, device = self.setting.resolution, self.setting.device
        torch.manual_seed(0)
        if self.is_detector:
            from mmdet.testing import demo_mm_inputs

            packed = demo_mm_inputs(
                size, (3, resolution, resolution), [8] * size, num_classes=2, with_mask=True
            )
            batch = self.model.data_preprocessor(packed, training=True)
            images, samples = batch['inputs'], batch['data_samples']
        else:
            from mmpretrain.structures import DataSample

            images = torch.randn(size, 3, resolution, resolution, device=device)
            samples = [DataSample().set_gt_label(i % 2).to(device) for i in range(size)]
        return images.contiguous(memory_format=self.setting.memory_format), samples

    def route(self) -> contextlib.AbstractContextManager:
        """By which route the layers compute."""
        return forced_route('reference') if self.is_reference else contextlib.nullcontext()

    @torch.no_grad()
    def infer(self, images: Tensor, samples: list):
        """Compute the output; the model is in evaluation mode already."""
        with self.route(), self.setting.autocast():
            return self.model(images, samples, mode='tensor')

    def loss(self, images: Tensor, samples: list) -> Tensor:
        """Compute the sum of the losses; the model is in training mode already."""
        with self.route(), self.setting.autocast():
            losses = self.model(images, samples, mode='loss')
            return self.model.parse_losses(losses)[0]

    def training_step(self, images: Tensor, samples: list) -> TrainingStep:
        """A training step to call: forward, loss, backward, SGD with momentum."""
        return TrainingStep(self, images, samples)

    @torch.no_grad()
    def _settle_norms(self, images: Tensor, samples: list) -> None:
        """Give batch norms the statistics of a batch.

        With those of a new network activations would shrink from layer to layer, in deep ones to
        numbers so small that CPUs are slow with them.
        """
        self.model.train()
        norms = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        self.model(images, samples, mode='tensor')
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


class TrainingStep:
    """One training step of a network on the same batch, as often as it is called.

    The learning rate is 0, which costs the same and keeps the network as it is.
    """

    def __init__(self, network: Network, images: Tensor, samples: list) -> None:
        self.network, self.batch = network, (images, samples)
        trained = [p for p in network.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.network.route():
            self.network.loss(*self.batch).backward()
        self.optimizer.step()


def build_group(
    group: list[Candidate], setting: Setting, reference: bool = False, fold: float | None = None
) -> list[Network]:
    """Build networks of the same plain twin, which stands first.

    Args:
        group: from :func:`.candidates.group_by_twin`.
        setting: where and how they compute.
        reference: whether to add each dynamic network once more, by the reference route.
        fold: the least saving of layers whose attention is folded, in one more copy of each KW
            network, see :func:`mmkw.fold_attentions`. Defaults to ``None``, no such copies.

    Raises:
        ValueError: if the twin still has dynamic layers.
    """
    networks = [Network(candidate, setting) for candidate in group]
    if networks[0].is_dynamic:
        raise ValueError(
            f'cannot tell what {group[-1].name} is without its dynamic layers: they do not come '
            f'from a KW backbone, DynamicBackbone or their heads (but from a conv_cfg, say)'
        )
    own = networks[1:]
    if reference:
        networks += [network.by_reference_route() for network in own]
    if fold is not None:
        folded = (n.with_folded_attentions(fold) for n in own if n.has_warehouses)
        networks += [network for network in folded if network.folded_bytes]
    return networks

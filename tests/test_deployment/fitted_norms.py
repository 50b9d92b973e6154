"""Random weights for which the outputs depend on the images, and little on rounding."""

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from torch import nn


def fit_norms(network, size):
    """Give all norms the statistics of images, so that no outputs vanish; in evaluation mode.

    The images differ in colour and brightness as photographs do: attentions fitted to noise alone
    would depend on how its mean happens to be rounded. Branches of MobileNetV2's blocks add little,
    as 50 random layers in a row enlarge errors of rounding a thousandfold.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # The statistics are the mean over all batches.
        if isinstance(module, InvertedResidual) and module.use_res_connect:
            nn.init.constant_(module.conv[-1].norm.weight, 0.2)
    images = torch.randn(4, 3, size, size)
    images += 2 * F.interpolate(torch.randn(4, 3, 4, 4), size, mode='bilinear')
    with torch.no_grad():
        network(images.to(next(network.parameters()).dtype))
    network.eval()

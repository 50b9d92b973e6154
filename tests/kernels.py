"""Looking at the layers and parameters of networks."""

from mmkw.methods.kernel_warehouse import KWLayer


def kw_layers(network):
    """The KW layers of a network, by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, KWLayer)}


def trainable(module):
    """Which of the two, training and frozen, the parameters of a module are."""
    return {parameter.requires_grad for parameter in module.parameters()}

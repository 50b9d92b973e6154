"""Comparing KW networks with the plain networks of the kernels that they assemble."""

import torch

import mmkw
from mmkw.methods.kernel_warehouse import KWLayer


def kw_layers(network):
    """The KW layers of a network, by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, KWLayer)}


def trainable(module):
    """Which of the two, training and frozen, the parameters of a module are."""
    return {parameter.requires_grad for parameter in module.parameters()}


def copy_kernels(kw, plain, x):
    """Give ``plain`` the kernels that ``kw`` assembles for ``x``, and all else that it shares.

    The temperature must be 1, as kernels are then the same for all samples.

    Returns:
        What ``kw`` makes of ``x``.
    """
    state_dict, wanted = kw.state_dict(), plain.state_dict()
    # The layer scales of KWConvNeXt have more dimensions, of size 1.
    shared = {k: v.reshape(wanted[k].shape) for k, v in state_dict.items() if k in wanted}
    plain.load_state_dict(shared, strict=False)
    modules = dict(plain.named_modules())

    def copy_kernel(name):
        def hook(layer, inputs):
            kernels = layer.kernels(inputs[0])
            assert torch.equal(kernels, kernels[:1].expand_as(kernels)), 'one-to-one for any input'
            modules[name].weight.data.copy_(kernels[0])

        return hook

    handles = [
        module.register_forward_pre_hook(copy_kernel(name))
        for name, module in kw_layers(kw).items()
    ]
    assert handles, 'no KW layer to compare'
    with torch.no_grad():
        outputs = kw(x)
    for handle in handles:
        handle.remove()
    return outputs


def assert_plain_at_temperature_1(kw, plain, x):
    """At temperature 1 a KW network is the plain one of its assembled kernels (float64)."""
    for network in (kw, plain):
        network.double().eval()
    mmkw.set_temperature(kw, 1)
    outputs = copy_kernels(kw, plain, x.double())
    with torch.no_grad():
        expected = plain(x.double())
    assert len(outputs) == len(expected) > 0
    for y, plain_y in zip(outputs, expected):
        assert plain_y.std() > 0, 'nothing to compare'
        torch.testing.assert_close(y, plain_y, rtol=1e-10, atol=1e-12)

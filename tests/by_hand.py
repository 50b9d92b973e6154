"""Each method written from its equations, sample by sample, from a layer's parameters alone."""

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn


def gradients(module, x, forward):
    """``forward(x)``, and the gradients of a projection of it for input and parameters."""
    x = x.detach().clone().requires_grad_()
    y = forward(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad((y * weights).sum(), [x, *parameters.values()], allow_unused=True)
    return y.detach(), dict(zip(['x', *parameters], found))


def norm(module, x):
    """Batch norm over all but the second dimension, or layer norm over the last one."""
    if isinstance(module, nn.LayerNorm):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * module.weight + module.bias
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, var = module.running_mean, module.running_var
    if module.training:
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
    x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return x * module.weight.view(shape) + module.bias.view(shape)


def convolve(x, kernels, geometry):
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
    return torch.cat([conv(sample[None], k, **geometry) for sample, k in zip(x, kernels)])


def affine(linear, x):
    y = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def od_conv(layer, x, geometry):
    a, t = layer.attention, layer.attention.temperature
    hidden = norm(a.norm, affine(a.fc, x.mean((2, 3)))).clamp(min=0)

    def sigmoid(head):
        return None if head is None else 1 / (1 + torch.exp(-affine(head, hidden) / t))

    channel, filters, spatial = map(sigmoid, (a.channel_fc, a.filter_fc, a.spatial_fc))
    outputs = []
    for i, sample in enumerate(x):
        weights = torch.ones(1, dtype=x.dtype)
        if a.kernel_fc is not None:
            exponentials = torch.exp(affine(a.kernel_fc, hidden[i]) / t)
            weights = exponentials / exponentials.sum()
        kernel = sum(w * k for w, k in zip(weights, layer.weight))
        if spatial is not None:
            kernel = kernel * spatial[i].view(kernel.shape[2:])
        y = F.conv2d((sample * channel[i][:, None, None])[None], kernel, **geometry)[0]
        outputs.append(y if filters is None else y * filters[i][:, None, None])
    return torch.stack(outputs)


def dy_conv(layer, x, geometry):
    a = layer.attention
    logits = affine(a.fc2, affine(a.fc1, x.mean((2, 3))).clamp(min=0)) / a.temperature
    weights = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    return convolve(x, torch.einsum('nk,k...->n...', weights, layer.weight), geometry)


def cond_conv(layer, x, geometry):
    weights = 1 / (1 + torch.exp(-affine(layer.attention.fc, x.mean((2, 3)))))
    return convolve(x, torch.einsum('nk,k...->n...', weights, layer.weight), geometry)


def dcd(layer, x, geometry):
    a = layer.attention

    def hard_sigmoid(z):
        return (z + 3).clamp(0, 6) / 3

    hidden = affine(a.squeeze, F.adaptive_avg_pool2d(x, 2).flatten(1))
    hidden = hidden * hard_sigmoid(affine(a.gate, hidden))
    latent = math.isqrt(4 * layer.in_channels)
    phi = affine(a.phi, hidden).view(-1, latent, latent)
    scale = hard_sigmoid(affine(a.scale, hidden))
    y = scale[:, :, None, None] * F.conv2d(x, layer.weight, **geometry)
    q = norm(layer.q_norm, F.conv2d(x, layer.q[..., None, None], stride=geometry['stride']))
    mixed = norm(layer.phi_norm, torch.einsum('nij,njhw->nihw', phi, q)) + q
    return y + F.conv2d(mixed, layer.p[..., None, None])


def cgc(layer, x, geometry):
    a, (rows, columns) = layer.attention, layer.kernel_size
    latent = affine(a.encode, F.adaptive_avg_pool2d(x, (rows, columns)).flatten(2))
    of_inputs = affine(a.in_decode, norm(a.in_norm, latent).clamp(min=0))
    group = min(16, layer.in_channels)
    parts = norm(a.mix_norm, latent).clamp(min=0).split(group, 1)
    mixed = torch.cat([torch.einsum('og,ngd->nod', a.mix.weight, part) for part in parts], 1)
    of_outputs = affine(a.out_decode, norm(a.out_norm, mixed).clamp(min=0))
    kernels = torch.zeros(len(x), *layer.kernel_shape, dtype=x.dtype)
    for o in range(layer.out_channels):
        for i in range(layer.in_channels):
            gate = 1 / (1 + torch.exp(-of_inputs[:, i] - of_outputs[:, o]))
            here = torch.zeros_like(kernels)
            here[:, o, i] = layer.weight[o, i] * gate.view(-1, rows, columns)
            kernels = kernels + here
    return convolve(x, kernels, geometry)


def weight_net(layer, x, geometry):
    a = layer.attention
    logits = affine(a.fc, affine(a.reduce, x.mean((2, 3))))
    # One attention for each half of each output channel's kernel.
    halves = (1 / (1 + torch.exp(-logits))).view(len(x), layer.out_channels, 2)
    weight = layer.weight.view(layer.out_channels, 2, -1)
    kernels = torch.cat([halves[:, :, :1] * weight[:, 0], halves[:, :, 1:] * weight[:, 1]], 2)
    return convolve(x, kernels.view(len(x), *layer.kernel_shape), geometry)


# Table 8; the first is Eq. 4.
ATTENTION_FUNCTIONS = {
    'caf': lambda z: z / (sum(abs(v) for v in z) + 1e-3),
    'softmax': lambda z: torch.exp(z) / sum(torch.exp(v) for v in z),
    'sigmoid': lambda z: 1 / (1 + torch.exp(-z)),
    'nonnegative': lambda z: z.clamp(min=0) / (sum(abs(v) for v in z) + 1e-3),
}


def warehouse_logits(layer, pooled):
    """Appendix A.3: those of each sample and mixture, the zero cell as the last."""
    a, p = layer.attention, layer.partition
    hidden = norm(a.norm, affine(a.fc1, pooled)).clamp(min=0)
    logits = affine(a.fc2, hidden).view(len(pooled), p.num_mixtures, -1)
    if a.fc3 is None:
        return logits
    own, others = logits[..., : p.num_own_cells], logits[..., p.num_own_cells : -1]
    others = affine(a.fc3, others)
    parts = (others[..., : p.first_cell], own, others[..., p.first_cell :], logits[..., -1:])
    return torch.cat(parts, -1) + a.basis_bias.view(p.num_mixtures, -1)


def warehouse_kernels(layer, pooled):
    """Eqs. 2 to 4: every mixture at its place in every sample's kernel."""
    p, cells = layer.partition, layer.warehouse.cells
    function = ATTENTION_FUNCTIONS[layer.attention.function]
    # Without an allocation, there is nothing to anneal from.
    tau = layer.warehouse.temperature if p.initial_pairs else 0
    beta = torch.zeros(p.num_mixtures, p.num_cells, dtype=cells.dtype)
    for i, j in p.initial_pairs:
        beta[i, j] = 1
    out_channels, in_channels, *size = layer.kernel_shape
    c_out, c_in, *cell_size = cells.shape[1:]
    positions = product(*(range(0, k, s) for k, s in zip(size, cell_size)))
    places = product(positions, range(0, out_channels, c_out), range(0, in_channels, c_in))
    places = list(places)
    assert len(places) == p.num_mixtures
    kernels = []
    for logits in warehouse_logits(layer, pooled):
        kernel = cells.new_zeros(layer.kernel_shape)
        for i, (z, (position, out, channel)) in enumerate(zip(logits, places)):
            learned = function(z)[:-1]
            # With a budget of b, the scope 'mixture' gives mixture i the cells from i b on.
            first = 0 if len(learned) == p.num_cells else i * len(learned)
            learned = F.pad(learned, (first, p.num_cells - first - len(learned)))
            alpha = tau * beta[i] + (1 - tau) * learned
            spatial = [slice(start, start + step) for start, step in zip(position, cell_size)]
            here = torch.zeros_like(kernel)
            here[(slice(out, out + c_out), slice(channel, channel + c_in), *spatial)] = sum(
                weight * cell for weight, cell in zip(alpha, cells)
            )
            kernel = kernel + here
        kernels.append(kernel)
    return torch.stack(kernels)


def kernel_warehouse(layer, x, geometry):
    return convolve(x, warehouse_kernels(layer, x.flatten(2).mean(2)), geometry)


def fd_conv(layer, x, geometry):
    """The plain convolution that a layer of few channels is; test_fd_conv.py has the others."""
    return F.conv2d(x, layer.weight, **geometry)

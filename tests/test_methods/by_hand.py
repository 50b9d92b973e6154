"""Each method written from its equations, sample by sample, from a layer's parameters alone."""

import math

import torch
import torch.nn.functional as F


def norm(module, x):
    """Batch norm over all but the second dimension."""
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, var = module.running_mean, module.running_var
    if module.training:
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
    x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return x * module.weight.view(shape) + module.bias.view(shape)


def convolve(x, kernels, geometry):
    return torch.stack([F.conv2d(s[None], k, **geometry)[0] for s, k in zip(x, kernels)])


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


def kernel_warehouse(layer, x, geometry):
    a, p, tau = layer.attention, layer.partition, layer.warehouse.temperature
    hidden = norm(a.norm, affine(a.fc1, x.mean((2, 3)))).clamp(min=0)
    cells = layer.warehouse.cells
    c_out, c_in = cells.shape[1:3]
    _, out_groups, in_groups = p.grid
    width = layer.kernel_shape[3]
    kernels = []
    for logits in affine(a.fc2, hidden):
        kernel = torch.zeros(layer.kernel_shape, dtype=x.dtype)
        for i, z in enumerate(logits.chunk(p.num_mixtures)):
            alpha = (1 - tau) * z / (z.abs().sum() + 1e-3)
            if p.initial_cells[i] is not None:
                alpha = alpha + tau * F.one_hot(torch.tensor(p.initial_cells[i]), len(z))
            mixture = sum(w * cell for w, cell in zip(alpha, cells))[..., 0, 0]
            position, row, column = (
                i // (out_groups * in_groups), i // in_groups % out_groups, i % in_groups
            )  # fmt: skip
            here = torch.zeros_like(kernel)
            here[
                row * c_out : (row + 1) * c_out,
                column * c_in : (column + 1) * c_in,
                position // width,
                position % width,
            ] = mixture
            kernel = kernel + here
        kernels.append(kernel)
    return convolve(x, kernels, geometry)


def fd_conv(layer, x, geometry):
    """The plain convolution that a layer of few channels is; test_fd_conv.py has the others."""
    return F.conv2d(x, layer.weight, **geometry)

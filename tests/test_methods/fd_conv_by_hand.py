"""FDConv from its equations: sums over frequencies, one sample at a time, without transforms."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from by_hand import norm


def fd_conv(layer, x, options):
    """What a layer with these options makes of ``x``, from its parameters alone."""
    pooled = x.mean((2, 3))
    # One kernel and one input a sample.
    kernels = sample_kernels(layer, pooled, options)
    maps = x if layer.FBM is None else gated_bands(layer.FBM, x, options)
    geometry = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    outputs = [F.conv2d(one[None], k, layer.bias, **geometry) for one, k in zip(maps, kernels)]
    return torch.cat(outputs)


def activated(logits, function, most):
    if function == 'softmax':
        exponentials = logits.exp()
        return exponentials / exponentials.sum(1, keepdim=True) * logits.shape[1]
    return 1 + torch.tanh(logits) if function == 'tanh' else most / (1 + torch.exp(-logits))


def sorted_bins(rows, columns):
    """Coefficients by their distance from 0; Python's sort keeps the order of equal ones."""
    distances = []
    for i in range(rows):
        a = np.float32(i if i < (rows + 1) // 2 else i - rows) * np.float32(1 / rows)
        for j in range(columns):
            b = np.float32(j) * np.float32(1 / (2 * (columns - 1)))
            # Squares of float32 numbers are exact in float64.
            distances.append(np.sqrt(np.float32(float(b) * float(b) + float(a * a))))
    return sorted(range(rows * columns), key=distances.__getitem__)


def inverse(spectrum, columns):
    """The real signal of a half spectrum: along the rows, then along the columns."""
    rows, half = spectrum.shape
    r = torch.arange(rows, dtype=torch.float64)
    spectrum = torch.polar(torch.ones(rows, rows).double(), 2 * math.pi * r.outer(r) / rows) @ (
        spectrum / rows
    )
    signal = torch.zeros(rows, columns, dtype=torch.float64)
    for j in range(half):
        angle = 2 * math.pi * j * torch.arange(columns, dtype=torch.float64) / columns
        wave = spectrum[:, j].real.outer(angle.cos()) - spectrum[:, j].imag.outer(angle.sin())
        signal += wave if j in (0, columns / 2) else 2 * wave
    return signal / columns


def spectrum_of(signal):
    """The half spectrum of a real matrix."""
    rows, columns = signal.shape
    r = torch.arange(rows, dtype=torch.float64)
    c = torch.arange(columns, dtype=torch.float64)
    along_rows = torch.polar(torch.ones(rows, rows).double(), -2 * math.pi * r.outer(r) / rows)
    angle = -2 * math.pi * c.outer(c[: columns // 2 + 1]) / columns
    return along_rows @ signal.to(torch.complex128) @ torch.polar(torch.ones_like(angle), angle)


def sample_kernels(layer, pooled, o):
    c_out, c_in, size, _ = layer.kernel_shape
    rows, columns = c_out * size, c_in * size // 2 + 1
    m = min(c_in, c_out) // 2
    n, copies, kept = o['num_kernels'] or c_out // 2, o['copies'], o['kept']
    weight_t = math.sqrt(n * copies) if o['num_kernels'] is None else o['kernel_temperature']
    gate_t = weight_t if o['temperature'] is None else o['temperature']
    order = sorted_bins(rows, columns)
    number = int(rows * columns * kept)
    if not o['stores_kernel']:
        weight = torch.view_as_complex(layer.dft_weight.detach())
        weight = weight if kept < 1 else weight.flatten(1)[:, order]
    else:
        matrix = layer.weight.detach().transpose(1, 2).reshape(rows, c_in * size)
        weight = (spectrum_of(matrix) / m).flatten()[order].expand(copies, -1)

    a = layer.KSM_Global
    hidden = norm(a.bn, pooled @ a.fc.weight[..., 0, 0].T).clamp(min=0)
    hidden = a.relu.scale * hidden**2 + a.relu.bias

    def head(linear, temperature):
        return (hidden @ linear.weight[..., 0, 0].T + linear.bias) / temperature

    pi = activated(head(a.kernel_fc, weight_t), o['activation'], 2) / (n * copies)
    scale = m * n * copies if kept == 1 else 1
    kernels = []
    for i in range(len(pooled)):
        mixed = torch.zeros(rows * columns, dtype=torch.complex128)
        for p in range(copies):
            for place, bin in enumerate(order[:number]):
                share = pi[i, p * n + place // (number // n)]
                mixed[bin] += scale * weight[p, place] * share
        kernel = inverse(mixed.view(rows, columns), c_in * size)
        kernels.append(kernel.view(c_out, size, c_in, size).transpose(1, 2))
    kernels = torch.stack(kernels)
    if not o['only_kernel_attention']:
        heads = (
            (a.channel_fc, (1, c_in, 1, 1)), (a.filter_fc, (c_out, 1, 1, 1)),
            (a.spatial_fc, (1, 1, size, size)),
        )  # fmt: skip
        for linear, shape in heads:
            if linear is not None:
                gates = activated(head(linear, gate_t), o['activation'], o['max_gate'])
                kernels = kernels * gates.view(-1, *shape)
    if o['local_gate']:
        local = layer.KSM_Local
        centred = pooled - pooled.mean(1, keepdim=True)
        normed = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        side = local.conv.weight.shape[2]
        normed = F.pad(normed * local.norm.weight + local.norm.bias, [side, side])
        for o_, i_, y_, x_ in np.ndindex(c_out, c_in, size, size):
            taps = local.conv.weight[(o_ * size + y_) * size + x_, 0]
            start = side + i_ - side // 2
            logit = (normed[:, start : start + side] * taps).sum(1)
            kernels[:, o_, i_, y_, x_] *= activated(logit, o['local_activation'], o['max_gate'])
    return kernels


def band_mask(band, grid, height, width):
    """Which coefficients the low part of a band keeps."""
    limit = np.float32(0.5 / band + 1e-8)
    columns = grid[1] // 2 + 1
    mask = torch.zeros(height, width // 2 + 1, dtype=torch.float64)
    for u, v in np.ndindex(*mask.shape):
        row = min(math.floor(np.float32(u) * np.float32(grid[0] / height)), grid[0] - 1)
        column = min(math.floor(np.float32(v) * np.float32(columns / mask.shape[1])), columns - 1)
        row -= grid[0] if row >= (grid[0] + 1) // 2 else 0
        mask[u, v] = float(
            max(np.float32(abs(row) / grid[0]), np.float32(column / grid[1])) < limit
        )
    return mask


def gated_bands(fbm, x, o):
    height, width = x.shape[2:]
    channels = x.shape[1]
    groups = channels if o['band_groups'] > 64 else o['band_groups']
    convs = list(fbm.freq_weight_conv_list)
    gates = [
        activated(
            F.conv2d(x, conv.weight, conv.bias, padding=1, groups=groups), o['band_activation'], 2
        )
        for conv in convs
    ]
    result = torch.zeros_like(x)
    for i, c in np.ndindex(*x.shape[:2]):
        spectrum, above = spectrum_of(x[i, c]), x[i, c]
        run = c // (channels // groups)
        for band, gate in zip(o['bands'], gates):
            mask = band_mask(band, o['mask_size'], height, width)
            low = inverse(spectrum * mask, width)
            result[i, c] += gate[i, run] * (above - low)
            above = low
        result[i, c] += gates[-1][i, run] * above if o['low_band_gate'] else above
    return result

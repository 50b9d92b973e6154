"""Draw the pictures of the documentation, each for light and dark pages: `make figures`.

The accuracies are those of the paper's tables 1, 2, 4 and 11, read from configs/imagenet/README.md.
"""

import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / 'images'
MODES = {'light': ('#1b1f24', '#d0d4d9', '#ffffff'), 'dark': ('#e6e8eb', '#4a5058', '#131416')}
COLOURS = ['#4c9be8', '#f2a03d', '#58b368', '#e0607e', '#9d7be0', '#3fbfb5']
NETWORKS = {
    'resnet18': 'ResNet18',
    'resnet50': 'ResNet50',
    'convnext-tiny': 'ConvNeXt-Tiny',
    'mobilenet-v2-w100': 'MobileNetV2 1.0',
    'mobilenet-v2-w050': 'MobileNetV2 0.5',
    'deit-tiny': 'DeiT-Tiny',
    'deit-small': 'DeiT-Small',
}
BUDGETS = {'1d4x': '1/4x', '1d2x': '1/2x', '3d4x': '3/4x', '1x': '1x', '2x': '2x', '4x': '4x'}


def save(figure, name, mode):
    figure.savefig(IMAGES / f'{name}_{mode}.svg', transparent=True, metadata={'Date': None})


def draw_grid(axes, x, y, rows, columns, colours, line, size=0.5):
    for row in range(rows):
        for column in range(columns):
            colour = colours[row * columns + column]
            corner = (x + column * size, y - row * size)
            axes.add_patch(Rectangle(corner, size, size, facecolor=colour, edgecolor=line, lw=1.2))


def draw_sharing(mode):
    """Two layers of different size draw on one warehouse of cells."""
    text, faint, background = MODES[mode]
    figure = Figure(figsize=(9, 4.3))
    axes = figure.subplots()
    style = dict(color=text, ha='center', fontsize=14)
    cells = COLOURS
    draw_grid(axes, 4.75, 2.9, 3, 2, cells, background)
    axes.text(5.25, 3.75, 'warehouse: n cells', weight='bold', **style)
    axes.text(5.25, 1.45, 'shared by all layers\nof a stage', va='top', **style)
    layers = [
        (0.9, 3.2, 2, 2, 'layer 1: 4 pieces', [0, 1, 2, 3]),
        (8.1, 3.2, 4, 2, 'layer 2: 8 pieces', [4, 0, 5, 2, 1, 3, 4, 5]),
    ]
    for x, y, rows, columns, title, order in layers:
        draw_grid(axes, x, y, rows, columns, [cells[i] for i in order], background)
        axes.text(x + columns / 4, y + 0.85, title, weight='bold', **style)
    for start, end in (((4.65, 2.6), (2.1, 3.0)), ((5.85, 2.6), (7.95, 2.6))):
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=16, color=text, lw=1.4)
        )
    axes.text(3.35, 3.2, r'attention $\alpha$', **style)
    axes.text(6.9, 2.85, r'attention $\alpha$', **style)
    note = 'each piece is a mixture\nof all cells; drawn is\nits largest part'
    axes.text(1.4, 2.25, note, va='top', color=text, ha='center', fontsize=12.5)
    axes.text(5.25, 0.35, r'piece $i$ = $\sum_j\ \alpha_{ij}$ · cell $j$,   anew for each image',
              color=text, ha='center', fontsize=15)  # fmt: skip
    axes.set(xlim=(0, 10.2), ylim=(0.1, 4.4))
    axes.set_axis_off()
    figure.tight_layout(pad=0.2)
    save(figure, 'sharing', mode)


def read_points():
    """The rows of the tables: network -> [(parameters in millions, top-1, budget or '')]."""
    points = {name: [] for name in NETWORKS.values()}
    row = re.compile(
        r'\| \[(?:(kw)-)?([a-z0-9-]+?)(?:-(\d(?:d\d)?x))?_8xb\d+-(\d+)e_in1k\]\(.*?\) '
        r'\| ([\d,]+) \| ([\d.]+) \|'
    )
    text = (DOCS.parent / 'configs/imagenet/README.md').read_text(encoding='utf-8')
    for is_kw, network, budget, epochs, parameters, top1 in row.findall(text):
        if network in NETWORKS and bool(is_kw) == bool(budget) and epochs != '100':
            millions = int(parameters.replace(',', '')) / 1e6
            points[NETWORKS[network]].append((millions, float(top1), BUDGETS.get(budget, '')))
    return points


def draw_accuracy(mode):
    """The paper's top-1 over the parameters, a line a network, the plain network as a square."""
    text, faint, _ = MODES[mode]
    figure = Figure(figsize=(9, 5.4))
    axes = figure.subplots()
    for (network, points), colour in zip(read_points().items(), [*COLOURS, '#8a929c']):
        kw = sorted(point for point in points if point[2])
        plain = [point for point in points if not point[2]]
        axes.plot(*zip(*(point[:2] for point in kw)), 'o-', color=colour, label=network, lw=1.8)
        axes.plot(*zip(*(point[:2] for point in plain)), 's', color=colour, mfc='none', mew=1.8)
        # DeiTs lie just above ResNets.
        below = network.startswith('ResNet')
        for x, y, budget in kw:
            axes.annotate(budget, (x, y), (0, -7 if below else 6), textcoords='offset points',
                          ha='center', va='top' if below else 'bottom', color=text, fontsize=9,
                          )  # fmt: skip
    axes.set_xscale('log')
    ticks = [1.5, 2.5, 5, 10, 25, 50, 100]
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel('parameters in millions', color=text)
    axes.set_ylabel('ImageNet top-1 in %, as the paper reports', color=text)
    axes.set_title('Filled: KernelWarehouse with its budget. Square: the plain network.',
                   color=text, fontsize=11)  # fmt: skip
    axes.tick_params(colors=text)
    axes.grid(color=faint, lw=0.5, alpha=0.6)
    for spine in axes.spines.values():
        spine.set_color(faint)
    axes.legend(frameon=False, labelcolor=text, fontsize=9, loc='lower right')
    figure.tight_layout()
    save(figure, 'accuracy', mode)


def main():
    IMAGES.mkdir(exist_ok=True)
    # The same bytes on every run.
    with matplotlib.rc_context({'svg.hashsalt': 'mmkw'}):
        for mode in MODES:
            draw_sharing(mode)
            draw_accuracy(mode)


if __name__ == '__main__':
    main()

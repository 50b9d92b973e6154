"""What PyTorch itself makes of KW networks: recordings, compiled libraries and fewer bits."""

import copy
import warnings

import pytest
import torch
from fitted_norms import fit_norms
from torch import nn

from mmkw import KWConv2d, set_temperature
from mmkw.openmmlab.backbones import KWConvNeXt, KWMobileNetV2, KWResNet

pytest.importorskip('torch', minversion='2.6', reason='torch.export.Dim.DYNAMIC came with 2.6')
ANY = torch.export.Dim.DYNAMIC
NETWORKS = {
    'KWResNet18': lambda: KWResNet(depth=18),
    'KWMobileNetV2': lambda: KWMobileNetV2(widen_factor=0.5),
    'KWConvNeXt': lambda: KWConvNeXt(arch='tiny', drop_path_rate=0.0),
}
pytestmark = [
    pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]


def make_resnet():
    torch.manual_seed(0)
    network = KWResNet(depth=18)
    set_temperature(network, 0.3)
    with torch.no_grad():
        for _ in range(2):  # So that the outputs of batch norms do not vanish.
            network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


@torch.no_grad()
def check(module, network, sizes, tolerance=1e-5):
    for size in sizes:
        images = torch.randn(size, dtype=next(network.parameters()).dtype)
        *_, actual = module(images)
        *_, expected = network(images)
        assert expected.abs().max() > 1e-6
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max(), size


@pytest.mark.slow
@pytest.mark.parametrize('strict', [False, True], ids=['lenient', 'strict'])
@pytest.mark.parametrize('name', NETWORKS)
@torch.no_grad()
def test_recordings_serve_any_size(name, strict):
    torch.manual_seed(0)
    # In float64, as networks with random weights enlarge errors of rounding.
    network, example = NETWORKS[name]().double(), torch.randn(2, 3, 64, 64).double()
    set_temperature(network, 0.3)
    fit_norms(network, 64)
    sizes = [(1, 3, 64, 64), (5, 3, 64, 64), (3, 3, 96, 128)]
    check(torch.jit.trace(network, example), network, sizes, tolerance=1e-9)
    shapes = ({0: ANY, 2: ANY, 3: ANY},)
    exported = torch.export.export(network, (example,), dynamic_shapes=shapes, strict=strict)
    check(exported.module(), network, sizes, tolerance=1e-9)


@pytest.mark.slow
@torch.no_grad()
def test_ahead_of_time_library_serves_any_batch_size(tmp_path):
    network, example = make_resnet(), torch.randn(2, 3, 64, 64)
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    package = str(tmp_path / 'model.pt2')
    torch._inductor.aoti_compile_and_package(exported, package_path=package)
    loaded = torch._inductor.aoti_load_package(package)
    check(loaded, network, [(1, 3, 64, 64), (5, 3, 64, 64)])


def test_bfloat16():
    network = make_resnet()
    lean = copy.deepcopy(network).bfloat16()
    check(
        lambda images: [y.float() for y in lean(images.bfloat16())],
        network,
        [(2, 3, 64, 64)],
        tolerance=0.02,
    )


def test_quantisation_leaves_kw_layers_in_floating_point():
    """Nothing of them is turned into integers behind the attentions' back."""
    from torch.ao import quantization
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    network, images = make_resnet(), torch.randn(4, 3, 64, 64)
    dynamic = quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear})
    check(dynamic, network, [images.shape], tolerance=0)
    prepared = prepare_fx(
        copy.deepcopy(network), quantization.get_default_qconfig_mapping(), (images,)
    )
    prepared(images)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        static = convert_fx(prepared)
    of_integers = [m for m in static.modules() if 'quantized' in type(m).__module__]
    assert len(of_integers) == 1 + 19, 'the stem, and the norms after KW layers'
    kw_layers = [m for m in static.modules() if isinstance(m, KWConv2d)]
    assert len(kw_layers) == 19
    assert all(p.dtype == torch.float32 for layer in kw_layers for p in layer.parameters())
    check(static, network, [images.shape], tolerance=0.1)

import torch

from mmkw import KWConv2d
from mmkw.meta_device import on_meta_device


def test_parameters_have_no_memory_but_what_is_read_has_values():
    with on_meta_device():
        layer = KWConv2d(8, 8, 3)
        rates = torch.linspace(0, 1, 3)
        random = torch.tensor([0.0, 0.0]).normal_()
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert layer.warehouse.temperature.item() == 0
    assert rates.tolist() == [0, 0.5, 1]
    assert random.all()

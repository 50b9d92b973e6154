# Other dynamic convolutions by the traditional recipe of the paper's Table 1, as KW networks have
# it.
_base_ = './resnet18_8xb32-100e.py'

# budget=None is the plain ResNet, some of whose layers are replaced.
model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(type='KWResNet', depth=18, budget=None, zero_init_residual=False),
    )
)
custom_hooks = []

# Other dynamic convolutions by the advanced recipe of the paper's Table 2, as KW networks have it.
# Nothing is known of their drop path; here they have that of KW networks.
_base_ = './resnet18_8xb512-300e.py'

# budget=None is the plain ResNet, some of whose layers are replaced.
model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(
            type='KWResNet',
            depth=18,
            budget=None,
            drop_path_rate=0.1,
            constant_drop_path=True,
            zero_init_residual=False,
        ),
    )
)
custom_hooks = []

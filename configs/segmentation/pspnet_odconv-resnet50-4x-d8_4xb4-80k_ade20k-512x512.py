_base_ = './pspnet_kw-resnet50-1x-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(
            type='mmseg.ResNet',
            depth=50,
            zero_init_residual=False,
            out_indices=(0, 1, 2, 3),
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
            init_cfg=dict(
                type='Pretrained',
                prefix='backbone.',
                checkpoint=f'{_base_.work_dirs}/odconv-resnet50-4x_8xb512-300e_in1k/epoch_300.pth',
            ),
        ),
        layer=dict(type='ODConv2d', num_kernels=4),
        layers=['layer*.conv?'],
    ),
)

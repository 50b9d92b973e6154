# From the last checkpoint of the ImageNet config, with the temperature held at 1.
work_dirs = '{{ fileDirname }}/../../../work_dirs'

dynamic_backbone = dict(
    type='DynamicBackbone',
    backbone=dict(
        type='mmseg.ResNet',
        depth=50,
        zero_init_residual=False,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint=f'{work_dirs}/odconv-resnet50-4x_8xb512-300e_in1k/epoch_300.pth',
        ),
    ),
    layer=dict(type='ODConv2d', num_kernels=4),
    layers=['layer*.conv?'],
)
custom_hooks = [dict(type='KWDisableAttentionInitHook')]

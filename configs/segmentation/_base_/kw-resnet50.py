# From the last checkpoint of the ImageNet config, with the temperature held at 0.
work_dirs = '{{ fileDirname }}/../../../work_dirs'

dynamic_backbone = dict(
    type='KWResNet',
    depth=50,
    zero_init_residual=False,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    init_cfg=dict(
        type='Pretrained',
        prefix='backbone.',
        checkpoint=f'{work_dirs}/kw-resnet50-1x_8xb512-300e_in1k/epoch_300.pth',
    ),
)
custom_hooks = [dict(type='KWDisableAttentionInitHook')]

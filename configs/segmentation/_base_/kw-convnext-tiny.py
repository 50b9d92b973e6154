# From the last checkpoint of the ImageNet config, with the temperature held at 0.
work_dirs = '{{ fileDirname }}/../../../work_dirs'

dynamic_backbone = dict(
    type='KWConvNeXt',
    arch='tiny',
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
    drop_path_rate=0.4,
    init_cfg=dict(
        type='Pretrained',
        prefix='backbone.',
        checkpoint=f'{work_dirs}/kw-convnext-tiny-1x_8xb512-300e_in1k/epoch_300.pth',
    ),
)
custom_hooks = [dict(type='KWDisableAttentionInitHook')]

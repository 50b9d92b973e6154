# UPerNet, from the last checkpoint of the ImageNet config, temperature at 0. The recipe is that of
# MMSegmentation for ConvNeXt: AdamW, learning rates that fall towards the stem, mixed precision.
_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
work_dirs = '{{ fileDirname }}/../../work_dirs'

model = dict(
    backbone=dict(
        _delete_=True,
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
    ),
)
custom_hooks = [dict(type='KWDisableAttentionInitHook')]

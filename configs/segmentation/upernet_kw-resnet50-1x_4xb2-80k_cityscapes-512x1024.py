# UPerNet, from the last checkpoint of the ImageNet config, temperature at 0.
_base_ = 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
work_dirs = '{{ fileDirname }}/../../work_dirs'

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
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
    ),
)
custom_hooks = [dict(type='KWDisableAttentionInitHook')]

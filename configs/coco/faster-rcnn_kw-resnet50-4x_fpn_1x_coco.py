_base_ = './faster-rcnn_kw-resnet50-1x_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        budget=4,
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/kw-resnet50-4x_8xb512-300e_in1k/epoch_300.pth'
        ),
    )
)

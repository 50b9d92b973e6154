_base_ = './mask-rcnn_kw-convnext-tiny-1x_fpn_ms-1x_coco.py'

# The released 1x model is not the paper's: stage 3 shares one pair of warehouses instead of three,
# and the attentions are twice as wide.
model = dict(
    backbone=dict(
        blocks_per_warehouse=None,
        attention=dict(reduction=1 / 16),
        init_cfg=dict(
            checkpoint=f'{_base_.work_dirs}/kw-convnext-tiny-1x-released_8xb512-300e_in1k/epoch_300.pth'
        ),
    )
)

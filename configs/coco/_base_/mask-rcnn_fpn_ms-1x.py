# The paper's A.1.2: Mask R-CNN on COCO 2017, batch 16 (8 GPUs x 2), 12 epochs, a tenth of the
# learning rate after epochs 8 and 11, multi-scale. AdamW and its values are the released models'.
#
# Each config starts from the last checkpoint of its ImageNet config, in work_dirs beside configs,
# where tools/train.py leaves it when it is started there. For another start, such as a released
# model converted by tools/model_converters/released_to_mmkw.py, change the path, there or
# with
#   --cfg-options model.backbone.init_cfg.checkpoint=PATH
# A run with load_from needs none.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
work_dirs = '{{ fileDirname }}/../../../work_dirs'

# Either resize, or resize, crop a window with sides of 384 to 600 pixels, and resize again.
multi_scale = dict(
    type='RandomChoiceResize',
    scales=[(short_side, 1333) for short_side in range(480, 801, 32)],
    keep_ratio=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [multi_scale],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                multi_scale,
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # Norms in attentions do not decay, all others do.
    paramwise_cfg=dict(custom_keys={'attention.norm': dict(decay_mult=0.0)}),
)

custom_hooks = [dict(type='KWDisableAttentionInitHook')]
# A checkpoint takes up to 1.5 GB.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3), finite_loss=dict(type='FiniteLossHook'))

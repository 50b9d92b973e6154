# The second half of `make demo`: fine-tuning on scenes of scanned digits with the temperature held
# at 0. From the COCO config; data, size and schedule are what two cores do in minutes. The data
# comes from tools/dataset_converters/digits.py.
_base_ = '../coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py'

# Digits of 20 to 60 pixels in scenes of 128: everything is a quarter of COCO's, anchors and RoI
# levels included. All stages train and norms use the batch, as the scenes look unlike the
# pretraining images.
channels = 128
strides = [4, 8, 16, 32]
roi_extractor = dict(out_channels=channels, finest_scale=28)
model = dict(
    backbone=dict(
        depth=18,
        drop_path_rate=0.0,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=dict(checkpoint='work_dirs/kw-resnet18-1x_digits/epoch_1.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(in_channels=channels, num_convs=2, conv_out_channels=64, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=1 / 3)),
    ),
    test_cfg=dict(rpn=dict(max_per_img=100)),
)

# No flips: a mirrored digit is none.
classes = tuple('0123456789')
data_root = 'data/digits/coco/'
resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    resize,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    resize,
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
        metainfo=dict(classes=classes),
    ),
    **loading,
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
        metainfo=dict(classes=classes),
    ),
    **loading,
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=1)
optim_wrapper = dict(optimizer=dict(lr=7e-4), clip_grad=dict(max_norm=5))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=4)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=-1, save_last=True, save_optimizer=False, save_param_scheduler=False),
)
log_processor = dict(window_size=10)
randomness = dict(seed=0)

# Boxes and masks. Your data and settings stand in dataset.py.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/derived.py']
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(
    backbone=dict(type='KWResNet', budget=1, **_base_.backbone),
    roi_head=dict(
        bbox_head=dict(num_classes=len(_base_.classes)),
        mask_head=dict(num_classes=len(_base_.classes)),
    ),
)

resize = dict(type='Resize', scale=_base_.image_size, keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    resize,
    # Leave it out where a mirrored object is another one, as for letters.
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=_base_.batch_size, dataset=dict(pipeline=train_pipeline, **_base_.train_set)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **_base_.val_set))
test_dataloader = val_dataloader
val_evaluator = _base_.val_file
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=_base_.epochs)
optim_wrapper = _base_.optimization
param_scheduler = _base_.schedule
custom_hooks = _base_.hooks.custom
default_hooks = _base_.hooks.default
load_from = _base_.start_file

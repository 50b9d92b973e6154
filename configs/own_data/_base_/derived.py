# What follows from ../dataset.py, for the detectors beside it.
_base_ = '../dataset.py'

has_weights = _base_.start is not None
# A name is that of a backbone, whose weights have other names than a detector's.
names = ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://')
is_backbone = has_weights and _base_.start.startswith(names)
start_file = _base_.start if has_weights and not is_backbone else None
backbone = dict(
    init_cfg=dict(type='Pretrained', checkpoint=_base_.start) if is_backbone else None,
    # Random weights have to learn, and norms to see batches.
    frozen_stages=1 if has_weights else -1,
    norm_eval=has_weights,
)
hooks = dict(
    custom=[
        dict(type='KWTemperatureHook', epochs=_base_.epochs / 4),
        dict(type='ClassNamesHook'),
        dict(type='NumClassCheckHook'),
    ],
    default=dict(
        checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'),
        logger=dict(interval=10),
        finite_loss=dict(type='FiniteLossHook'),
    ),
)

# The COCO recipe's learning rate is for 16 images. That of AdamW goes with the square root.
optimization = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=1e-4 * (_base_.batch_size / 16) ** 0.5, weight_decay=0.05
    ),
    paramwise_cfg=dict(custom_keys={'attention.norm': dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=5),
)
# Warm-up in the first epoch, however long it is.
schedule = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=_base_.epochs, convert_to_iter_based=True),
]

train_set = dict(
    data_root=_base_.folder,
    ann_file=_base_.train_annotations,
    data_prefix=dict(img=_base_.train_images),
    metainfo=dict(classes=_base_.classes),
)
val_set = dict(
    data_root=_base_.folder,
    ann_file=_base_.val_annotations,
    data_prefix=dict(img=_base_.val_images),
    metainfo=dict(classes=_base_.classes),
)
val_file = dict(ann_file=_base_.folder.rstrip('/') + '/' + _base_.val_annotations)

# Faster R-CNN as in ODConv's own experiments: MMDetection's 1x schedule (SGD 0.02 at batch 16,
# 12 epochs, a tenth of it after epochs 8 and 11), single scale.
#
# Each config starts from the last checkpoint of its ImageNet config; see mask-rcnn_fpn_ms-1x.py.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
work_dirs = '{{ fileDirname }}/../../../work_dirs'

custom_hooks = [dict(type='KWDisableAttentionInitHook')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))

# The recipe is that of MMSegmentation for ConvNeXt: AdamW, learning rates that fall towards the
# stem, mixed precision.
_base_ = [
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
    './_base_/kw-convnext-tiny.py',
]
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(pretrained=None, backbone=dict(_delete_=True, **_base_.dynamic_backbone))

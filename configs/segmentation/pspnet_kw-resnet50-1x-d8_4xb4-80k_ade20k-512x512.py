_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py', './_base_/kw-resnet50-d8.py']
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(pretrained=None, backbone=dict(_delete_=True, **_base_.dynamic_backbone))

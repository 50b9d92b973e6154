_base_ = ['mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', './_base_/kw-resnet50.py']
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(pretrained=None, backbone=dict(_delete_=True, **_base_.dynamic_backbone))

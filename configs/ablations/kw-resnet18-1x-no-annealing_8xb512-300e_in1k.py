_base_ = '../imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'

# Tables 9 and 13: attentions are learned from the first iteration, the temperature stays at 0.
custom_hooks = [dict(type='KWDisableAttentionInitHook')]

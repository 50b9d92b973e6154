_base_ = './_base_/dyconv-mobilenet-v2_8xb32-150e.py'

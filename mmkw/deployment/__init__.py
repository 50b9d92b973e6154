"""Taking trained models out of Python, and out of mmkw."""

from .calibration import calibration_loader
from .models import load_model
from .onnx_export import Comparison, compare_onnx, exported_part, to_onnx
from .plain_configs import plain_config
from .static import load_static, match_norms, mean_kernels

__all__ = [
    'Comparison',
    'calibration_loader',
    'compare_onnx',
    'exported_part',
    'load_model',
    'load_static',
    'match_norms',
    'mean_kernels',
    'plain_config',
    'to_onnx',
]

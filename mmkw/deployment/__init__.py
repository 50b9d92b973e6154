"""Taking trained models out of Python."""

from .models import load_model
from .onnx_export import Comparison, compare_onnx, exported_part, to_onnx

__all__ = ['Comparison', 'compare_onnx', 'exported_part', 'load_model', 'to_onnx']

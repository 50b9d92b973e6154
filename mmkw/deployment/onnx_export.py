"""ONNX files of networks with dynamic layers, compared with PyTorch in ONNX Runtime.

PyTorch convolves each sample with its own kernel by a grouped convolution with a group for each
sample. ONNX keeps the number of groups as a constant of the file, which fixes the batch size. For
any batch size, networks are exported by the route of :mod:`mmkw.ops.unfolded`, a product of
matrices; for one batch size, each layer takes the form that is faster.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import forced_route
from ..ops.mixing import Mixture

# Of the largest output; below it a comparison says nothing.
_SMALLEST_OUTPUT = 1e-12

_NEEDED = ('onnx', 'onnxscript', 'onnxruntime')


@dataclass(frozen=True)
class Comparison:
    """One input, computed by ONNX Runtime and by PyTorch.

    Attributes:
        shape: of the input.
        error: the largest difference of an output, relative to the largest value of that output
            in PyTorch; the worst output's.
        onnx_seconds: the shortest of the runs in ONNX Runtime.
        torch_seconds: the same for PyTorch.
    """

    shape: tuple[int, ...]
    error: float
    onnx_seconds: float
    torch_seconds: float


class _Part(nn.Module):
    """What of a model maps images to tensors; its outputs are flat."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.compute(images)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def compute(self, images: Tensor) -> Any:
        return self.model(images)


class _Features(_Part):
    def compute(self, images: Tensor) -> Any:
        return self.model.extract_feat(images)


def exported_part(model: nn.Module) -> nn.Module:
    """The part of a model that an exported file holds, in evaluation mode.

    It takes images as the model's data preprocessor gives them: normalised, ``(N, 3, H, W)``. It
    returns a tuple:

    - of a classifier of MMPretrain, the scores before the softmax;
    - of a detector of MMDetection, the feature maps of backbone and neck. Proposals, RoI pooling
      and non-maximum suppression stay in PyTorch;
    - of any other module, what it returns: of a backbone its feature maps.
    """
    is_classifier = getattr(model, 'with_head', False)
    has_features = hasattr(model, 'extract_feat') and not is_classifier
    return (_Features(model) if has_features else _Part(model)).eval()


@torch.no_grad()
def to_onnx(
    part: nn.Module, images: Tensor, dynamic_size: bool = True, dynamic_batch: bool = True
) -> bytes:
    """Export to ONNX, and check the result with ONNX's checker.

    Args:
        part: from :func:`exported_part`.
        images: an example, shape ``(N, 3, H, W)``; with a dynamic batch size, ``N`` is at least 2.
        dynamic_size: whether height and width may differ from the example's. Defaults to ``True``.
            Networks with position embeddings need ``False``.
        dynamic_batch: whether the batch size may differ, too. Defaults to ``True``. With ``False``,
            batch size, height and width all stay those of the example, which makes small networks
            faster.

    Returns:
        The content of the file. Its input is ``images``, its outputs ``output0``, ``output1`` ...

    Raises:
        ImportError: if a package is missing that the export needs.
        ValueError: if the example of a dynamic batch size has a single image, or the network cannot
            be exported for other sizes.
    """
    _check_packages()
    import onnx

    if dynamic_batch and images.shape[0] < 2:
        raise ValueError(
            f'an export with a dynamic batch size needs an example of at least 2 images, but got '
            f'{images.shape[0]}'
        )
    dynamic = torch.export.Dim.DYNAMIC
    axes = None
    if dynamic_batch:
        axes = ({0: dynamic, 2: dynamic, 3: dynamic} if dynamic_size else {0: dynamic},)
    with forced_route('unfolded' if dynamic_batch else _faster_route), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Of packages about themselves; failures raise.
        count = len(part(images))
        try:
            program = torch.export.export(part, (images,), dynamic_shapes=axes, strict=False)
        except torch._dynamo.exc.UserError as error:
            raise ValueError(
                f'the network cannot be exported for any batch size'
                f'{", height and width" if dynamic_size else ""}; networks with position '
                f'embeddings need a fixed size (--fixed-size, or dynamic_size=False). PyTorch '
                f'says: {error}'
            ) from error
        exported = torch.onnx.export(
            program,
            input_names=['images'],
            output_names=[f'output{index}' for index in range(count)],
            dynamo=True,
            verbose=False,
        )
    content = exported.model_proto.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return content


@torch.no_grad()
def compare_onnx(
    content: bytes, part: nn.Module, shapes: Sequence[Sequence[int]], repeats: int = 3
) -> list[Comparison]:
    """Run an exported network in ONNX Runtime, beside PyTorch, on random images.

    Args:
        content: from :func:`to_onnx`.
        part: the same network in PyTorch.
        shapes: of the inputs, ``(N, 3, H, W)``.
        repeats: timed runs for each shape, after one to warm up. Defaults to 3.

    Returns:
        One comparison for each shape. Both use PyTorch's number of threads, on the CPU.

    Raises:
        ValueError: if the exported network does not run on a shape, or gives outputs of others;
            if PyTorch's outputs vanish, as equal zeros would show nothing.
    """
    _check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    results = []
    for shape in shapes:
        images = torch.randn(*shape, generator=generator)
        feed = {session.get_inputs()[0].name: images.numpy()}
        expected, torch_seconds = _timed(lambda x=images: part(x), repeats)
        try:
            actual, onnx_seconds = _timed(lambda x=feed: session.run(None, x), repeats)
        except Exception as failure:  # The runtime's own errors have no public base class.
            raise ValueError(
                f'the exported network does not run on images of shape {tuple(shape)}; where maps '
                f'shrink to a single pixel in the example, it fixes the size, so export with a '
                f'larger one; networks with position embeddings need a fixed size (--fixed-size, '
                f'or dynamic_size=False). ONNX Runtime says: {failure}'
            ) from failure
        worst = max(_error(torch.from_numpy(a), e) for a, e in zip(actual, expected))
        results.append(Comparison(tuple(shape), worst, onnx_seconds, torch_seconds))
    return results


def _faster_route(x: Tensor, mixture: Mixture, groups: int) -> str:
    """The faster form of a layer in ONNX Runtime at a fixed batch size, measured at batch 1.

    A convolution takes the kernel as a computed weight, which has to be transposed first. Where the
    kernel is large beside the map, that is slower than the product of matrices.
    """
    is_small = 4 * math.prod(mixture.layout.kernel_shape) <= math.prod(x.shape[1:])
    return 'reference' if groups > 1 or is_small else 'unfolded'


def _timed(function, repeats: int) -> tuple[Any, float]:
    """The result, and the seconds of the fastest run."""
    result, seconds = function(), []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return result, min(seconds, default=0.0)


def _error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        raise ValueError(
            f'ONNX Runtime gives an output of shape {tuple(actual.shape)}, PyTorch one of '
            f'{tuple(expected.shape)}'
        )
    largest = expected.abs().max()
    if largest < _SMALLEST_OUTPUT:
        raise ValueError(
            f'no value of an output of shape {tuple(expected.shape)} exceeds {_SMALLEST_OUTPUT:g} '
            f'in PyTorch, so that comparing it with ONNX Runtime shows nothing; are the weights '
            f'trained?'
        )
    return float((actual - expected).abs().max() / largest)


def _check_packages() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'the export to ONNX needs {", ".join(missing)}: pip install "mmkw[deploy]"'
        )
    if not hasattr(torch.export, 'Dim') or not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise ImportError(
            f'the export to ONNX needs PyTorch 2.6 or newer, but this is {torch.__version__}'
        )

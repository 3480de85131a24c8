"""The networks for small images once more, as plain functions of their tensors, written from papers and published code.

Each formulation takes convolutions, norms and linear layers from a `Tensors` in the order in which the network holds
them; strides, borders, groups and what is added to what are its own.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Tensors:
    """The layers of a network, one after another; of each only its tensors are read."""

    def __init__(self, network):
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        self.left = [module for module in network.modules() if isinstance(module, kinds)]

    def take(self, kind):
        layer = self.left.pop(0)
        assert type(layer) is kind
        return layer

    def conv(self, x, stride=1, groups=1, border=None):
        """Borders of half a kernel keep the side, unless `border` says otherwise."""
        weight, bias = self.weights(nn.Conv2d)
        high, wide = weight.shape[2:]
        return F.conv2d(x, weight, bias, stride, (high // 2, wide // 2) if border is None else border, 1, groups)

    def weights(self, kind):
        layer = self.take(kind)
        return layer.weight, layer.bias

    def norm(self, x, eps=1e-5):
        bn = self.take(nn.BatchNorm2d)
        column = (1, -1, 1, 1)
        scale = bn.weight / (bn.running_var + eps).sqrt()
        return (x - bn.running_mean.view(column)) * scale.view(column) + bn.bias.view(column)

    def active(self, x, eps=1e-5):
        return self.norm(x, eps).relu()

    def classify(self, x):
        """The mean over positions, and the linear layer."""
        return F.linear(x.mean((2, 3)), *self.weights(nn.Linear))


def strides(blocks):
    """The stride of every block: 2 where a stage but the first begins."""
    return [2 if stage and not block else 1 for stage, count in enumerate(blocks) for block in range(count)]


def halved(x):
    return F.avg_pool2d(x, 2, ceil_mode=True)


def more_channels(x, count, front=0):
    return F.pad(x, (0, 0, 0, 0, front, count - x.shape[1] - front))


def preact(t, x, blocks=(2, 2, 2, 2)):
    x = t.active(t.conv(x))
    for stride in strides(blocks):
        a = t.active(x)
        inner = t.conv(t.active(t.conv(a, stride)))
        x = inner + (a if inner.shape == a.shape else t.conv(a, stride))
    return t.classify(x)


def textbook_preact(t, x, blocks=(2, 2, 2, 2)):
    x = t.conv(x)
    for stride in strides(blocks):
        a = t.active(x)
        inner = t.conv(t.active(t.conv(a, stride)))
        x = inner + (x if inner.shape == x.shape else t.conv(a, stride))
    return t.classify(t.active(x))


def resnet(t, x, blocks, shortcut, outputs, convolutions=2):
    """He et al. 2016a; `outputs` of the first stage; three convolutions are a bottleneck.

    Shortcuts are projections; or every second position and zeros, half of them in front; or means of 2x2 and zeros
    behind.
    """
    x = t.active(t.conv(x))
    for stride in strides(blocks):
        outputs *= stride
        kept = x
        if stride == 2 or x.shape[1] != outputs:
            match shortcut:
                case "projection":
                    kept = t.norm(t.conv(x, stride))
                case "zeros":
                    kept = more_channels(x[:, :, ::2, ::2], outputs, (outputs - x.shape[1]) // 2)
                case "means":
                    kept = more_channels(halved(x), outputs)
        inner = t.active(t.conv(t.active(t.conv(x)), stride)) if convolutions == 3 else t.active(t.conv(x, stride))
        x = (t.norm(t.conv(inner)) + kept).relu()
    return t.classify(x)


def densenet(t, x, blocks):
    x = t.conv(x)
    for stage, count in enumerate(blocks):
        for _ in range(count):
            x = torch.cat([t.conv(t.active(t.conv(t.active(x)))), x], 1)
        x = t.active(x)
        if stage < len(blocks) - 1:
            x = F.avg_pool2d(t.conv(x), 2)
    return t.classify(x)


def plain_densenet(t, x):
    x = F.max_pool2d(t.active(t.conv(x, 2), 1e-3), 3, 2, 1)
    for stage in range(4):
        for _ in range(4):
            x = torch.cat([x, t.conv(t.active(x, 1e-3))], 1)
        x = t.active(x, 1e-5 if stage == 3 else 1e-3)
        if stage < 3:
            x = halved(t.conv(x))
    return t.classify(x)


def resnext(t, x, groups):
    x = t.active(t.conv(x))
    for number, stride in enumerate(strides((3, 3, 3))):
        inner = t.active(t.conv(t.active(t.conv(x)), stride, groups))
        inner = t.norm(t.conv(inner))
        x = (inner + (x if number % 3 else t.norm(t.conv(x, stride)))).relu()
    return t.classify(x)


def pyramid(t, x, blocks, keep=lambda number: 1.0):
    """`keep`: by what ShakeDrop multiplies block number 1, 2, ... in evaluation."""
    x = t.norm(t.conv(x))
    for number, stride in enumerate(strides(blocks), 1):
        inner = t.active(t.conv(t.norm(x)))
        inner = t.norm(t.conv(t.active(t.conv(inner, stride))))
        x = inner * keep(number) + more_channels(halved(x) if stride == 2 else x, inner.shape[1])
    return t.classify(t.active(x))


def wide(t, x, blocks):
    """Zagoruyko and Komodakis 2016: the same blocks, wider."""
    return textbook_preact(t, x, blocks)


def biased_wide(t, x, blocks=(5, 5, 5)):
    x = t.conv(x)
    for stride in strides(blocks):
        inner = t.conv(t.active(t.conv(t.active(x))), stride)
        x = inner + (x if inner.shape == x.shape else t.conv(x, stride))
    return t.classify(t.active(x))


def vgg(t, x, convolutions, norm):
    side = x.shape[2]
    for stage, count in enumerate(convolutions):
        if stage and (stage < 4 or side == 64):
            x = F.max_pool2d(x, 2)
        for _ in range(count):
            x = t.active(t.conv(x)) if norm else t.conv(x).relu()
    return t.classify(x)


def lenet(t, x):
    for _ in range(2):
        x = F.max_pool2d(t.conv(x, border=0).relu(), 2)
    x = t.conv(x, border=0).relu().mean((2, 3))
    return F.linear(F.linear(x, *t.weights(nn.Linear)).relu(), *t.weights(nn.Linear))


def shallow(t, x):
    for _ in range(3):
        x = F.max_pool2d(t.norm(t.conv(x)), 2).relu()
    return t.classify(t.active(t.conv(x, border=0)))


def mobilenet(t, x):
    x = t.active(t.conv(x, 2))
    for times, count, first in ((1, 1, 1), (6, 2, 1), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1)):
        for number in range(count):
            stride, inner = (1 if number else first), x.shape[1] * times
            out = t.norm(t.conv(t.active(t.conv(t.active(t.conv(x)), stride, inner))))
            x = x + out if number else out
    return t.classify(t.active(t.conv(x)))


def shufflenet(t, x):
    def branch(y, stride):
        y = t.active(t.conv(y))
        return t.active(t.conv(t.norm(t.conv(y, stride, y.shape[1]))))

    x = t.active(t.conv(x))
    for count in (3, 7, 3):
        left = t.active(t.conv(t.norm(t.conv(x, 2, x.shape[1]))))
        pair = [left, branch(x, 2)]
        for _ in range(count):
            left, right = torch.stack(pair, 2).flatten(1, 2).tensor_split(2, 1)
            pair = [left, branch(right, 1)]
        x = torch.stack(pair, 2).flatten(1, 2)
    return t.classify(t.active(t.conv(x)))


def inception(t, x):
    """mmaher22/Instance-based-smoothing; for other sizes than 32 px its pool of 7x7 is that of all positions."""

    def convs(y, count):
        for _ in range(count):
            y = t.active(t.conv(y))
        return y

    def mean(y):
        return t.active(t.conv(F.avg_pool2d(y, 3, 1, 1)))

    def peak(y):
        return F.max_pool2d(y, 3, 1, 1)

    def down(y, before, border):
        return t.active(t.conv(convs(y, before), 2, border=border))

    x = convs(t.active(t.conv(x, border=0)), 2)
    x = torch.cat([convs(x, 1), peak(x)], 1)
    x = torch.cat([convs(x, 4), convs(x, 2)], 1)
    x = torch.cat([peak(x), convs(x, 1)], 1)
    for _ in range(4):
        x = torch.cat([convs(x, 3), convs(x, 2), convs(x, 1), mean(x)], 1)
    x = torch.cat([down(x, 2, 0), down(x, 0, 0), F.max_pool2d(x, 3, 2)], 1)
    for _ in range(7):
        x = torch.cat([convs(x, 1), convs(x, 3), convs(x, 5), mean(x)], 1)
    x = torch.cat([down(x, 1, 1), down(x, 3, 1), F.max_pool2d(x, 3, 2, 1)], 1)
    for _ in range(3):
        parts = [convs(x, 1)]
        for before in (1, 3):
            y = convs(x, before)
            parts += [convs(y, 1), convs(y, 1)]
        x = torch.cat([*parts, mean(x)], 1)
    return t.classify(x)

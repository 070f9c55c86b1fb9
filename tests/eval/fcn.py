"""Makes tests/fixtures/segmentation/fcn_r50_narrow.safetensors with PyTorch in float64: FCN R50-D8 of 4 base channels.

    python3 tests/eval/fcn.py tests/fixtures/segmentation/fcn_r50_narrow.safetensors

Weights under mmsegmentation's names, a batch with labels (255: none), logits in evaluation mode, and for both rules of corners the
losses of both heads in training mode; for the first rule all gradients. Dropout is 0. The backbone is written out here and is checked
against torchvision's, with its strides replaced by dilations, at full width before it is used.
"""
import json
import struct
import sys

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """ResNet-50 of total stride 8: the first block of a dilated stage has half of its dilation."""

    def __init__(self, base):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base)
        inputs = base
        for s, (count, stride, dilation) in enumerate([(3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4)]):
            blocks = []
            for i in range(count):
                blocks.append(Bottleneck(inputs, base << s, stride if i == 0 else 1, dilation // 2 if i == 0 and dilation > 1 else dilation))
                inputs = 4 * (base << s)
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        third = self.layer3(self.layer2(self.layer1(x)))
        return third, self.layer4(third)


class ConvModule(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Head(nn.Module):
    def __init__(self, inputs, channels, convolutions, concat, classes):
        super().__init__()
        self.convs = nn.Sequential(*[ConvModule(inputs if i == 0 else channels, channels) for i in range(convolutions)])
        if concat:
            self.conv_cat = ConvModule(inputs + channels, channels)
        self.concat = concat
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        y = self.convs(x)
        if self.concat:
            y = self.conv_cat(torch.cat([x, y], 1))
        return self.conv_seg(y)


class Fcn(nn.Module):
    def __init__(self, base, classes):
        super().__init__()
        self.backbone = Backbone(base)
        self.decode_head = Head(32 * base, 8 * base, 2, True, classes)
        self.auxiliary_head = Head(16 * base, 4 * base, 1, False, classes)


def check_backbone():
    own, other = Backbone(64).double().eval(), torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).double().eval()
    print(own.load_state_dict(other.state_dict(), strict=False))
    x = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    expected = torchvision.models._utils.IntermediateLayerGetter(other, {"layer3": "third", "layer4": "last"})(x)
    for a, b in zip(own(x), expected.values()):
        assert torch.equal(a, b), "the backbone differs from torchvision's"


def resize(logits, x, align):
    return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=align)


def losses(model, x, labels, align):
    third, last = model.backbone(x)
    main = F.cross_entropy(resize(model.decode_head(last), x, align), labels, ignore_index=255, reduction="none").mean()
    auxiliary = 0.4 * F.cross_entropy(resize(model.auxiliary_head(third), x, align), labels, ignore_index=255, reduction="none").mean()
    return main, auxiliary


def write(path, tensors, metadata):
    header, parts, at = {"__metadata__": metadata}, [], 0
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}[tensor.dtype]
        data = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def main():
    torch.manual_seed(0)
    check_backbone()
    classes = 5
    model = Fcn(4, classes).double()
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if tensor.dtype == torch.float64:
                if name.endswith("running_var") or (".bn" in name or "downsample.1" in name) and name.endswith("weight"):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.dim() == 1:
                    tensor.normal_(0, 0.2)
                # The file holds f32: the values are made such.
                tensor.copy_(tensor.float().double())
    x = torch.randn(2, 3, 41, 33).double()
    labels = torch.randint(0, classes, (2, 41, 33))
    labels[0, :9] = 255
    out = {f"init.{name}": tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    out["x"], out["labels"] = x.float(), labels
    model.eval()
    for align in (False, True):
        with torch.no_grad():
            out[f"logits.{int(align)}"] = resize(model.decode_head(model.backbone(x)[1]), x, align)
    model.train()
    found = {}
    for align in (True, False):
        model.zero_grad()
        pair = losses(model, x, labels, align)
        found[str(int(align))] = [value.item() for value in pair]
        sum(pair).backward()
    for name, parameter in model.named_parameters():
        out[f"grad.{name}"] = parameter.grad.float()
    write(sys.argv[1], out, {"losses": json.dumps(found), "classes": str(classes), "base_channels": "4", "torch": torch.__version__})


main()

"""A training step of FCN on a dilated ResNet (R50-D8) built of torchvision's own parts, as the peer of bench/steps/segmentation.ts.

    segmentation.py --depth 50 --image 512 --batch 2 [--classes 21] [--steps 2] [--threads 2] [--channels-last] [--device cuda] [--amp]
        [--compile]

Heads as mmsegmentation has them: two convolutions of a quarter of the channels, which the input joins in front of a third; one of an
eighth on the map before. Prints a JSON line.
"""
import argparse, json

import torch
import torchvision
from torch import nn
from torch.nn import functional

from steptimes import timed


def unit(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Head(nn.Module):
    def __init__(self, inputs, channels, convolutions, joins, classes):
        super().__init__()
        self.convs = nn.Sequential(*[unit(channels if i else inputs, channels) for i in range(convolutions)])
        self.join = unit(inputs + channels, channels) if joins else None
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, classes, 1))

    def forward(self, x):
        y = self.convs(x)
        return self.classify(y if self.join is None else self.join(torch.cat([x, y], 1)))


def dilate(net):
    """The last two stages keep their size: basic blocks of torchvision cannot be asked for that."""
    for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for i, block in enumerate(stage):
            for module in block.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
                    if module.kernel_size == (3, 3):
                        module.dilation = module.padding = (dilation // 2 if i == 0 else dilation,) * 2


class Fcn(nn.Module):
    def __init__(self, depth, classes):
        super().__init__()
        net = getattr(torchvision.models, f"resnet{depth}")()
        dilate(net)
        channels = net.fc.in_features
        self.early = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
        self.last = net.layer4
        self.head = Head(channels, channels // 4, 2, True, classes)
        self.auxiliary = Head(channels // 2, channels // 8, 1, False, classes)

    def forward(self, x, labels):
        third = self.early(x)
        loss = lambda logits: functional.cross_entropy(
            functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False), labels)
        return loss(self.head(self.last(third))) + 0.4 * loss(self.auxiliary(third))


def main():
    parser = argparse.ArgumentParser()
    for name, value in {"depth": 50, "image": 512, "batch": 2, "classes": 21, "steps": 2, "threads": 2}.items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="default")
    for name in ("channels-last", "amp", "compile"):
        parser.add_argument("--" + name, action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    device = torch.device(args.device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = Fcn(args.depth, args.classes).to(device, memory_format=layout).train()
    x = torch.randn(args.batch, 3, args.image, args.image, device=device).contiguous(memory_format=layout)
    labels = torch.randint(args.classes, (args.batch, args.image, args.image), device=device)
    sgd = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4)
    losses = torch.compile(model, mode=args.mode) if args.compile else model

    def step():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.amp):
            loss = losses(x, labels)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        return loss

    print(json.dumps({"batch": args.batch, **timed(step, args.steps, device.type == "cuda")}))


main()

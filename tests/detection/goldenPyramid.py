"""A golden file of one step of a small Mask R-CNN on a feature pyramid: goldenPyramid.py OUT SEED."""
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from goldenStep import anchors_of, golden, proposals_head, stage

base, channels, width, classes, canonical = 4, 12, 24, 3, 28.0
# Of each map; regions are taken from all but the last.
strides, sides = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)


def unit(inputs, kernel):
    return nn.Sequential(nn.Conv2d(inputs, channels, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(channels))


class Detector(nn.Module):
    maps = ['p2', 'p3', 'p4', 'p5', 'p6']

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1, self.backbone.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base)
        for i, count in enumerate((1, 2, 1, 1)):
            inputs = base if i == 0 else 2 ** (i + 1) * base
            setattr(self.backbone, f'layer{i + 1}', stage(inputs, 2 ** i * base, count, 1 if i == 0 else 2))
        self.lateral = nn.ModuleList(unit(4 * 2 ** i * base, 1) for i in range(4))
        self.output = nn.ModuleList(unit(channels, 3) for _ in range(4))
        self.rpn = proposals_head(channels, 3)
        self.boxconv = nn.ModuleList(unit(channels, 3) for _ in range(2))
        self.fc, self.cls, self.reg = nn.Linear(49 * channels, width), nn.Linear(width, classes + 1), nn.Linear(width, 4 * classes)
        self.maskconv = nn.ModuleList(unit(channels, 3) for _ in range(2))
        self.deconv, self.mask = nn.ConvTranspose2d(channels, channels, 2, 2), nn.Conv2d(channels, classes, 1)

    def features(self, x):
        b, maps = self.backbone, []
        x = F.max_pool2d(F.relu(b.bn1(b.conv1(x))), 3, 2, 1)
        for i in range(4):
            x = getattr(b, f'layer{i + 1}')(x)
            maps.append(self.lateral[i](x))
        for i in (2, 1, 0):
            maps[i] = maps[i] + maps[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        maps = [output(each) for output, each in zip(self.output, maps)]
        return [*maps, maps[-1][:, :, ::2, ::2]]

    def anchors(self, features):
        return [anchors_of(*each.shape[2:], stride, (side,)) for each, stride, side in zip(features, strides, sides)]

    def pool(self, features, boxes, bins):
        area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
        level = torch.floor(2 + torch.log2(area.sqrt() / canonical + 1e-8)).clamp(0, 3)
        pooled = torch.zeros(len(boxes), channels, bins, bins)
        for i in range(4):
            pooled[level == i] = roi_align(features[i], boxes[level == i], bins, 1 / strides[i], 0, True)
        return pooled

    def classify(self, features, boxes):
        x = self.pool(features, boxes, 7)
        for each in self.boxconv:
            x = F.relu(each(x))
        vector = F.relu(self.fc(x.flatten(1)))
        return self.cls(vector), self.reg(vector)

    def masks(self, features, boxes):
        x = self.pool(features, boxes, 14)
        for each in self.maskconv:
            x = F.relu(each(x))
        return self.mask(F.relu(self.deconv(x)))


torch.manual_seed(int(sys.argv[2]))
golden(Detector(), sys.argv[1], size=(96, 128), wanted=64, regions=16, proposals=60, most=8, per_map=1000,
       more={'in.canonical_size': torch.tensor(canonical)})

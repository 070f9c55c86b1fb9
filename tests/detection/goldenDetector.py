"""A golden file of one step of a small Faster R-CNN of the form C4: goldenDetector.py OUT SEED."""
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from goldenStep import anchors_of, golden, proposals_head, stage

base, classes, stride, sizes = 2, 3, 16, (16, 32, 64)


class Detector(nn.Module):
    maps = ['res4']

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1, self.backbone.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base)
        self.backbone.layer1 = stage(base, base, 1, 1)
        self.backbone.layer2 = stage(4 * base, 2 * base, 2, 2)
        self.backbone.layer3 = stage(8 * base, 4 * base, 1, 2)
        channels, deep = 16 * base, 32 * base
        self.res5, self.norm = stage(channels, 8 * base, 2, 2), nn.BatchNorm2d(deep)
        self.rpn = proposals_head(channels, 3 * len(sizes))
        self.cls, self.reg = nn.Linear(deep, classes + 1), nn.Linear(deep, 4 * classes)

    def features(self, x):
        b = self.backbone
        return [b.layer3(b.layer2(b.layer1(F.max_pool2d(F.relu(b.bn1(b.conv1(x))), 3, 2, 1))))]

    def anchors(self, features):
        return [anchors_of(*features[0].shape[2:], stride, sizes)]

    def classify(self, features, boxes):
        pooled = roi_align(features[0], boxes, 14, 1 / stride, 0, True)
        vector = self.norm(self.res5(pooled)).mean((2, 3))
        return self.cls(vector), self.reg(vector)


torch.manual_seed(int(sys.argv[2]))
golden(Detector(), sys.argv[1], size=(64, 96), wanted=512, regions=16, proposals=50, most=100)

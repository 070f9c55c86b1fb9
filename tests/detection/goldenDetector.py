"""One step of a small Faster R-CNN of the form C4 by PyTorch in float64, as a golden file: goldenDetector.py OUT SEED.

Everything that the file holds is drawn from the seed: images, objects, weights, proposals and samples. Names and layouts are those of
tests/support/detectionGolden.ts; formulas are detectron2's, the losses of mmdetection beside them.
"""
import json
import math
import struct
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, nms, roi_align

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
out, seed = sys.argv[1], int(sys.argv[2])
torch.manual_seed(seed)
height, width, images, base, classes, stride = 64, 96, 2, 2, 3, 16
sizes, ratios = (16, 32, 64), (0.5, 1, 2)
wanted, regions, bound = 512, 16, math.log(1000 / 16)


class Block(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        if stride > 1 or inputs != 4 * channels:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, 'downsample') else x))


def stage(inputs, channels, count, stride):
    return nn.Sequential(*(Block(inputs if i == 0 else 4 * channels, channels, stride if i == 0 else 1) for i in range(count)))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1, self.backbone.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base)
        self.backbone.layer1 = stage(base, base, 1, 1)
        self.backbone.layer2 = stage(4 * base, 2 * base, 2, 2)
        self.backbone.layer3 = stage(8 * base, 4 * base, 1, 2)
        channels, deep, anchors = 16 * base, 32 * base, len(sizes) * len(ratios)
        self.res5, self.norm = stage(channels, 8 * base, 2, 2), nn.BatchNorm2d(deep)
        self.rpn = nn.ModuleDict({'conv': nn.Conv2d(channels, channels, 3, 1, 1), 'cls': nn.Conv2d(channels, anchors, 1),
                                  'reg': nn.Conv2d(channels, 4 * anchors, 1)})
        self.cls, self.reg = nn.Linear(deep, classes + 1), nn.Linear(deep, 4 * classes)

    def features(self, x):
        b = self.backbone
        return b.layer3(b.layer2(b.layer1(F.max_pool2d(F.relu(b.bn1(b.conv1(x))), 3, 2, 1))))

    def propose(self, features):
        hidden = F.relu(self.rpn['conv'](features))
        flat = lambda x, columns: x.permute(0, 2, 3, 1).reshape(len(x), -1, columns)
        return flat(self.rpn['cls'](hidden), 1)[..., 0], flat(self.rpn['reg'](hidden), 4)

    def classify(self, features, boxes):
        pooled = roi_align(features, boxes, 14, 1 / stride, 0, True)
        vector = self.norm(self.res5(pooled)).mean((2, 3))
        return self.cls(vector), self.reg(vector)


def grid(rows, columns):
    cell = torch.tensor([[-w / 2, -r * w / 2, w / 2, r * w / 2] for s in sizes for r in ratios for w in [math.sqrt(s * s / r)]])
    y, x = torch.meshgrid(torch.arange(rows) * float(stride), torch.arange(columns) * float(stride), indexing='ij')
    return (torch.stack([x, y, x, y], 2)[:, :, None] + cell).reshape(-1, 4)


def centres(boxes):
    side = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + side / 2, side


def encode(boxes, targets, weights):
    (at, side), (to, size) = centres(boxes), centres(targets)
    return torch.cat([(to - at) / side, (size / side).log()], 1) * torch.tensor(weights)


def decode(boxes, deltas, weights):
    (at, side), moves = centres(boxes), deltas / torch.tensor(weights)
    centre, size = at + moves[:, :2] * side, moves[:, 2:].clamp(max=bound).exp() * side
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def clip(boxes):
    return torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))


def drawn_boxes(count, least, most):
    side = least + (most - least) * torch.rand(count, 2)
    at = torch.rand(count, 2) * (torch.tensor([width, height]) - side)
    return torch.cat([at, at + side], 1)


def sampled(labels, count, share):
    some = lambda label, most: (lambda of: of[torch.randperm(len(of))[:most]])((labels == label).nonzero()[:, 0])
    positive = some(1, int(count * share))
    return torch.cat([positive, some(0, count - len(positive))]), len(positive)


file = {}
model = Detector()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(float('bn' in name or 'norm' in name or 'downsample.1' in name) * name.endswith('weight'), 0.1)
    for name, buffer in model.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    model.reg.weight.mul_(0.3)


def keep(prefix):
    for name, value in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            file[f'{prefix}.{name}'] = value.clone()


keep('w0')
x = torch.randn(images, 3, height, width)
file['in.image'] = x
features = model.features(x)
logits, deltas = model.propose(features)
anchors = grid(*features.shape[2:])
file.update({'out.res4': features, 'out.rpn.logits': logits, 'out.rpn.deltas': deltas, 'in.anchors': anchors})

rois, loss = [], {key: torch.zeros(()) for key in ('rpn_cls', 'rpn_loc')}
drawn, labels_of_rois, targets_of_rois = 0, [], []
for i in range(images):
    truth, labels = drawn_boxes(2 + i, 16, 56), torch.randint(classes, (2 + i,))
    boxes = clip(decode(anchors, deltas[i].detach(), (1.0, 1, 1, 1)))
    order = logits[i].detach().argsort(descending=True, stable=True)
    order = order[(boxes[order, 2:] > boxes[order, :2]).all(1)]
    order = order[nms(boxes[order], logits[i].detach()[order], 0.7)][:50]
    file.update({f'in.gt_boxes.{i}': truth, f'in.gt_labels.{i}': labels, f'out.rpn.proposals.{i}': boxes[order],
                 f'out.rpn.scores.{i}': logits[i][order]})

    overlap = box_iou(truth, anchors)
    best, match = overlap.max(0)
    kind = torch.where(best >= 0.7, 1, torch.where(best < 0.3, 0, -1))
    kind[(overlap == overlap.max(1, keepdim=True)[0]).any(0)] = 1
    sample, positives = sampled(kind, wanted, 0.5)
    file.update({f'in.rpn.label.{i}': kind, f'in.rpn.sample.{i}': sample, f'in.rpn.num_pos.{i}': torch.tensor(positives)})
    loss['rpn_cls'] = loss['rpn_cls'] + F.binary_cross_entropy_with_logits(logits[i][sample], kind[sample].double(), reduction='sum')
    own = sample[:positives]
    loss['rpn_loc'] = loss['rpn_loc'] + (deltas[i][own] - encode(anchors[own], truth[match[own]], (1.0, 1, 1, 1))).abs().sum()
    drawn += max(positives, 1) + max(len(sample) - positives, 1)

    given = torch.cat([drawn_boxes(30, 8, 60), clip(truth + torch.randn(len(truth), 4) * 3)])
    candidates = torch.cat([given, truth])
    best, match = box_iou(truth, candidates).max(0)
    sample, positives = sampled((best >= 0.5).long(), regions, 0.25)
    kind = torch.where(torch.arange(len(sample)) < positives, labels[match[sample]], classes)
    file.update({f'in.proposals.{i}': given, f'in.roi.sample.{i}': sample, f'in.roi.label.{i}': kind, f'in.roi.gt.{i}': match[sample]})
    rois.append(candidates[sample])
    labels_of_rois.append(kind)
    targets_of_rois.append(truth[match[sample]])

scores, moves = model.classify(features, rois)
kind, boxes = torch.cat(labels_of_rois), torch.cat(rois)
file.update({'out.cls': scores, 'out.reg': moves})
own = (kind < classes).nonzero()[:, 0]
taught = moves.view(len(kind), classes, 4)[own, kind[own]]
loss['cls'] = F.cross_entropy(scores, kind)
loss['box_reg'] = (taught - encode(boxes[own], torch.cat(targets_of_rois)[own], (10.0, 10, 5, 5))).abs().sum() / len(kind)
for style, divisor in (('d2', wanted * images), ('mmdet', drawn)):
    for key, value in loss.items():
        file[f'loss.{style}.{key}'] = value / divisor if key.startswith('rpn') else value
sum(file[f'loss.d2.{key}'] for key in loss).backward()

norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
for name, parameter in model.named_parameters():
    file[f'grad.{name}'] = parameter.grad
split = lambda inside: [p for p in model.parameters() if (id(p) in norms) == inside]
torch.optim.SGD([{'params': split(False)}, {'params': split(True), 'weight_decay': 0}], 0.02, 0.9, weight_decay=1e-4).step()
keep('w1')

model.eval()
with torch.no_grad():
    given = [file[f'in.proposals.{i}'] for i in range(images)]
    scores, moves = model.classify(model.features(x), given)
    first = 0
    for i, boxes in enumerate(given):
        rows = slice(first, first + len(boxes))
        first = rows.stop
        share, found = scores[rows].softmax(1), []
        for label in range(classes):
            placed = clip(decode(boxes, moves[rows, 4 * label:4 * label + 4], (10.0, 10, 5, 5)))
            likely = (share[:, label] > 0.05).nonzero()[:, 0]
            kept = likely[nms(placed[likely], share[likely, label], 0.5)]
            found += [(share[at, label], label, placed[at]) for at in kept]
        found = sorted(found, key=lambda each: -each[0])[:100]
        file.update({f'det.scores.{i}': torch.stack([s for s, _, _ in found]), f'det.classes.{i}': torch.tensor([c for _, c, _ in found]),
                     f'det.boxes.{i}': torch.stack([b for _, _, b in found])})

header, parts, at = {}, [], 0
for name, value in file.items():
    value = value.detach().contiguous()
    parts.append(value.numpy().tobytes())
    header[name] = {'dtype': {torch.float64: 'F64', torch.int64: 'I64'}[value.dtype], 'shape': list(value.shape),
                    'data_offsets': [at, at + len(parts[-1])]}
    at += len(parts[-1])
text = json.dumps(header).encode()
text += b' ' * (-len(text) % 8)
with open(out, 'wb') as stream:
    stream.write(struct.pack('<Q', len(text)) + text + b''.join(parts))

"""One step of a small two-stage detector by PyTorch in float64, as a golden file; goldenDetector.py and goldenPyramid.py have the networks.

Everything that a file holds is drawn from a seed: images, objects, weights, proposals and samples. Names and layouts are those of
tests/support/detectionGolden.ts; formulas are detectron2's, the losses of mmdetection beside them.
"""
import json
import math
import struct

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, nms, roi_align

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
bound = math.log(1000 / 16)


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


def anchors_of(rows, columns, stride, sizes, ratios=(0.5, 1, 2)):
    cell = torch.tensor([[-w / 2, -r * w / 2, w / 2, r * w / 2] for s in sizes for r in ratios for w in [math.sqrt(s * s / r)]])
    y, x = torch.meshgrid(torch.arange(rows) * float(stride), torch.arange(columns) * float(stride), indexing='ij')
    return (torch.stack([x, y, x, y], 2)[:, :, None] + cell).reshape(-1, 4)


def proposals_head(channels, anchors):
    return nn.ModuleDict({'conv': nn.Conv2d(channels, channels, 3, 1, 1), 'cls': nn.Conv2d(channels, anchors, 1),
                          'reg': nn.Conv2d(channels, 4 * anchors, 1)})


def proposed(rpn, features):
    """What a proposal network says of the anchors of a map: logits [N, A], deltas [N, A, 4]."""
    hidden = F.relu(rpn['conv'](features))
    flat = lambda x, columns: x.permute(0, 2, 3, 1).reshape(len(x), -1, columns)
    return flat(rpn['cls'](hidden), 1)[..., 0], flat(rpn['reg'](hidden), 4)


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


def clip(boxes, height, width):
    return torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))


def drawn_boxes(count, least, most, height, width):
    side = least + (most - least) * torch.rand(count, 2)
    at = torch.rand(count, 2) * (torch.tensor([width, height]) - side)
    return torch.cat([at, at + side], 1)


def sampled(labels, count, share):
    some = lambda label, most: (lambda of: of[torch.randperm(len(of))[:most]])((labels == label).nonzero()[:, 0])
    positive = some(1, int(count * share))
    return torch.cat([positive, some(0, count - len(positive))]), len(positive)


def norms_of(model):
    return {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}


def randomise(model):
    """Draws what begins as ones and zeros; convolutions and linear layers are drawn where they are made."""
    norms = norms_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(float(id(parameter) in norms and name.endswith('weight')), 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_(0, 0.1)
            elif name.endswith('running_var'):
                buffer.uniform_(0.5, 1.5)
        model.reg.weight.mul_(0.3)


def assigned_by_mmdet(overlap):
    """0 for the background, -1 for what is left out, else the number of the object from 1 on: the last one that an anchor is the best of."""
    best, match = overlap.max(0)
    kind = torch.where(best >= 0.7, match + 1, torch.where(best < 0.3, 0, -1))
    for g, row in enumerate(overlap):
        if row.max() >= 0.3:
            kind[row == row.max()] = g + 1
    return kind


def ellipses(boxes, height, width):
    """The pixels [N, height, width] of the ellipses in boxes."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij')
    at, side = (each[:, :, None, None] for each in centres(boxes))
    return (((x - at[:, 0]) / side[:, 0]) ** 2 + ((y - at[:, 1]) / side[:, 1]) ** 2 < 0.25).byte()


def keep(file, prefix, model):
    for name, value in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            file[f'{prefix}.{name}'] = value.clone()


def update(file, model):
    """One step of SGD by gradients that are there, which are kept; the decay leaves norms alone."""
    for name, parameter in model.named_parameters():
        file[f'grad.{name}'] = parameter.grad
    norms = norms_of(model)
    split = lambda inside: [p for p in model.parameters() if (id(p) in norms) == inside]
    torch.optim.SGD([{'params': split(False)}, {'params': split(True), 'weight_decay': 0}], 0.02, 0.9, weight_decay=1e-4).step()
    keep(file, 'w1', model)


def write(file, out):
    """Writes tensors as safetensors."""
    header, parts, at = {}, [], 0
    for name, value in file.items():
        value = value.detach().contiguous()
        parts.append(value.numpy().tobytes())
        header[name] = {'dtype': {torch.float64: 'F64', torch.int64: 'I64', torch.uint8: 'U8'}[value.dtype], 'shape': list(value.shape),
                        'data_offsets': [at, at + len(parts[-1])]}
        at += len(parts[-1])
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(out, 'wb') as stream:
        stream.write(struct.pack('<Q', len(text)) + text + b''.join(parts))


def proposals_of(boxes, scores, most):
    """The best boxes of a map that no better one overlaps by 0.7, and their scores."""
    order = scores.argsort(descending=True, stable=True)[:most]
    order = order[(boxes[order, 2:] > boxes[order, :2]).all(1)]
    order = order[nms(boxes[order], scores[order], 0.7)]
    return boxes[order], scores[order]


def numbered(boxes):
    """The boxes of each image, all as [R, 5] with the number of the image first."""
    return torch.cat([torch.cat([torch.full((len(own), 1), float(i)), own], 1) for i, own in enumerate(boxes)])


def found_in(boxes, scores, moves, size, most):
    """Of what regions show the best [n]: scores, classes, boxes."""
    share, found = scores.softmax(1), []
    for label in range(scores.shape[1] - 1):
        placed = clip(decode(boxes, moves[:, 4 * label:4 * label + 4], (10.0, 10, 5, 5)), *size)
        likely = (share[:, label] > 0.05).nonzero()[:, 0]
        kept = likely[nms(placed[likely], share[likely, label], 0.5)]
        found += [(share[at, label], label, placed[at]) for at in kept]
    scores, classes, boxes = zip(*sorted(found, key=lambda each: -each[0])[:most])
    return torch.stack(scores), torch.tensor(classes), torch.stack(boxes)


def golden(model, out, size, wanted, regions, proposals, most, per_map=10**9, images=2, more={}):
    """
    Writes the file of one step on images of a size. Of the model `maps` are names, `features` their values, `anchors` those of each map;
    `classify` and, in a form with masks, `masks` say what regions [R, 5] show.
    """
    file, classes = dict(more), model.cls.out_features - 1
    randomise(model)
    keep(file, 'w0', model)
    x = torch.randn(images, 3, *size)
    file['in.image'] = x
    features = model.features(x)
    said, grids = [proposed(model.rpn, each) for each in features], model.anchors(features)
    for i, (logits, deltas) in enumerate(said):
        of = f'.{i}' if len(said) > 1 else ''
        file.update({f'out.{model.maps[i]}': features[i], f'out.rpn.logits{of}': logits, f'out.rpn.deltas{of}': deltas,
                     f'in.anchors{of}': grids[i]})
    anchors, logits, deltas = torch.cat(grids), torch.cat([each for each, _ in said], 1), torch.cat([each for _, each in said], 1)

    rois, loss = [], {key: torch.zeros(()) for key in ('rpn_cls', 'rpn_loc')}
    drawn, labels_of_rois, targets_of_rois, masks_of_rois = 0, [], [], []
    for i in range(images):
        truth, labels = drawn_boxes(2 + i, 16, 56, *size), torch.randint(classes, (2 + i,))
        maps = [proposals_of(clip(decode(grid, own[i].detach(), (1.0, 1, 1, 1)), *size), score[i].detach(), per_map)
                for grid, (score, own) in zip(grids, said)]
        boxes, scores = (torch.cat(each) for each in zip(*maps))
        order = scores.argsort(descending=True, stable=True)[:proposals]
        file.update({f'in.gt_boxes.{i}': truth, f'in.gt_labels.{i}': labels, f'out.rpn.proposals.{i}': boxes[order],
                     f'out.rpn.scores.{i}': scores[order]})

        overlap = box_iou(truth, anchors)
        best, match = overlap.max(0)
        kind = torch.where(best >= 0.7, 1, torch.where(best < 0.3, 0, -1))
        kind[(overlap == overlap.max(1, keepdim=True)[0]).any(0)] = 1
        sample, positives = sampled(kind, wanted, 0.5)
        file.update({f'in.rpn.label.{i}': kind, f'in.rpn.sample.{i}': sample, f'in.rpn.num_pos.{i}': torch.tensor(positives),
                     f'in.rpn.assigned_mmdet.{i}': assigned_by_mmdet(overlap)})
        loss['rpn_cls'] = loss['rpn_cls'] + F.binary_cross_entropy_with_logits(logits[i][sample], kind[sample].double(), reduction='sum')
        own = sample[:positives]
        loss['rpn_loc'] = loss['rpn_loc'] + (deltas[i][own] - encode(anchors[own], truth[match[own]], (1.0, 1, 1, 1))).abs().sum()
        drawn += max(positives, 1) + max(len(sample) - positives, 1)

        given = torch.cat([drawn_boxes(30, 8, 60, *size), clip(truth + torch.randn(len(truth), 4) * 3, *size)])
        candidates = torch.cat([given, truth])
        best, match = box_iou(truth, candidates).max(0)
        sample, positives = sampled((best >= 0.5).long(), regions, 0.25)
        kind = torch.where(torch.arange(len(sample)) < positives, labels[match[sample]], classes)
        file.update({f'in.proposals.{i}': given, f'in.roi.sample.{i}': sample, f'in.roi.label.{i}': kind, f'in.roi.gt.{i}': match[sample]})
        rois.append(candidates[sample])
        labels_of_rois.append(kind)
        targets_of_rois.append(truth[match[sample]])
        masks_of_rois.append(ellipses(truth, *size)[match[sample]])

    scores, moves = model.classify(features, numbered(rois))
    kind, boxes = torch.cat(labels_of_rois), torch.cat(rois)
    file.update({'out.cls': scores, 'out.reg': moves})
    own = (kind < classes).nonzero()[:, 0]
    taught = moves.view(len(kind), classes, 4)[own, kind[own]]
    loss['cls'] = F.cross_entropy(scores, kind)
    loss['box_reg'] = (taught - encode(boxes[own], torch.cat(targets_of_rois)[own], (10.0, 10, 5, 5))).abs().sum() / len(kind)
    if hasattr(model, 'masks'):
        logits = model.masks(features, numbered(rois)[own])
        each = torch.cat([torch.arange(len(own))[:, None], boxes[own]], 1)
        inside = roi_align(torch.cat(masks_of_rois)[own][:, None].double(), each, logits.shape[-1], 1.0, 0, True)[:, 0] >= 0.5
        file.update({'out.mask_logits': logits, 'out.mask_targets': inside.byte()})
        loss['mask'] = F.binary_cross_entropy_with_logits(logits[torch.arange(len(own)), kind[own]], inside.double())
    for style, divisor in (('d2', wanted * images), ('mmdet', drawn)):
        for key, value in loss.items():
            file[f'loss.{style}.{key}'] = value / divisor if key.startswith('rpn') else value
    sum(file[f'loss.d2.{key}'] for key in loss).backward()
    update(file, model)

    model.eval()
    with torch.no_grad():
        given, features = [file[f'in.proposals.{i}'] for i in range(images)], model.features(x)
        said = zip(*(each.split([len(boxes) for boxes in given]) for each in model.classify(features, numbered(given))))
        for i, (scores, moves) in enumerate(said):
            scores, labels, boxes = found_in(given[i], scores, moves, size, most)
            # A file says by the first image how many there are at most.
            most = min(most, len(scores)) if hasattr(model, 'masks') else most
            file.update({f'det.scores.{i}': scores, f'det.classes.{i}': labels, f'det.boxes.{i}': boxes})
            if hasattr(model, 'masks'):
                own = torch.cat([torch.full((len(boxes), 1), float(i)), boxes], 1)
                file[f'det.mask_prob.{i}'] = model.masks(features, own)[torch.arange(len(own)), labels].sigmoid()
    write(file, out)

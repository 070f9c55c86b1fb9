"""torchvision's Mask R-CNN on a feature pyramid, with random weights and frozen norms, on given images: torchvisionMaskRcnn.py IN OUT PTH.

IN holds the sizes of the padded batch and of its images, and objects, as JSON; beside it lie the values, f64 NCHW, as IN.values. OUT
becomes a safetensors file: what every part gives, what is found, samples, losses and gradients of a training step. PTH becomes the state dict.
"""
import json
import struct
import sys

import numpy
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.misc import FrozenBatchNorm2d

torch.set_num_threads(1)
torch.manual_seed(3)
given = json.load(open(sys.argv[1]))
slots, channels, width = given['slots'], 32, 48

body = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
backbone = BackboneWithFPN(body, {f'layer{i + 1}': str(i) for i in range(4)}, [64, 128, 256, 512], channels)
model = MaskRCNN(
    backbone, box_head=TwoMLPHead(channels * 49, width), box_predictor=FastRCNNPredictor(width, slots),
    mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1), mask_predictor=MaskRCNNPredictor(channels, channels, slots),
    rpn_post_nms_top_n_test=given['regions'], rpn_post_nms_top_n_train=given['regions'], rpn_batch_size_per_image=64,
    box_batch_size_per_image=32)
with torch.no_grad():
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    # Moves and scores of a size at which boxes differ, overlap and are dropped.
    for layer, deviation in ((model.rpn.head.conv[0][0], 0.05), (model.rpn.head.cls_logits, 0.1), (model.rpn.head.bbox_pred, 0.02),
                             (model.roi_heads.box_predictor.cls_score, 0.3), (model.roi_heads.box_predictor.bbox_pred, 0.1)):
        nn.init.normal_(layer.weight, 0, deviation)
        nn.init.normal_(layer.bias, 0, 0.1)
torch.save(model.state_dict(), sys.argv[3])
model = model.double()

file = {}
height, wide = given['shape']
sizes = [tuple(size) for size in given['sizes']]
x = torch.from_numpy(numpy.fromfile(f'{sys.argv[1]}.values')).view(len(sizes), 3, height, wide)
images = ImageList(x, sizes)


def ellipse(box):
    """The pixels of the ellipse in a box."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(wide) + 0.5, indexing='ij')
    return ((((x - (box[0] + box[2]) / 2) / (box[2] - box[0])) ** 2 + ((y - (box[1] + box[3]) / 2) / (box[3] - box[1])) ** 2) < 0.25).byte()


targets = [{'boxes': torch.tensor(each['boxes'], dtype=torch.float64), 'labels': torch.tensor(each['labels']),
            'masks': torch.stack([ellipse(box) for box in each['boxes']])} for each in given['objects']]

# Anchors innermost, as this package has them.
flat = lambda y, columns: y.permute(0, 2, 3, 1).reshape(len(y), -1, columns)
model.eval()
with torch.no_grad():
    features = model.backbone(x)
    logits, deltas = model.rpn.head(list(features.values()))
    proposals, _ = model.rpn(images, features)
    anchors = model.rpn.anchor_generator(images, list(features.values()))[0]
    file['anchors'] = anchors
    for i, value in enumerate(features.values()):
        file.update({f'map.{i}': value, f'logits.{i}': flat(logits[i], 1)[..., 0], f'deltas.{i}': flat(deltas[i], 4)})
    found = model.roi_heads(features, proposals, sizes)[0]
    for i, each in enumerate(found):
        file[f'proposals.{i}'] = proposals[i]
        file.update({f'{name}.{i}': value for name, value in each.items()})

# A training step, whose samples are kept.
model.train()
kept = []
sampler = model.rpn.fg_bg_sampler


def sample(labels):
    chosen = sampler(labels)
    kept.extend(zip(*chosen))
    return chosen


model.rpn.fg_bg_sampler = sample
assigned = model.rpn.assign_targets_to_anchors


def doubled(*args):
    labels, boxes = assigned(*args)
    return [each.double() for each in labels], boxes


model.rpn.assign_targets_to_anchors = doubled
select = model.roi_heads.select_training_samples


def selected(*args):
    result = select(*args)
    for i, (boxes, matched, labels) in enumerate(zip(*result[:3])):
        file.update({f'sample.boxes.{i}': boxes, f'sample.matched.{i}': matched, f'sample.labels.{i}': labels})
    return result


model.roi_heads.select_training_samples = selected
import torchvision.models.detection.roi_heads as roi_heads
project = roi_heads.project_masks_on_boxes


def projected(*args):
    result = project(*args)
    file[f'sample.masks.{sum(name.startswith("sample.masks") for name in file)}'] = result
    return result


roi_heads.project_masks_on_boxes = projected
features = model.backbone(x)
proposals, losses = model.rpn(images, features, targets)
losses.update(model.roi_heads(features, proposals, sizes, targets)[1])
for i, (positive, negative) in enumerate(kept):
    file.update({f'anchors.positive.{i}': positive.nonzero()[:, 0], f'anchors.negative.{i}': negative.nonzero()[:, 0]})
sum(losses.values()).backward()
file.update({f'loss.{name}': value for name, value in losses.items()})
file.update({f'grad.{name}': parameter.grad for name, parameter in model.named_parameters() if parameter.numel() < 40000})

header, parts, at = {}, [], 0
for name, value in file.items():
    parts.append(value.detach().contiguous().numpy().tobytes())
    header[name] = {'dtype': {torch.float64: 'F64', torch.int64: 'I64'}[value.dtype], 'shape': list(value.shape),
                    'data_offsets': [at, at + len(parts[-1])]}
    at += len(parts[-1])
text = json.dumps(header).encode()
with open(sys.argv[2], 'wb') as stream:
    stream.write(struct.pack('<Q', len(text)) + text + b''.join(parts))

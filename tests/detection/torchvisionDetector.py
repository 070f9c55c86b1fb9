"""A detector of the form C4 built of torchvision's parts, with random weights, on given images: torchvisionDetector.py IN OUT.

IN holds the sizes of padded images and their shares without padding as JSON; beside it lie their values, f64 NCHW, as IN.N. OUT becomes a
safetensors file of the weights, what every part gives, and the objects that are found.
"""
import json
import struct
import sys

import numpy
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

torch.set_num_threads(1)
torch.manual_seed(3)
given, out = json.load(open(sys.argv[1])), sys.argv[2]
classes = given['classes']

body = resnet18(weights=None)
for module in body.modules():
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.6, 1.4)
        nn.init.normal_(module.bias, 0, 0.2)
        nn.init.normal_(module.running_mean, 0, 0.2)
        nn.init.uniform_(module.running_var, 0.5, 2)
backbone = nn.Sequential(*list(body.children())[:7])
backbone.out_channels = 256
head = nn.Sequential(body.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten())
model = FasterRCNN(
    backbone, rpn_anchor_generator=AnchorGenerator((tuple(given['anchors']),), (tuple(given['ratios']),)), box_head=head,
    rpn_post_nms_top_n_test=given['regions'], box_roi_pool=MultiScaleRoIAlign(['0'], 14, 2),
    box_predictor=FastRCNNPredictor(512, classes + 1)).double().eval()
with torch.no_grad():
    # Moves and scores of a size at which boxes differ, overlap and are dropped.
    for layer, deviation in ((model.rpn.head.conv[0][0], 0.01), (model.rpn.head.cls_logits, 0.05), (model.rpn.head.bbox_pred, 0.01),
                             (model.roi_heads.box_predictor.cls_score, 0.05), (model.roi_heads.box_predictor.bbox_pred, 0.03)):
        nn.init.normal_(layer.weight, 0, deviation)
        nn.init.normal_(layer.bias, 0, 0.1)

file = {f'weights.{name}': value for name, value in model.state_dict().items() if not name.endswith('num_batches_tracked')}
with torch.no_grad():
    for i, ((height, width), size) in enumerate(zip(given['shapes'], given['sizes'])):
        x = torch.from_numpy(numpy.fromfile(f'{sys.argv[1]}.{i}')).view(1, 3, height, width)
        features = {'0': model.backbone(x)}
        images = ImageList(x, [tuple(size)])
        logits, deltas = model.rpn.head(list(features.values()))
        proposals, _ = model.rpn(images, features)
        pooled = model.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
        scores, moves = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
        found = model.roi_heads(features, proposals, images.image_sizes)[0][0]
        # Anchors innermost, as this package has them.
        flat = lambda y, columns: y[0].permute(1, 2, 0).reshape(-1, columns)
        for name, value in {'map': features['0'], 'anchors': model.rpn.anchor_generator(images, list(features.values()))[0],
                            'logits': flat(logits[0], 1)[:, 0], 'deltas': flat(deltas[0], 4), 'proposals': proposals[0],
                            'pooled': pooled, 'classLogits': scores, 'boxDeltas': moves, **found}.items():
            file[f'{i}.{name}'] = value

header, parts, at = {}, [], 0
for name, value in file.items():
    parts.append(value.contiguous().numpy().tobytes())
    header[name] = {'dtype': {torch.float64: 'F64', torch.int64: 'I64'}[value.dtype], 'shape': list(value.shape),
                    'data_offsets': [at, at + len(parts[-1])]}
    at += len(parts[-1])
text = json.dumps(header).encode()
with open(out, 'wb') as stream:
    stream.write(struct.pack('<Q', len(text)) + text + b''.join(parts))

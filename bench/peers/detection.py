"""A training step of Faster R-CNN (C4) or Mask R-CNN (FPN) built of torchvision's own parts, as the peer of bench/steps/detection.ts.

    detection.py --depth 50 --height 800 --width 1333 --batch 2 [--form fpn] [--regions 512] [--steps 2]
        [--channels-last] [--device cuda] [--amp]

Anchors, sampling, proposals, losses and suppression are torchvision's: their rules differ in details, their work does not.
Prints a JSON line.
"""
import argparse, json

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from steptimes import timed


class Body(nn.Module):
    """The map before the last stage."""

    def __init__(self, net):
        super().__init__()
        self.layers = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
        self.out_channels = net.layer4[0].conv1.in_channels

    def forward(self, x):
        return self.layers(x)


class Head(nn.Module):
    """The last stage on every region, a norm, the mean."""

    def __init__(self, net):
        super().__init__()
        self.layer4, self.channels = net.layer4, net.fc.in_features
        self.norm = nn.BatchNorm2d(self.channels)

    def forward(self, x):
        return self.norm(self.layer4(x)).mean((2, 3))


class Sizes(nn.Module):
    """Images as they are, in torchvision's wrapping, without its resizing and normalising."""

    def forward(self, images, targets=None):
        return torchvision.models.detection.image_list.ImageList(images, [tuple(images.shape[-2:])] * len(images)), targets

    def postprocess(self, result, *_):
        return result


def targets(args, device):
    def box(image, i):
        left, top = (0.1 + 0.15 * i) * args.width, (0.05 + 0.1 * i + 0.02 * image) * args.height
        return [left, top, left + (0.1 + 0.1 * i) * args.width, top + (0.3 + 0.05 * i) * args.height]

    labels = torch.tensor([1 + i % args.classes for i in range(4)], device=device)
    def pixels(image, i):
        left, top, right, bottom = map(round, box(image, i))
        mask = torch.zeros(args.height, args.width, dtype=torch.uint8, device=device)
        mask[top:bottom, left:right] = 1
        return mask

    return [{"boxes": torch.tensor([box(image, i) for i in range(4)], device=device), "labels": labels,
             **({"masks": torch.stack([pixels(image, i) for i in range(4)])} if args.form == "fpn" else {})} for image in range(args.batch)]


def c4(args):
    net = getattr(torchvision.models, f"resnet{args.depth}")()
    head = Head(net)
    return FasterRCNN(
        Body(net),
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=12000,
        rpn_post_nms_top_n_train=2000,
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 0),
        box_head=head,
        box_predictor=FastRCNNPredictor(head.channels, args.classes + 1),
        box_batch_size_per_image=args.regions,
    )


def fpn(args):
    """Norms in pyramid and heads, four convolutions and one linear layer, as the published protocol has it."""
    net, norm = getattr(torchvision.models, f"resnet{args.depth}")(), nn.BatchNorm2d
    channels = [getattr(net, f"layer{i + 1}")[0].downsample[0].out_channels if i or args.depth > 34 else 64 for i in range(4)]
    backbone = BackboneWithFPN(net, {f"layer{i + 1}": str(i) for i in range(4)}, channels, 256)
    # This version's pyramid has no norms of its own.
    for blocks in (backbone.fpn.inner_blocks, backbone.fpn.layer_blocks):
        for block in blocks:
            block.append(norm(256))
    pool = lambda size: MultiScaleRoIAlign(["0", "1", "2", "3"], size, 0)
    return MaskRCNN(
        backbone,
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=pool(7),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=norm),
        box_predictor=FastRCNNPredictor(1024, args.classes + 1),
        box_batch_size_per_image=args.regions,
        mask_roi_pool=pool(14),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=norm),
        mask_predictor=torchvision.models.detection.mask_rcnn.MaskRCNNPredictor(256, 256, args.classes + 1),
    )


def main():
    parser = argparse.ArgumentParser()
    defaults = {"depth": 50, "height": 800, "width": 1333, "batch": 2, "classes": 20, "regions": 512, "steps": 2, "threads": 2}
    for name, value in defaults.items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--form", default="c4", choices=("c4", "fpn"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--amp", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    device = torch.device(args.device)

    model = {"c4": c4, "fpn": fpn}[args.form](args)
    model.transform = Sizes()
    # FasterRCNN checks a list of images, each of which it would put into a tensor of the batch.
    x = torch.randn(args.batch, 3, args.height, args.width, device=device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model, x = model.to(device, memory_format=layout).train(), x.contiguous(memory_format=layout)
    sgd = torch.optim.SGD(model.parameters(), 0.02 * args.batch / 16, 0.9, weight_decay=1e-4)
    wanted = targets(args, device)

    def step():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.amp):
            loss = sum(model(x, wanted).values())
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        return loss

    print(json.dumps({"batch": args.batch, **timed(step, args.steps, device.type == "cuda")}))


main()

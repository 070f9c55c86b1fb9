"""DenseCL in PyTorch, written from the method's description, as the peer that benches and comparisons run beside ours.

    densecl.py step   --depth 18 --image 64 --batch 32,8 --queue 4096 [--channels-last] [--steps 10]
                                      a line for each size of --batch
    densecl.py write-golden FILE ...  writes a golden training file (float64 arithmetic), as tests/fixtures/golden holds
    densecl.py golden FILE            replays a golden training file in float32 and prints the losses and their errors
    densecl.py train  CHECKPOINT OUT  trains from our checkpoint of step 0 on the views that bench/steps/views.ts pipes in,
                                      prints the mean losses of each epoch and writes the backbone to OUT

Run with a Python that has torch and torchvision; prints JSON lines.
"""
import argparse, json, struct, sys, time

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from steptimes import timed


class SplitNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are taken over `groups` parts of the batch, as on that many devices."""

    groups = 1

    def forward(self, x):
        if not self.training or self.groups == 1:
            return super().forward(x)
        n, c, h, w = x.shape
        g = self.groups
        mean = self.running_mean.repeat(g)
        var = self.running_var.repeat(g)
        folded = x.reshape(g, n // g, c, h, w).transpose(0, 1).reshape(n // g, g * c, h, w)
        y = F.batch_norm(folded, mean, var, self.weight.repeat(g), self.bias.repeat(g), True, self.momentum, self.eps)
        self.running_mean.copy_(mean.view(g, c).mean(0))
        self.running_var.copy_(var.view(g, c).mean(0))
        return y.reshape(n // g, g, c, h, w).transpose(0, 1).reshape(n, c, h, w)


def resnet(depth, base):
    block, layers = {
        18: (torchvision.models.resnet.BasicBlock, [2, 2, 2, 2]),
        34: (torchvision.models.resnet.BasicBlock, [3, 4, 6, 3]),
        50: (torchvision.models.resnet.Bottleneck, [3, 4, 6, 3]),
        101: (torchvision.models.resnet.Bottleneck, [3, 4, 23, 3]),
    }[depth]

    class ResNet(torchvision.models.ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            return super()._make_layer(block, planes * base // 64, blocks, stride, dilate)

    net = ResNet.__new__(ResNet)
    nn.Module.__init__(net)
    net._norm_layer, net.dilation, net.inplanes, net.groups, net.base_width = SplitNorm, 1, base, 1, 64
    net.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
    net.bn1, net.relu, net.maxpool = SplitNorm(base), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    net.layer1 = net._make_layer(block, 64, layers[0])
    net.layer2 = net._make_layer(block, 128, layers[1], stride=2)
    net.layer3 = net._make_layer(block, 256, layers[2], stride=2)
    net.layer4 = net._make_layer(block, 512, layers[3], stride=2)
    net.forward = lambda x: net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))))
    net.channels = net.inplanes
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
    return net


class Neck(nn.Module):
    def __init__(self, inputs, hidden, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(True), nn.Linear(hidden, dim))
        self.mlp2 = nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.ReLU(True), nn.Conv2d(hidden, dim, 1))
        for m in self.mlp:
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(m.bias)

    def forward(self, x):
        d = self.mlp2(x)
        return self.mlp(x.mean((2, 3))), d.flatten(2), d.mean((2, 3))


def follow(averages, values, share):
    """Moves each average towards its value by a share of the way, all in one pass where this PyTorch can."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(averages, values, share)
    else:
        torch._foreach_mul_(averages, 1 - share)
        torch._foreach_add_(averages, values, alpha=share)


class DenseCL(nn.Module):
    def __init__(self, depth, base, hidden, dim, length):
        super().__init__()
        def encoder():
            net = resnet(depth, base)
            return nn.Sequential(net, Neck(net.channels, hidden, dim))

        self.encoder_q, self.encoder_k = encoder(), encoder()
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        for name in ("queue", "queue2"):
            self.register_buffer(name, F.normalize(torch.randn(dim, length), dim=0))
            self.register_buffer(name + "_ptr", torch.zeros(1, dtype=torch.long))

    def losses(self, view_q, view_k, order, temperature, weight, momentum):
        x = self.encoder_q[0](view_q)
        q, grid, _ = self.encoder_q[1](x)
        q, grid, feature = F.normalize(q, dim=1), F.normalize(grid, dim=1), F.normalize(x.detach().flatten(2), dim=1)
        with torch.no_grad():
            keys, queries = list(self.encoder_k.parameters()), [p.detach() for p in self.encoder_q.parameters()]
            follow(keys, queries, 1 - momentum)
            # Without an order the key batch stays as it is: shuffling serves statistics in groups.
            y = self.encoder_k[0](view_k if order is None else view_k[order])
            outputs = self.encoder_k[1](y)
            if order is not None:
                back = torch.argsort(order)
                y, outputs = y[back], [t[back] for t in outputs]
            k, key_grid, pooled = (F.normalize(t, dim=1) for t in outputs)
            match = torch.einsum("ncp,ncq->npq", feature, F.normalize(y.flatten(2), dim=1)).argmax(2)
            partner = key_grid.gather(2, match.unsqueeze(1).expand(-1, grid.shape[1], -1))
        queue, queue2 = self.queue.clone(), self.queue2.clone()

        def nce(positive, negative):
            logits = torch.cat([positive.unsqueeze(1), negative], 1) / temperature
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

        single = nce((q * k).sum(1), q @ queue)
        rows = grid.transpose(1, 2).reshape(-1, grid.shape[1])
        dense = nce((grid * partner).sum(1).reshape(-1), rows @ queue2)
        for name, keys in (("queue", k), ("queue2", pooled)):
            buffer, pointer = getattr(self, name), getattr(self, name + "_ptr")
            length = buffer.shape[1]
            buffer[:, (pointer + torch.arange(len(keys), device=pointer.device)) % length] = keys.T.to(buffer.dtype)
            pointer.copy_((pointer + len(keys)) % length)
        return (1 - weight) * single, weight * dense


def read_safetensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    kinds = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
    meta = header.pop("__metadata__", {})
    return {k: torch.frombuffer(bytearray(data[v["data_offsets"][0] : v["data_offsets"][1]]), dtype=kinds[v["dtype"]]).reshape(v["shape"]) for k, v in header.items()}, meta


def golden(args):
    tensors, meta = read_safetensors(args.file)
    n = lambda key: float(meta[key])
    SplitNorm.groups = int(n("bn_groups"))
    model = DenseCL(int(n("depth")), int(n("base_channels")), int(n("hidden")), int(n("feat_dim")), int(n("queue_len")))
    model.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("init.")}, strict=False)
    sgd = torch.optim.SGD(model.encoder_q.parameters(), n("lr"), n("sgd_momentum"), weight_decay=n("weight_decay"))
    model.train()
    errors = []
    for step, expected in enumerate(json.loads(meta["losses"])):
        get = lambda name: tensors[f"step{step}.{name}"]
        single, dense = model.losses(get("view_q"), get("view_k"), get("key_permutation"), n("temperature"), n("loss_lambda"), n("key_momentum"))
        sgd.zero_grad()
        (single + dense).backward()
        if step == 0:
            grads = {k: ((p.grad - tensors[f"step0.grad.encoder_q.{k}"]).abs().max() / tensors[f"step0.grad.encoder_q.{k}"].abs().max()).item() for k, p in model.encoder_q.named_parameters()}
        sgd.step()
        top = max(expected.values())
        errors.append(max(abs(single.item() - expected["loss_single"]), abs(dense.item() - expected["loss_dense"])) / top)
    worst = max(grads, key=grads.get)
    print(json.dumps({"loss_errors": errors, "gradient_error": grads[worst], "worst": worst}))


def write_safetensors(path, tensors, meta):
    header, blobs, offset = {"__metadata__": meta}, [], 0
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        kind = "I64" if tensor.dtype == torch.int64 else "F32"
        blob = tensor.to(torch.int64 if kind == "I64" else torch.float32).numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_golden(args):
    torch.manual_seed(args.seed)
    torch.set_default_dtype(torch.float64)
    SplitNorm.groups = args.groups
    model = DenseCL(args.depth, args.base, args.hidden, args.dim, args.queue)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.float() if tensor.is_floating_point() else tensor)
    settings = {"depth": args.depth, "base_channels": args.base, "hidden": args.hidden, "feat_dim": args.dim, "queue_len": args.queue, "batch": args.batch, "image": args.image, "steps": args.steps,
                "loss_lambda": 0.5, "temperature": 0.2, "key_momentum": 0.99, "lr": 0.03, "weight_decay": 1e-4, "sgd_momentum": 0.9, "bn_groups": args.groups}
    out = {f"init.{k}": v.clone() for k, v in model.state_dict().items()}
    sgd = torch.optim.SGD(model.encoder_q.parameters(), settings["lr"], 0.9, weight_decay=1e-4)
    model.train()
    losses = []
    for i in range(args.steps):
        views = [torch.randn(args.batch, 3, args.image, args.image).float().double() for _ in range(2)]
        order = torch.randperm(args.batch)
        out.update({f"step{i}.view_q": views[0], f"step{i}.view_k": views[1], f"step{i}.key_permutation": order})
        single, dense = model.losses(*views, order, settings["temperature"], settings["loss_lambda"], settings["key_momentum"])
        sgd.zero_grad()
        (single + dense).backward()
        if i == 0:
            out.update({f"step0.grad.encoder_q.{k}": p.grad.clone() for k, p in model.encoder_q.named_parameters()})
        sgd.step()
        losses.append({"loss_single": single.item(), "loss_dense": dense.item()})
    out.update({f"final.{k}": v for k, v in model.state_dict().items() if args.groups == 1 or not ("running" in k or "num_batches" in k)})
    write_safetensors(args.file, out, {**{k: str(v) for k, v in settings.items()}, "losses": json.dumps(losses), "torch": torch.__version__})


def step(args):
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        sys.exit(f"densecl.py: PyTorch {torch.__version__} sees no GPU")
    if args.compile and not hasattr(torch, "compile"):
        sys.exit(f"densecl.py: PyTorch {torch.__version__} has no torch.compile")
    torch.manual_seed(0)
    SplitNorm.groups = args.groups
    torch.backends.cudnn.benchmark = True
    if args.compile:
        torch._logging.set_logs(perf_hints=True)  # says why a graph is not used
    model = DenseCL(args.depth, args.base, args.hidden, 128, args.queue).to(args.device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.encoder_q.parameters(), 0.03, 0.9, weight_decay=1e-4, **({"fused": True} if cuda else {}))
    model.train()
    for batch in args.batch:
        print(json.dumps(steps(args, model, sgd, batch, cuda)), flush=True)
        if args.compile:
            torch._dynamo.reset()
        if cuda:
            torch.cuda.empty_cache()


def steps(args, model, sgd, batch, cuda):
    # As ours: of the precision that they are computed in.
    views = [torch.randn(batch, 3, args.image, args.image, device=args.device, dtype=torch.bfloat16 if args.amp else torch.float32) for _ in range(2)]
    if args.channels_last:
        views = [v.to(memory_format=torch.channels_last) for v in views]
    losses = torch.compile(model.losses, dynamic=False, backend=args.backend, **({"mode": args.mode} if args.backend == "inductor" else {})) if args.compile else model.losses

    def one():
        if args.compile:
            torch.compiler.cudagraph_mark_step_begin()
        sgd.zero_grad(set_to_none=True)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.amp):
            single, dense = losses(*views, torch.randperm(batch, device=args.device) if args.groups > 1 else None, 0.2, 0.5, 0.999)
        total = single + dense
        total.backward()
        sgd.step()
        return total.detach()

    row = {"batch": batch, **timed(one, args.steps, cuda)}
    if args.compile:
        counters = torch._dynamo.utils.counters
        row.update(graph_breaks=sum(counters["graph_break"].values()), cudagraph_skips=counters["inductor"]["cudagraph_skips"])
    return row


class TwoViews:
    def __init__(self, view):
        self.view = view

    def __call__(self, image):
        return self.view(image), self.view(image)


def files(args):
    """Training from JPEG files as the published code does: torchvision's loader and transforms on the CPU, eager steps."""
    from torchvision import datasets, transforms as T

    torch.backends.cudnn.benchmark = True
    view = T.Compose([
        T.RandomResizedCrop(args.image, scale=(0.2, 1.0)),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], p=0.5),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(args.folder, TwoViews(view)), args.batch, shuffle=True, num_workers=args.workers, pin_memory=args.device == "cuda", drop_last=True, persistent_workers=True)
    if len(loader) == 0:
        sys.exit(f"densecl.py: {args.folder} has {len(loader.dataset)} images: expected at least one batch of {args.batch}")
    model = DenseCL(args.depth, args.base, args.hidden, 128, args.queue).to(args.device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.encoder_q.parameters(), 0.03, 0.9, weight_decay=1e-4, **({"fused": True} if args.device == "cuda" else {}))
    model.train()
    warm, done, start = 5, 0, 0.0
    while done < args.steps + warm:
        for views, _ in loader:
            if done == warm:
                start = time.perf_counter()
            views = [v.to(args.device, non_blocking=True, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format) for v in views]
            sgd.zero_grad(set_to_none=True)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.amp):
                single, dense = model.losses(*views, None, 0.2, 0.5, 0.999)
            (single + dense).backward()
            sgd.step()
            done += 1
            if done == args.steps + warm:
                break
    single.item()
    seconds = (time.perf_counter() - start) / args.steps
    print(json.dumps({"seconds": seconds, "imagesPerSecond": args.batch / seconds, "torch": torch.__version__}))


def train(args):
    import numpy as np

    tensors, meta = read_safetensors(args.checkpoint)
    c = json.loads(meta["densecl"])["config"]
    SplitNorm.groups = c["normGroups"]
    model = DenseCL(c["depth"], c["baseChannels"], c["hidden"] or tensors["encoder_q.1.mlp.0.weight"].shape[0], c["featDim"], c["queueLength"])
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("optimizer.")})
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.encoder_q.parameters(), c["lr"], c["momentum"], weight_decay=c["weightDecay"])
    model.train()
    n, size = c["batchSize"], c["imageSize"]
    steps = args.images // n
    start = time.time()
    for epoch in range(c["epochs"]):
        rows = []
        for step in range(steps):
            order = torch.from_numpy(np.frombuffer(sys.stdin.buffer.read(4 * n), np.int32).astype(np.int64))
            views = [torch.from_numpy(np.frombuffer(sys.stdin.buffer.read(12 * n * size * size), np.float32).copy()).view(n, size, size, 3).permute(0, 3, 1, 2) for _ in range(2)]
            progress = epoch / c["epochs"] if c["scheduleBy"] == "epoch" else (epoch * steps + step) / (c["epochs"] * steps)
            warm = min(1, (epoch * steps + step + 1) / max(1, c["warmupSteps"]))
            for group in sgd.param_groups:
                group["lr"] = warm * (c["lr"] if c["schedule"] == "constant" else 0.5 * c["lr"] * (1 + np.cos(np.pi * progress)))
            weight = 0 if epoch * steps + step < c["denseWarmup"] else c["denseWeight"]
            single, dense = model.losses(*views, order, c["temperature"], weight, c["keyMomentum"])
            sgd.zero_grad(set_to_none=True)
            (single + dense).backward()
            sgd.step()
            rows.append((single.item(), dense.item()))
        mean = np.mean(rows, 0)
        print(json.dumps({"epoch": epoch + 1, "lossGlobal": mean[0], "lossDense": mean[1], "seconds": time.time() - start}), flush=True)
    write_safetensors(args.out, dict(model.encoder_q[0].state_dict()), {})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    sub = parser.add_subparsers(dest="command", required=True)
    s, f = sub.add_parser("step"), sub.add_parser("files")
    for p in (s, f):
        for name, value in (("depth", 18), ("base", 64), ("image", 64), ("queue", 4096), ("hidden", 512), ("steps", 10), ("groups", 1), ("workers", 1)):
            p.add_argument("--" + name, type=int, default=value)
        p.add_argument("--channels-last", action="store_true")
        p.add_argument("--device", default="cpu")
        p.add_argument("--amp", action="store_true", help="bf16 autocast")
    s.add_argument("--batch", type=lambda text: [int(size) for size in text.split(",")], default=[32], help="sizes, one after the other")
    f.add_argument("--batch", type=int, default=32)
    s.add_argument("--compile", action="store_true")
    s.add_argument("--mode", default="default", help="of torch.compile: default, reduce-overhead or max-autotune")
    s.add_argument("--backend", default="inductor", help="of torch.compile; aot_eager traces and compiles nothing")
    s.set_defaults(run=step)
    f.add_argument("folder")
    f.set_defaults(run=files)
    g = sub.add_parser("golden")
    g.add_argument("file")
    g.set_defaults(run=golden)
    t = sub.add_parser("train")
    t.add_argument("checkpoint")
    t.add_argument("out")
    t.add_argument("--images", type=int, required=True)
    t.add_argument("--channels-last", action="store_true")
    t.set_defaults(run=train)
    w = sub.add_parser("write-golden")
    w.add_argument("file")
    for name, value in (("depth", 18), ("base", 4), ("image", 64), ("batch", 4), ("queue", 12), ("hidden", 16), ("dim", 8), ("steps", 2), ("groups", 1), ("seed", 0)):
        w.add_argument("--" + name, type=int, default=value)
    w.set_defaults(run=write_golden)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()

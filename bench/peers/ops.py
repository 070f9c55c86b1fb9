"""The work of src/bench/cases in PyTorch: a request is a line of JSON {op, numbers, dtype}, the reply its median time."""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

device = sys.argv[1]
compiled = "--compile" in sys.argv  # blocks and losses through torch.compile
cuda = device == "cuda"
torch.backends.cudnn.benchmark = True
if not cuda:
    torch.set_num_threads(2)
last = torch.channels_last


def rand(*shape, dtype):
    return torch.randn(*shape, device=device).to(dtype)


def image(n, c, h, w, dtype):
    return rand(n, c, h, w, dtype=dtype).to(memory_format=last)


def conv(numbers, dtype, mask):
    n, size, c, o, kernel, stride = numbers
    x, w = image(n, c, size, size, dtype), rand(o, c, kernel, kernel, dtype=dtype).to(memory_format=last)
    pad = (kernel - 1) // 2
    if mask is None:
        return lambda: F.conv2d(x, w, stride=stride, padding=pad)
    y = torch.randn_like(F.conv2d(x, w, stride=stride, padding=pad))
    return lambda: torch.ops.aten.convolution_backward(y, x, w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask)


def norm(numbers, dtype, backward):
    n, size, c, joins = numbers
    x = image(n, c, size, size, dtype).requires_grad_(backward)
    residual = image(n, c, size, size, dtype).requires_grad_(backward) if joins else None
    g, b, mean, var = (torch.rand(c, device=device).requires_grad_(backward and i < 2) for i in range(4))

    def forward():
        y = F.batch_norm(x, mean, var, g, b, True, 0.1, 1e-5)
        return F.relu(y if residual is None else y + residual)

    if not backward:
        return forward
    y = forward()
    dy, inputs = torch.randn_like(y), [t for t in (x, residual, g, b) if t is not None]
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def block(numbers, dtype):
    n, size, c, o, kernel = numbers
    x, w = image(n, c, size, size, dtype).requires_grad_(), rand(o, c, kernel, kernel, dtype=dtype).to(memory_format=last).requires_grad_()
    g, b, mean, var = (torch.rand(o, device=device).requires_grad_(i < 2) for i in range(4))
    f = lambda x, w, g, b: F.relu(F.batch_norm(F.conv2d(x, w, padding=kernel // 2), mean, var, g, b, True, 0.1, 1e-5))
    if compiled:
        f = torch.compile(f)
    dy = torch.randn_like(f(x, w, g, b))
    return lambda: torch.autograd.grad(f(x, w, g, b), [x, w, g, b], dy)


def augment(numbers, dtype):
    """The views of MoCo v2 by torchvision on the device: parameters are drawn for each image, so each is a call."""
    from torchvision.transforms import v2

    n, height, width, size = numbers
    images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, device=device) for _ in range(min(n, 32))]
    view = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(dtype, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    return lambda: torch.stack([view(images[i % len(images)]) for i in range(2 * n)])


def info_nce(numbers, dtype):
    rows, keys, dim = numbers
    unit = lambda r: F.normalize(torch.randn(r, dim, device=device), dim=1).to(dtype)
    q, k, queue = unit(rows).requires_grad_(), unit(rows), unit(keys)
    target = torch.zeros(rows, dtype=torch.long, device=device)

    def loss(q):
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.t()], 1) / 0.2
        return F.cross_entropy(logits.float(), target)

    if compiled:
        loss = torch.compile(loss)
    return lambda: torch.autograd.grad(loss(q), q)


def match(numbers, dtype):
    n, p, c = numbers
    q, k = rand(n, p, c, dtype=dtype), rand(n, p, c, dtype=dtype)
    return lambda: torch.einsum("npc,nqc->npq", F.normalize(q, dim=2), F.normalize(k, dim=2)).argmax(2)


def sgd(numbers, dtype):
    # As many tensors as the network has, of its total size.
    sizes = [numbers[0] // 170] * 170
    parameters = [torch.randn(s, device=device).requires_grad_() for s in sizes]
    keys = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.randn_like(p)
    extra = {"fused": True} if cuda else {"foreach": True}
    try:
        optimiser = torch.optim.SGD(parameters, 0.03, momentum=0.9, weight_decay=1e-4, **extra)
    except TypeError:
        optimiser = torch.optim.SGD(parameters, 0.03, momentum=0.9, weight_decay=1e-4)

    # What mixed precision computes with, of both encoders.
    values = [p.detach() for p in parameters]
    copies = [torch.empty_like(p, dtype=dtype) for p in values + keys] if dtype != torch.float32 else []

    def run():
        optimiser.step()
        with torch.no_grad():
            if hasattr(torch, "_foreach_lerp_"):
                torch._foreach_lerp_(keys, values, 0.001)
            else:
                torch._foreach_mul_(keys, 0.999)
                torch._foreach_add_(keys, values, alpha=0.001)
            if copies and hasattr(torch, "_foreach_copy_"):
                torch._foreach_copy_(copies, values + keys)
            else:
                for copy, value in zip(copies, values + keys):
                    copy.copy_(value)

    return run


def unary(f):
    return lambda n, d: (lambda x: lambda: f(x))(image(n[0], n[3], n[1], n[2], d))


def linear(n, d):
    x, w, b = rand(n[0], n[1], dtype=d), rand(n[2], n[1], dtype=d), rand(n[2], dtype=d)
    return lambda: F.linear(x, w, b)


def add(n, d):
    a, b = image(n[0], n[3], n[1], n[2], d), image(n[0], n[3], n[1], n[2], d)
    return lambda: a + b


def on(f, make):
    return lambda n, d: (lambda x: lambda: f(x))(make(n, d))


works = {
    "conv2d": lambda n, d: conv(n, d, None),
    "conv2dBackwardInput": lambda n, d: conv(n, d, [True, False, False]),
    "conv2dBackwardWeight": lambda n, d: conv(n, d, [False, True, False]),
    "batchNorm": lambda n, d: norm(n, d, False),
    "batchNormBackward": lambda n, d: norm(n, d, True),
    "block": block,
    "augment": augment,
    "infoNce": info_nce,
    "denseMatch": match,
    "sgd": sgd,
    "linear": linear,
    "add": add,
    "relu": unary(F.relu),
    "maxPool2d": on(lambda x: F.max_pool2d(x, 3, 2, 1), lambda n, d: image(n[0], n[2], n[1], n[1], d)),
    "avgPool2d": on(lambda x: F.adaptive_avg_pool2d(x, 1), lambda n, d: image(n[0], n[2], n[1], n[1], d)),
    "l2Normalize": on(lambda x: F.normalize(x, dim=1), lambda n, d: rand(n[0], n[1], dtype=d)),
}


# Twice any cache: written in front of every measurement, so that no input lies in one.
flushed = torch.empty(2**27, device=device) if cuda else None


def once(body):
    if not cuda:
        start = time.perf_counter()
        body()
        return 1000 * (time.perf_counter() - start)
    # The host needs longer to launch a small op than the op takes: it does so while the device is busy.
    flushed.zero_()
    torch.cuda._sleep(600_000)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    body()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


print(torch.__version__, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    try:
        dtype = torch.bfloat16 if request["dtype"] == "bf16" else torch.float32
        body = works[request["op"]](request["numbers"], dtype)
        for _ in range(3):
            body()
        if cuda:
            torch.cuda.synchronize()
        times, spent = [], 0.0
        while len(times) < 5 or (len(times) < 50 and spent < 300):
            times.append(once(body))
            spent += times[-1]
        reply = {"milliseconds": statistics.median(times)}
        if cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            body()
            torch.cuda.synchronize()
            reply["peakMegabytes"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as error:  # out of memory, mostly: said, and the next row goes on
        reply = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    body = None
    if cuda:
        torch.cuda.empty_cache()
    print(json.dumps(reply), flush=True)

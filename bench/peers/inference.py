"""Pooled features of random images by a ResNet in evaluation mode, as bench/steps/inference.ts: torchvision's, or by onnxruntime the one
that a file holds. A JSON line for each size of --batch.

    inference.py --depth 50 --image 224 --batch 1,32 [--channels-last] [--amp] [--compile] [--device cuda] [--steps 20] [--threads 2]
    inference.py --onnx FILE ...
"""
import argparse, json, resource, time

import torch


def torch_features(args):
    import torchvision

    device = torch.device(args.device)
    network = getattr(torchvision.models, f"resnet{args.depth}")()
    network.fc = torch.nn.Identity()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    network = network.eval().to(device, memory_format=layout)
    if args.compile:
        network = torch.compile(network, mode=args.mode)

    def features(images):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            return network(images).float().cpu()

    return lambda images: images.to(device).contiguous(memory_format=layout), features


def onnx_features(args):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: {name: images.numpy()}, lambda feed: torch.from_numpy(session.run(None, feed)[0])


def main():
    parser = argparse.ArgumentParser()
    for name, value in {"depth": 50, "image": 224, "steps": 20, "threads": 2}.items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="default")
    parser.add_argument("--onnx")
    for name in ("channels-last", "amp", "compile"):
        parser.add_argument("--" + name, action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prepare, features = (onnx_features if args.onnx else torch_features)(args)
    for batch in map(int, args.batch.split(",")):
        images = prepare(torch.randn(batch, 3, args.image, args.image))
        for _ in range(3):
            features(images)
        times = []
        for _ in range(args.steps):
            start = time.perf_counter()
            features(images)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(args.steps):
            found = features(images)
        run = (time.perf_counter() - start) / args.steps
        assert found.isfinite().all()
        peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        row = {"batch": batch, "seconds": sorted(times)[len(times) // 2], "run_seconds": run, "fastest": min(times)}
        print(json.dumps({**row, "host_seconds": row["seconds"], "peak_bytes": peak, "torch": torch.__version__}), flush=True)


main()

"""What a model gives for an input: runOnnx.py MODEL INPUT.json, by onnxruntime, or node by node with PyTorch's functions.

INPUT.json: {"inputs": {"name": {"shape": [...], "type": "uint8", "float32" or "int64", "values": [...]}, ...}, "with": "onnxruntime" or
"torch"}. Prints {"name": {"shape": [...], "values": [...]}, ...}.
"""
import json
import sys

import numpy

path, given = sys.argv[1], json.load(open(sys.argv[2]))
inputs = {name: numpy.array(each["values"], dtype=each["type"]).reshape(each["shape"]) for name, each in given["inputs"].items()}


def by_runtime():
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def by_torch():
    import onnx
    import onnx.numpy_helper
    import torch
    import torch.nn.functional as F

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    values = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in model.graph.initializer}
    values.update({name: torch.tensor(each) for name, each in inputs.items()})

    def pads(a):
        assert a["pads"][:2] == a["pads"][2:], a
        return a["pads"][:2]

    def resize(a, x, sizes):
        size = [int(each) for each in sizes[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=a["coordinate_transformation_mode"] == b"align_corners")

    def reshape(a, x, sizes):
        return x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(sizes)])

    functions = {
        "Conv": lambda a, x, w, b=None: F.conv2d(x, w, b, a["strides"], pads(a), a["dilations"], a["group"]),
        "BatchNormalization": lambda a, x, w, b, m, v: F.batch_norm(x, m, v, w, b, eps=a["epsilon"]),
        "MaxPool": lambda a, x: F.max_pool2d(x, a["kernel_shape"], a["strides"], pads(a)),
        "AveragePool": lambda a, x: F.avg_pool2d(x, a["kernel_shape"], a["strides"], pads(a), count_include_pad=bool(a["count_include_pad"])),
        "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
        "Gemm": lambda a, x, w, b=0: x @ w.T + b,
        "MatMul": lambda a, x, y: x @ y,
        "Transpose": lambda a, x: x.permute(*a["perm"]),
        "Reshape": reshape,
        "Resize": resize,
        "Cast": lambda a, x: x.float(),
        "Identity": lambda a, x: x,
        "ReduceMean": lambda a, x: x.mean(a["axes"], keepdim=bool(a.get("keepdims", 1))),
        "ReduceSum": lambda a, x, axes: x.sum([int(axis) for axis in axes], keepdim=bool(a["keepdims"])),
        "ReduceL2": lambda a, x: x.norm(dim=a["axes"], keepdim=True),
        "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
        "Shape": lambda a, x: torch.tensor(x.shape),
        "Slice": lambda a, x, start, end: x[int(start) : int(end)],
        "ArgMax": lambda a, x: x.argmax(a["axis"], keepdim=bool(a["keepdims"])),
        "Expand": lambda a, x, shape: x.expand([max(own, int(size)) for own, size in zip(x.shape, shape)]),
        "Softmax": lambda a, x: x.softmax(a["axis"]),
        "LogSoftmax": lambda a, x: x.log_softmax(a["axis"]),
        "Relu": lambda a, x: x.relu(),
        "Max": lambda a, x, y: torch.maximum(x, y),
        "Min": lambda a, x, y: torch.minimum(x, y),
    }
    for name in ["Add", "Sub", "Mul", "Div", "Pow"]:
        functions[name] = lambda a, x, y, f=getattr(torch, {"Div": "true_divide"}.get(name, name.lower())): f(x, y)
    for name in ["Exp", "Log", "Sqrt", "Abs", "Reciprocal", "Sigmoid", "Tanh", "Erf"]:
        functions[name] = lambda a, x, f=getattr(torch, name.lower()): f(x)

    for node in model.graph.node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        operands = [values[name] for name in node.input if name]
        values[node.output[0]] = functions[node.op_type](attributes, *operands)
    return {output.name: values[output.name].numpy() for output in model.graph.output}


results = by_runtime() if given["with"] == "onnxruntime" else by_torch()
print(json.dumps({name: {"shape": list(value.shape), "values": value.flatten().tolist()} for name, value in results.items()}))

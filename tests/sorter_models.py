"""Small real ONNX models whose right answers are known, for the tests of `sorterd`.

    sorter_models.py FOLDER               writes them all, and answers.json, into the folder
    sorter_models.py FOLDER resnet18      and a network of resnet18's size, for measuring (45 MB)

No weights of trained networks can be had here, so these are made by hand: the detectors look at the mean colour of each cell of a
grid, as the heads of YOLO do, and the vectorizer is a pooling of channels; `features.onnx` has the layers of a residual
network, with random weights, and its answer comes from the onnx package's own evaluator.
"""
import json
import pathlib
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CELL = 64, 8
CELLS = SIDE // CELL
COUNT = CELLS * CELLS
# The boxes that every cell proposes around its middle.
WIDTH, HEIGHT = 10.0, 6.0


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save(path, nodes, inputs, outputs, constants):
    constants = [numpy_helper.from_array(numpy.asarray(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 6
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return model


def floats(array):
    return numpy.asarray(array, dtype=numpy.float32)


def middles():
    """x and y of the middle of each cell, as 1 x CELLS x CELLS each."""
    at = numpy.arange(CELLS) * CELL + CELL / 2
    x, y = numpy.meshgrid(at, at)
    return x[None], y[None]


def heads(rows):
    """Layers that answer 1 x len(rows) x CELLS x CELLS: each row is (weights of red, green, blue; constant per cell)."""
    weights = floats([row for row, _ in rows]).reshape(len(rows), 3, 1, 1)
    offsets = floats(numpy.concatenate([numpy.broadcast_to(o, (1, CELLS, CELLS)) for _, o in rows]))[None]
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Conv", ["cells", "weights"], ["seen"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["seen", "offsets"], ["raw"]),
    ]
    return nodes, {"weights": weights, "offsets": offsets}


NONE, RED, BLUE, ANY = (0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)


def box_rows():
    x, y = middles()
    return [(NONE, x), (NONE, y), (NONE, WIDTH), (NONE, HEIGHT)]


def yolov5(folder):
    """A red cell is class 0, a blue one class 1, each as sure as the colour is strong; objectness is that of either."""
    rows = box_rows() + [(ANY, 0), (RED, 0), (BLUE, 0)]
    nodes, constants = heads(rows)
    nodes += [
        helper.make_node("Reshape", ["raw", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["output"], perm=[0, 2, 1]),
    ]
    constants["flat"] = numpy.array([1, 7, COUNT], dtype=numpy.int64)
    images = [value("images", [1, 3, SIDE, SIDE])]
    save(folder / "yolov5.onnx", nodes, images, [value("output", [1, COUNT, 7])], constants)
    # As many exports do: the heads before the joining are outputs too.
    save(folder / "yolov5-two.onnx", nodes + [helper.make_node("Relu", ["cells"], ["head"])], images,
         [value("output", [1, COUNT, 7]), value("head", [1, 3, CELLS, CELLS])], constants)


def yolov8(folder):
    rows = box_rows() + [(RED, 0), (BLUE, 0)]
    nodes, constants = heads(rows)
    nodes.append(helper.make_node("Reshape", ["raw", "flat"], ["output"]))
    constants["flat"] = numpy.array([1, 6, COUNT], dtype=numpy.int64)
    save(folder / "yolov8.onnx", nodes, [value("images", [1, 3, SIDE, SIDE])],
         [value("output", [1, 6, COUNT])], constants)


def torchvision(folder):
    """boxes, labels and scores: corners; 1 for red and 2 for blue; how strong either is."""
    x, y = middles()
    corners = [(NONE, x - WIDTH / 2), (NONE, y - HEIGHT / 2), (NONE, x + WIDTH / 2), (NONE, y + HEIGHT / 2)]
    nodes, constants = heads(corners)
    nodes += [
        helper.make_node("Reshape", ["raw", "list4"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["boxes"], perm=[1, 0]),
        helper.make_node("Conv", ["cells", "blue", "one"], ["class"], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["class", "list"], ["classes"]),
        helper.make_node("Cast", ["classes"], ["labels"], to=TensorProto.INT64),
        helper.make_node("Conv", ["cells", "any"], ["strong"], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["strong", "list"], ["scores"]),
    ]
    constants |= {
        "list4": numpy.array([4, COUNT], dtype=numpy.int64), "list": numpy.array([COUNT], dtype=numpy.int64),
        "blue": floats([[[[0]], [[0]], [[1]]]]), "one": floats([1.01]), "any": floats([[[[1]], [[0]], [[1]]]]),
    }
    labels = helper.make_tensor_value_info("labels", TensorProto.INT64, [COUNT])
    outputs = [value("boxes", [COUNT, 4]), labels, value("scores", [COUNT])]
    save(folder / "torchvision.onnx", nodes, [value("images", [1, 3, SIDE, SIDE])], outputs, constants)


def pooled(folder):
    """Features: the means of the channels times known weights, as N x 5 x 1 x 1, as N x 5, and for one picture only."""
    weights = floats([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [-2, 0, 0.5]]).reshape(5, 3, 1, 1)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Conv", ["means", "weights"], ["features"], kernel_shape=[1, 1]),
    ]
    images = [value("images", ["N", 3, 224, 224])]
    save(folder / "pooled.onnx", nodes, images, [value("features", ["N", 5, 1, 1])], {"weights": weights})
    flat = nodes + [helper.make_node("Flatten", ["features"], ["vector"], axis=1)]
    save(folder / "pooled-flat.onnx", flat, images, [value("vector", ["N", 5])], {"weights": weights})
    single = nodes + [helper.make_node("Reshape", ["features", "shape"], ["vector"])]
    save(folder / "pooled-single.onnx", single, [value("images", [1, 3, 224, 224])], [value("vector", [1, 5])],
         {"weights": weights, "shape": numpy.array([1, 5], dtype=numpy.int64)})
    save(folder / "unpooled.onnx", [helper.make_node("Conv", ["images", "weights"], ["map"], kernel_shape=[1, 1])],
         images, [value("map", ["N", 5, 224, 224])], {"weights": weights})


def residual(folder, name, side, widths, blocks):
    """A residual network with the layers of resnet18 (for its widths and blocks), weights seeded, features pooled."""
    random = numpy.random.default_rng(18)
    nodes, constants = [], {}

    def conv(source, target, inputs, outputs, kernel, stride):
        scale = numpy.sqrt(2.0 / (inputs * kernel * kernel))
        constants[target + "_w"] = floats(random.standard_normal((outputs, inputs, kernel, kernel)) * scale)
        constants[target + "_b"] = floats(random.standard_normal(outputs) * 0.1)
        pad = kernel // 2
        nodes.append(helper.make_node("Conv", [source, target + "_w", target + "_b"], [target],
                                      kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4))
        return target

    def relu(source):
        nodes.append(helper.make_node("Relu", [source], [source + "_r"]))
        return source + "_r"

    at = relu(conv("images", "stem", 3, widths[0], 7, 2))
    nodes.append(helper.make_node("MaxPool", [at], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    at, before = "pool", widths[0]
    for n, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if n > 0 and block == 0 else 1
            tag = f"l{n}b{block}"
            inner = conv(relu(conv(at, tag + "a", before, width, 3, stride)), tag + "b", width, width, 3, 1)
            short = conv(at, tag + "s", before, width, 1, stride) if stride == 2 or before != width else at
            nodes.append(helper.make_node("Add", [inner, short], [tag]))
            at, before = relu(tag), width
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"], axis=1))
    return save(folder / f"{name}.onnx", nodes, [value("images", ["N", 3, side, side])],
                [value("features", ["N", widths[-1]])], constants)


def picture(side, seed):
    """A picture that the test makes by the same formula, red, green, blue."""
    y, x, c = numpy.meshgrid(numpy.arange(side), numpy.arange(side), numpy.arange(3), indexing="ij")
    return (x * (3 + seed) + y * 5 + c * 70 + x * y // 7) % 256


def answer(model, side, seed):
    from onnx.reference import ReferenceEvaluator

    mean, std = numpy.array([0.485, 0.456, 0.406]), numpy.array([0.229, 0.224, 0.225])
    pixels = (picture(side, seed) / 255 - mean) / std
    images = floats(pixels.transpose(2, 0, 1)[None])
    return ReferenceEvaluator(model).run(None, {"images": images})[0][0].tolist()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    yolov5(folder)
    yolov8(folder)
    torchvision(folder)
    pooled(folder)
    small = residual(folder, "features", SIDE, [8, 16, 32], 2)
    answers = {"features": [answer(small, SIDE, seed) for seed in range(3)]}
    (folder / "answers.json").write_text(json.dumps(answers))
    if sys.argv[2:] == ["resnet18"]:
        residual(folder, "resnet18", 224, [64, 128, 256, 512], 2)


main()

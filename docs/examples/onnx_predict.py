"""What predict.py says of images, from an ONNX file of a model of images: NumPy, Pillow and onnxruntime alone.

python onnx_predict.py best_model.onnx image.png [image.jpg ...]        # PNG, JPEG, WebP → a line of JSON an image
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path, size):
    """A file → upright [H, W, 1 or 3], uint8, or float32 in [0, 1] of 16 bits."""
    head = Path(path).read_bytes()[:26]
    if head[12:16] == b"IHDR" and head[24] == 16 and head[25]:
        sys.exit(f"{path}: a colour PNG of 16 bits, of which Pillow keeps 8")
    image, least = Image.open(path, formats=("PNG", "JPEG", "WEBP")), [2 * side for side in size]
    image.draft(None, least if image.getexif().get(0x0112, 1) > 4 else least[::-1])  # JPEG at a smaller scale
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        return ((values - values.min()) / max(np.ptp(values), 1))[..., None]
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.atleast_3d(np.asarray(image.convert(mode)))


def shrink(x, size):
    """Area means, summed in float32 and rounded as OpenCV's INTER_AREA does."""
    steps, mean = [old / new for old, new in zip(x.shape, size)], x.astype(np.float32)
    whole = all(step.is_integer() for step in steps)
    for axis in (1, 0):
        first, pixel = np.arange(size[axis])[:, None] * steps[axis], np.arange(x.shape[axis])
        share = np.minimum(first + steps[axis], pixel + 1) - np.maximum(first, pixel)
        share = np.where(share > 1e-3, share / (1 if whole else steps[axis]), 0).astype(np.float32)
        lines = np.moveaxis(mean, axis, 0)
        sums = np.zeros((size[axis], *lines.shape[1:]), np.float32)
        for line, weight in zip(lines, share.T):
            sums[weight > 0] += weight[weight > 0, None, None] * line
        mean = np.moveaxis(sums, 0, axis)
    mean = mean * np.float32(1 / np.prod(steps) if whole else 1)
    halves = 0.01 if steps == [2, 2] else 0  # which are rounded up, else to the even neighbour
    return np.rint(mean + halves).astype(np.uint8) if x.dtype == np.uint8 else mean


def grow(x, size):
    """Linear, as OpenCV's INTER_LINEAR, which has 11 bits for the weights of uint8."""
    taps, eight = [], x.dtype == np.uint8
    for old, new in zip(x.shape, size):
        at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32 if eight else np.float64)
        low, part = np.floor(at).astype(int), (at % 1).astype(np.float32)
        parts = [np.rint(p * np.float32(2048)).astype(int) if eight else p for p in (1 - part, part)]
        taps.append(list(zip(np.clip([low, low + 1], 0, old - 1), parts)))
    rows = sum(x[:, at] * part[:, None] for at, part in taps[1])
    pair = [(rows[at] >> 4 if eight else rows[at]) * part[:, None, None] for at, part in taps[0]]
    return ((pair[0] >> 16) + (pair[1] >> 16) + 2 >> 2).astype(np.uint8) if eight else sum(pair)


def prepare(path, how):
    """A file → float32 [C, H, W]; how: the metadata's `input`."""
    image, inner = read(path, how["size"]), how["size"]
    if how["channels"] < image.shape[2]:
        grey = image.astype(np.uint32) @ np.uint32(how["colour_to_grey"]["weights"]) + 32768 >> 16
        image = grey.astype(np.uint8)[..., None]
    if how["resize"]["mode"] == "letterbox":
        ratio = min(new / old for new, old in zip(inner, image.shape))
        inner = [min(new, max(1, round(old * ratio))) for new, old in zip(inner, image.shape)]
    fitted = grow(shrink(image, [min(pair) for pair in zip(inner, image.shape)]), inner)
    pads = [((gap := whole - part) // 2, gap - gap // 2) for whole, part in zip(how["size"], inner)]
    unit = np.pad(fitted, [*pads, (0, 0)]).transpose(2, 0, 1) / (255 if image.dtype == np.uint8 else 1)
    return ((unit - np.reshape(how["mean"], (-1, 1, 1))) / np.reshape(how["std"], (-1, 1, 1))).astype(np.float32)


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1])
    metadata = session.get_modelmeta().custom_metadata_map
    how = json.loads(metadata.get("input", '{"kind": "what its metadata do not say: export it again"}'))
    if how["kind"] != "images" or len(session.get_inputs()) > 1:
        sys.exit(f"{sys.argv[1]} takes studies or {how['kind']}; this is for single images")
    for name in sys.argv[2:]:
        numbers = session.run(None, {"image": prepare(name, how)[None]})[0][0].tolist()
        print(json.dumps({"image": name, metadata["output"]: dict(zip(json.loads(metadata["classes"]), numbers))}))

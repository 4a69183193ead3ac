"""data.transforms: where the randomness comes from, geometry, numbers, and what survives a pickle."""

import json
import multiprocessing
import pickle
import random
import sys

import numpy as np
import pytest

from configs.errors import ConfigError
from data.transforms.images import (
    AlbumentationsAugmentation,
    LightAugmentation,
    Preprocess,
    normalize,
    resize,
    sample_rng,
)
from tests.waiting import LIMIT_S

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATIONS = {"light": LightAugmentation, "albumentations": AlbumentationsAugmentation}


def image_of(height=40, width=48, channels=1, dtype=np.uint8, seed=0):
    """A smooth image, as radiographs are, so that interpolation has something to interpolate."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(2, 9, (channels, 3))
    planes = [0.5 + 0.24 * (np.sin(a * x + c) + np.cos(b * y)) for a, b, c in waves]
    image = np.rint(255 * np.stack(planes, axis=-1)).astype(np.uint8)
    return image if dtype == np.uint8 else (image / 255).astype(dtype)


def left_marker(channels=1, dtype=np.uint8):
    """Black, with a bright disc in the left half."""
    y, x = np.mgrid[0:64, 0:64]
    disc = ((y - 32) ** 2 + (x - 16) ** 2 < 64).astype(dtype)
    return np.repeat((disc * (255 if dtype == np.uint8 else 1))[:, :, None], channels, axis=2)


def is_left(image):
    bright = image.astype(np.float64) - np.median(image)
    return bright[:, :32].sum() > bright[:, 32:].sum()


@pytest.fixture(params=sorted(AUGMENTATIONS))
def make(request):
    return AUGMENTATIONS[request.param]


# Where the randomness comes from


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_a_function_of_seed_epoch_and_index(make, channels, dtype):
    image, first, second = image_of(channels=channels, dtype=dtype), make(), make()
    seen = set()
    for triple in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 3, 7)]:
        out = first(image, sample_rng(*triple))
        assert out.shape == image.shape and out.dtype == dtype
        first(image, sample_rng(9, 9, 9))  # what came before leaves no trace
        np.testing.assert_array_equal(first(image, sample_rng(*triple)), out)
        np.testing.assert_array_equal(second(image, sample_rng(*triple)), out)
        seen.add(out.tobytes())
    assert len(seen) == 5


def test_sample_rng_differs_for_neighbouring_triples():
    triples = [(s, e, i) for s in (0, 1, 2**32, 2**32 + 1) for e in range(4) for i in range(4)]
    assert len({sample_rng(*triple).integers(2**63) for triple in triples}) == len(triples)
    assert sample_rng(1, 2, 3).integers(2**63) == sample_rng(1, 2, 3).integers(2**63)
    with pytest.raises(ValueError):
        sample_rng(-1, 0, 0)


def test_global_random_states_are_neither_read_nor_changed(make):
    image, results = image_of(channels=3), []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is what is tested
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        augmentation = make(horizontal_flip=0.5)
        results.append([augmentation(image, sample_rng(0, 0, index)) for index in range(20)])
        assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    np.testing.assert_array_equal(results[0], results[1])


def test_the_dice_of_the_albumentations_steps_are_independent():
    # One seed for every step would let "blur or noise" and "holes", both 25 %, always come together.
    augmentation, seen = AlbumentationsAugmentation(), set()
    _, _, sharpness, holes = augmentation._compose.transforms
    for step, name in ((sharpness.transforms[0], "n"), (sharpness.transforms[1], "b"), (holes, "h")):
        step.apply_with_params = lambda params, name=name, **targets: drawn.add(name) or targets
    for index in range(200):
        drawn = set()
        augmentation(image_of(), sample_rng(0, 0, index))
        seen.add("".join(sorted(drawn)))
    assert seen == {"", "n", "b", "h", "hn", "bh"}


def test_the_image_handed_over_is_not_changed(make):
    image = image_of(channels=3)
    image.flags.writeable = False
    copy = image.copy()
    for index in range(30):
        make()(image, sample_rng(0, 0, index))
    np.testing.assert_array_equal(image, copy)


# Left and right


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_left_stays_left_unless_a_flip_is_asked_for(make, dtype):
    augmentation, image = make(), left_marker(dtype=dtype)
    assert all(is_left(augmentation(image, sample_rng(0, 0, index))) for index in range(200))


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_flips_come_at_the_rate_asked_for(make, rate):
    augmentation, image = make(horizontal_flip=rate), left_marker()
    flips = sum(not is_left(augmentation(image, sample_rng(1, 0, index))) for index in range(400))
    assert abs(flips / 400 - rate) <= 4 * np.sqrt(rate * (1 - rate) / 400)


# The light augmentation's numbers


def only(**limits):
    """A LightAugmentation with all limits 0 but these."""
    names = ("rotation_degrees", "scale", "translate", "brightness", "contrast")
    return LightAugmentation(
        **{name: limits.get(name, 0.0) for name in names},
        **{name: value for name, value in limits.items() if name not in names},
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_all_limits_zero_is_the_identity_and_a_sure_flip_the_mirror_image(dtype):
    image = image_of(33, 50, 3, dtype)
    np.testing.assert_array_equal(only()(image, sample_rng(0, 0, 0)), image)
    flipped = only(horizontal_flip=1.0)(image, sample_rng(0, 0, 0))
    np.testing.assert_array_equal(flipped, image[:, ::-1])


def test_brightness_and_contrast_follow_the_formula():
    image = image_of(dtype=np.float32)
    rng = sample_rng(3, 0, 0)
    *_, brightness, contrast = rng.uniform(-1, 1, 6)
    mean = image.mean(dtype=np.float64)
    expected = np.clip((image - mean) * (1 + 0.3 * contrast) + mean + 0.2 * brightness, 0, 1)
    out = only(brightness=0.2, contrast=0.3)(image, sample_rng(3, 0, 0))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_the_warp_moves_a_point_where_the_formula_says():
    y, x = np.mgrid[0:101, 0:121]
    for index in range(10):
        angle, scale, down, right = sample_rng(0, 0, index).uniform(-1, 1, 6)[:4] * (20, 0.2, 0.1, 0.1)
        spot = np.array([80.0, 30.0])  # x, y
        blob = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 18).astype(np.float32)[:, :, None]
        augmentation = only(rotation_degrees=20, scale=0.2, translate=0.1)
        out = augmentation(blob, sample_rng(0, 0, index))[:, :, 0].astype(np.float64)
        found = np.array([(out * x).sum(), (out * y).sum()]) / out.sum()
        turn = np.deg2rad(angle)
        # Anticlockwise as seen, with y pointing down.
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        centre = np.array([60.0, 50.0])
        expected = (1 + scale) * rotation @ (spot - centre) + centre + (right * 121, down * 101)
        np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_light_augmentation_of_both_dtypes_agrees(channels):
    augmentation = LightAugmentation(horizontal_flip=0.5)
    for index in range(30):
        image = image_of(channels=channels, seed=index)
        coarse = augmentation(image, sample_rng(0, 0, index)) / 255.0
        fine = augmentation((image / 255).astype(np.float32), sample_rng(0, 0, index))
        assert np.abs(coarse - fine).max() <= 2.5 / 255


def test_float_images_stay_in_range_and_grey_stays_grey(make):
    augmentation, image = make(), image_of(channels=1, dtype=np.float32)
    image = np.repeat((image - image.min()) / np.ptp(image), 3, axis=2)
    for index in range(60):
        out = augmentation(image, sample_rng(0, 0, index))
        assert out.min() >= 0.0 and out.max() <= 1.0
        np.testing.assert_allclose(out[..., 0], out[..., 2], atol=1e-6)


@pytest.mark.parametrize(
    "limits",
    [{"horizontal_flip": 1.5}, {"scale": 1.0}, {"rotation_degrees": -1}, {"translate": float("nan")}],
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} must lie in"):
        LightAugmentation(**limits)


def test_without_albumentations_the_error_names_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ConfigError, match=r"pip install albumentations.*DATA.use_albumentations=false"):
        AlbumentationsAugmentation()


# Resize


def slow_area_mean(image, factor):
    height, width, channels = (image.shape[0] // factor, image.shape[1] // factor, image.shape[2])
    out = np.empty((height, width, channels))
    for i in range(height):
        for j in range(width):
            block = image[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            out[i, j] = block.astype(np.float64).mean(axis=(0, 1))
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_shrinking_is_the_area_mean(factor, channels):
    image = np.random.default_rng(0).integers(0, 256, (30, 60, channels), np.uint8)
    size, expected = (30 // factor, 60 // factor), slow_area_mean(image, factor)
    coarse = resize(image, size)
    assert coarse.dtype == np.uint8 and np.abs(coarse - expected).max() <= 0.5 + 1e-4
    fine = resize(image.astype(np.float32) / 255, size)
    np.testing.assert_allclose(fine, expected / 255, atol=1e-6)


def test_growing_is_linear():
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[None, :, None].repeat(4, axis=0)
    expected = np.interp((np.arange(24) + 0.5) / 3 - 0.5, np.arange(8), ramp[0, :, 0])
    np.testing.assert_allclose(resize(ramp, (4, 24))[0, :, 0], expected, atol=1e-6)


def test_an_axis_that_shrinks_is_averaged_while_the_other_grows():
    stripes = np.tile(np.array([0.0, 1.0], np.float32), 32)[None, :, None].repeat(4, axis=0)
    np.testing.assert_allclose(resize(stripes, (16, 16)), 0.5, atol=1e-6)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (100, 20), (20, 100), (40, 48), (1, 1)])
def test_resize_keeps_channels_and_dtype(size, channels, dtype, mode):
    out = resize(image_of(channels=channels, dtype=dtype), size, mode)
    assert out.shape == (*size, channels) and out.dtype == dtype


@pytest.mark.parametrize(
    ("shape", "size", "rows", "columns"),
    [
        ((100, 50), (64, 64), (0, 64), (16, 48)),
        ((50, 100), (64, 64), (16, 48), (0, 64)),
        ((10, 20), (64, 64), (16, 48), (0, 64)),
        ((64, 64), (64, 64), (0, 64), (0, 64)),
        ((100, 50), (32, 65), (0, 32), (24, 40)),
        ((100, 50), (50, 30), (0, 50), (2, 27)),
        ((1000, 2), (64, 64), (0, 64), (31, 32)),
    ],
)
def test_letterbox_geometry(shape, size, rows, columns):
    out = resize(np.full((*shape, 1), 200, np.uint8), size, "letterbox")
    expected = np.zeros((*size, 1), np.uint8)
    expected[slice(*rows), slice(*columns)] = 200
    np.testing.assert_array_equal(out, expected)


def test_unknown_mode_and_impossible_size_are_refused():
    with pytest.raises(ConfigError, match="unknown resize mode 'crop': one of 'stretch', 'letterbox'"):
        resize(image_of(), (8, 8), "crop")
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        resize(image_of(), (0, 8))


# Normalise


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(3, MEAN, STD), (1, MEAN, STD), (1, (0.5,), (0.25,)), (3, (0.5,), (0.25,))]
)
def test_normalise_follows_the_formula(channels, mean, std, dtype):
    image = image_of(channels=channels, dtype=dtype)
    out = normalize(image, mean, std)
    unit = image.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    for c in range(channels):
        centre = mean[c] if len(mean) == channels else np.mean(mean)
        spread = std[c] if len(std) == channels else np.mean(std)
        np.testing.assert_allclose(out[c], (unit[..., c] - centre) / spread, atol=2e-6)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    assert out.shape == (channels, *image.shape[:2])


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5, 0.5), (0.2,), "mean has 2 values for 3 channels"),
        ((0.5,), (0.0,), "std must be finite and above 0"),
        ((float("nan"),), (0.2,), "mean must be finite"),
        ((), (0.2,), "mean has 0 values"),
    ],
)
def test_impossible_statistics_are_refused(mean, std, words):
    with pytest.raises(ConfigError, match=words):
        normalize(image_of(channels=3), mean, std)
    with pytest.raises(ConfigError, match=words):
        Preprocess((8, 8), 3, mean, std)


# Preprocess


def raw_images():
    grey = image_of(50, 70)[:, :, 0]
    colour = image_of(50, 70, 3)
    return {
        "grey": grey,
        "grey_axis": grey[:, :, None],
        "colour": colour,
        "sixteen_bits": grey.astype(np.uint16) * 257,
        "float": (grey / 255).astype(np.float32),
        "float_colour": (colour / 255).astype(np.float32),
    }


@pytest.mark.parametrize("name", raw_images())
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_every_kind_of_image_becomes_the_same_kind_of_input(name, channels, mode):
    raw = raw_images()[name]
    for augmentation in (None, LightAugmentation(), AlbumentationsAugmentation()):
        preprocess = Preprocess((32, 24), channels, MEAN, STD, mode, augmentation)
        out = preprocess(raw, sample_rng(0, 0, 0))
        assert out.shape == (channels, 32, 24) and out.dtype == np.float32
        assert out.flags.c_contiguous and np.isfinite(out).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_dtypes_agree_within_the_rounding_of_eight_bits(channels):
    raw, preprocess = raw_images(), Preprocess((20, 28), channels, (0.0,), (1.0,))
    for coarse, fine in (("grey", "float"), ("colour", "float_colour")):
        assert np.abs(preprocess(raw[coarse]) - preprocess(raw[fine])).max() <= 1.05 / 255
    # The readers stretch 16 bits over their own range.
    stretched = (raw["grey"] - raw["grey"].min()) / np.float32(np.ptp(raw["grey"]))
    np.testing.assert_allclose(preprocess(raw["sixteen_bits"]), preprocess(stretched), atol=1e-6)


def test_grey_is_repeated_after_the_augmentation_and_resizing_comes_before_it():
    seen = []

    def spy(image, rng):
        seen.append(image.shape)
        return image

    out = Preprocess((16, 20), 3, (0.5,), (0.5,), augmentation=spy)(image_of()[:, :, 0], sample_rng(0, 0, 0))
    assert seen == [(16, 20, 1)] and out.shape == (3, 16, 20)
    np.testing.assert_array_equal(out[0], out[2])


def test_an_augmentation_without_a_generator_is_refused():
    with pytest.raises(ValueError, match=r"rng=sample_rng\(seed, epoch, index\)"):
        Preprocess((8, 8), 1, (0.5,), (0.5,), augmentation=LightAugmentation())(image_of())


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="channels must be 1 or 3, got 2"):
        Preprocess((8, 8), 2, (0.5,), (0.5,))
    with pytest.raises(ConfigError, match="unknown resize mode"):
        Preprocess((8, 8), 1, (0.5,), (0.5,), "crop")


@pytest.mark.parametrize("channels", [1, 3])
def test_as_dict_round_trip_through_json(channels):
    preprocess = Preprocess((24, 32), channels, MEAN, STD, "letterbox", LightAugmentation())
    again = Preprocess.from_dict(json.loads(json.dumps(preprocess.as_dict())))
    assert again.as_dict() == preprocess.as_dict() and again.augmentation is None
    plain = Preprocess((24, 32), channels, MEAN, STD, "letterbox")
    np.testing.assert_array_equal(again(image_of()), plain(image_of()))


def test_from_dict_names_missing_and_unknown_keys():
    values = Preprocess((8, 8), 1, (0.5,), (0.5,)).as_dict()
    values["sise"] = values.pop("size")
    with pytest.raises(ConfigError, match=r"missing keys \['size'\], unknown keys \['sise'\]"):
        Preprocess.from_dict(values)


def test_pickle_round_trip_gives_the_same_images(make):
    preprocess = Preprocess((32, 32), 1, MEAN, STD, augmentation=make(horizontal_flip=0.3))
    preprocess(image_of(), sample_rng(5, 0, 0))  # also one that has been used
    again = pickle.loads(pickle.dumps(preprocess))
    for index in range(10):
        expected = preprocess(image_of(), sample_rng(0, 0, index))
        np.testing.assert_array_equal(again(image_of(), sample_rng(0, 0, index)), expected)


def _augment(preprocess, index):
    return preprocess(image_of(), sample_rng(0, 0, index))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_worker_process_makes_the_same_images(make):
    preprocess = Preprocess((32, 32), 1, MEAN, STD, augmentation=make())
    with multiprocessing.get_context("fork").Pool(1) as pool:
        results = pool.starmap_async(_augment, [(preprocess, index) for index in range(4)]).get(LIMIT_S)
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result, _augment(preprocess, index))

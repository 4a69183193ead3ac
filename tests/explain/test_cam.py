"""CAMs against pytorch-grad-cam, slow formulas in float64, and what they promise on every family of backbones."""

import copy

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from configs.errors import ExplanationError
from explain.cam import CAM_METHODS, class_activation_maps
from explain.geometry import cells_to_pixels
from explain.network import Layer, explaining, resolve_level
from models import list_backbones
from models.backbones.families import smallest_of_each_family
from tests.explain.networks import PlainResNet, images, network, size_for
from utils.batch import Logits

SMALL = smallest_of_each_family(list_backbones())
LARGER = [name for name in list_backbones() if name not in SMALL]
COSTLY = ("sam_base", "vim_tiny")  # built for 1024 px; a scan in Python
QUICK = ("resnet18", "mobilenetv3_small", "swin_tiny", "vit_tiny")
BY_GRADIENT = ("grad_cam", "grad_cam_plus_plus", "layer_cam")
THEIRS = {"grad_cam": GradCAM, "grad_cam_plus_plus": GradCAMPlusPlus, "layer_cam": LayerCAM, "score_cam": ScoreCAM}


def their_scale(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """pytorch-grad-cam's: least to 0 and greatest to 1, resized, and the same again."""

    def unit(m: np.ndarray) -> np.ndarray:
        m = m - m.min()
        return m / (1e-7 + m.max())

    return np.stack([unit(cv2.resize(unit(np.maximum(m, 0)), size[::-1])) for m in raw])


def ours_raw(model, x: torch.Tensor, k: int, method: str, level) -> np.ndarray:
    with explaining(model):
        return CAM_METHODS[method].maps(Layer(model, x, level), [k])[:, 0].detach().numpy()


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("level", [0, 2, 4])
def test_equals_pytorch_grad_cam_on_a_plain_resnet(method, level):
    if method == "score_cam" and level != 0:
        pytest.skip(
            "pytorch-grad-cam enlarges Score-CAM's masks with align_corners=True; at level 0 nothing is enlarged"
        )
    plain = PlainResNet().eval()
    model = plain.forward_from(level)
    x = images(2, 3, 24, 24) if method != "score_cam" else images(1, 3, 12, 12)
    size = tuple(x.shape[2:])
    theirs = THEIRS[method](plain, [plain.layers[level]])(x, [ClassifierOutputTarget(3)] * len(x))
    raw = ours_raw(model, x, 3, method, level)
    ours = their_scale(raw, size)
    print(f"{method}, level {level}: largest difference {np.abs(ours - theirs).max():.2e}")
    assert theirs.max() > 0.9 and np.abs(ours - theirs).max() < 1e-4
    public = class_activation_maps(model, x, [3], method, level)[:, 0].numpy()
    for i in range(len(x)):
        # Ours is not moved so that its least value is 0: of maps that are above it everywhere, only theirs is.
        lifted = public[i] - public[i].min()
        assert np.abs(lifted / lifted.max() - theirs[i]).max() < 1e-4


@pytest.mark.parametrize("method", BY_GRADIENT)
@pytest.mark.parametrize("level", [1, 3])
def test_equals_pytorch_grad_cam_on_a_level_of_ours(method, level):
    """Their hook on a module after which only this level goes on; identity modules give them one to hook."""
    model = network(attention="cbam")

    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.level = model, nn.Identity()

        def forward(self, x):
            features = [f.detach() for f in model.forward_features(x)]  # the finer level is not the cause of others
            features[level] = self.level(features[level].requires_grad_())
            return model.forward_head(features) * 1e7  # far above the constants in their denominators

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.fusion, self.inner = model.backbone, model.fusion, model

        forward_features = staticmethod(model.forward_features)
        forward_fused = staticmethod(model.forward_fused)

        def forward_head(self, features):
            return model.forward_head(features) * 1e7

    hooked, x = Hooked().eval(), images(2, 3, 64, 64)
    theirs = THEIRS[method](hooked, [hooked.level])(x, [ClassifierOutputTarget(1)] * 2)
    ours = their_scale(ours_raw(Scaled().eval(), x, 1, method, level), (64, 64))
    print(f"{method}, level {level}: largest difference {np.abs(ours - theirs).max():.2e}")
    assert theirs.max() > 0.9 and np.abs(ours - theirs).max() < 1e-4


def test_eigen_cam_equals_pytorch_grad_cam_where_its_centring_does_nothing():
    """Behind an instance normalisation every channel has mean 0; the sign is theirs to lose."""
    torch.manual_seed(0)
    plain = PlainResNet().eval()
    plain.layers[2].append(nn.InstanceNorm2d(128))
    model, x = plain.forward_from(2), images(2, 3, 32, 32)
    raw = ours_raw(model, x, 0, "eigen_cam", 2)
    theirs = EigenCAM(plain, [plain.layers[2]])(x, [ClassifierOutputTarget(0)] * 2)
    for mine, other in zip(raw, theirs):
        found = [np.abs(their_scale(sign * mine[None], (32, 32))[0] - other).max() for sign in (1, -1)]
        assert min(found) < 1e-4


def test_eigen_cam_is_the_first_singular_vector_of_numpy():
    model, x = network(), images(2, 3, 64, 64)
    activations = model.forward_features(x)[1].detach().double().numpy()
    for mine, a in zip(ours_raw(model, x, 0, "eigen_cam", 1), activations):
        flat = a.reshape(len(a), -1).T
        projection = (flat @ np.linalg.svd(flat)[2][0]).reshape(mine.shape)
        projection *= np.sign(projection.sum())
        assert np.abs(mine - projection).max() < 1e-4 * np.abs(projection).max()


def slow_grad_cam(model, x: torch.Tensor, k: int, level: int) -> np.ndarray:
    """One image, float64, central differences per channel instead of autograd: w_k = Σ ∂y/∂A / cells."""
    model = copy.deepcopy(model).double()
    features = [f.detach() for f in model.forward_features(x.double())]
    result = torch.zeros(features[level].shape[2:], dtype=torch.float64)
    cells, step = result.numel(), 1e-5
    for channel in range(features[level].shape[1]):
        values = []
        for sign in (1, -1):
            moved = list(features)
            moved[level] = moved[level].clone()
            moved[level][:, channel] += sign * step
            values.append(float(Logits.of(model.forward_head(moved)).fine[0, k].detach()))
        result += (values[0] - values[1]) / (2 * step) / cells * features[level][0, channel]
    return result.numpy()


def test_grad_cam_against_differences_in_float64():
    model, x = network("mobilenetv3_small", attention="multi_scale"), images(1, 3, 64, 64)
    slow = slow_grad_cam(model, x, 2, 0)
    fast = ours_raw(model.double(), x.double(), 2, "grad_cam", 0)[0]
    assert np.abs(slow).max() > 0 and np.abs(slow - fast).max() < 1e-5 * np.abs(slow).max()


def test_grad_cam_plus_plus_against_the_papers_formula():
    model, x = network().double(), images(1, 3, 64, 64).double()
    with explaining(model):
        layer = Layer(model, x, 2)
        a, g = layer.activations[0].numpy(), next(layer.gradients([1]))[0].numpy()
    total = np.zeros(a.shape[1:])
    for k in range(len(a)):
        weight = 0.0
        for i in np.ndindex(a.shape[1:]):
            below = 2 * g[k][i] ** 2 + a[k].sum() * g[k][i] ** 3
            weight += g[k][i] ** 2 / below * max(g[k][i], 0) if g[k][i] != 0 else 0.0
        total += weight * a[k]
    mine = ours_raw(model, x, 1, "grad_cam_plus_plus", 2)[0]
    assert np.abs(mine - total).max() < 1e-9 * np.abs(total).max()


def check_promises(name: str, methods: tuple[str, ...]) -> None:
    """Shape, range, and that classes differ; a map may be empty, but not all of an image's."""
    size = size_for(name)
    model, x = network(name, size, classes=5), images(2, 3, *size)
    for method in methods:
        maps = class_activation_maps(model, x, range(5), method, 1 if method == "grad_cam" else "fused")
        assert maps.shape == (2, 5, *size) and maps.dtype == torch.float32 and not maps.requires_grad
        assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1
        spread = maps.flatten(2).amax(-1) - maps.flatten(2).amin(-1)
        assert (spread.amax(1) > 0.01).all(), f"{method} on {name}: every map of an image is constant"
        assert ((maps.flatten(2).amax(-1) - 1).abs() < 1e-5)[spread > 0].all()
        first = maps[:, :1].expand_as(maps)
        if CAM_METHODS[method].class_specific:
            # Score-CAM's softmax over nearly equal scores of random weights makes classes differ by little.
            assert (maps - first).abs().max() > (1e-6 if method == "score_cam" else 0.01), f"{method} on {name}"
        else:
            assert torch.equal(maps, first)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SMALL])
def test_every_family(name):
    check_promises(name, ("grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_score_cam_on_every_family(name):
    check_promises(name, ("score_cam",))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COSTLY, *LARGER])
def test_the_rest_of_the_registry(name):
    check_promises(name, ("grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam"))


@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize("level", [0, -1, "fused"])
def test_a_batch_is_its_images(method, level):
    if method == "score_cam" and level == -1:
        level = 1  # a forward pass per channel: 24 instead of 576
    model, x = network("mobilenetv3_small", size=(32, 32)), images(3, 3, 32, 32)
    together = class_activation_maps(model, x, [0, 2], method, level)
    alone = torch.cat([class_activation_maps(model, one, [0, 2], method, level) for one in x.split(1)])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
    swapped = class_activation_maps(model, x.flip(0), [2, 0], method, level)
    torch.testing.assert_close(swapped.flip(0).flip(1), together, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_the_network_stays_as_it_was(method):
    model, x = network("mobilenetv3_small"), images(2, 3, 64, 64)
    model.train()
    model.fusion.eval()
    modes = [module.training for module in model.modules()]
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    next(model.classifier.parameters()).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    class_activation_maps(model, x, [0], method, 0 if method == "score_cam" else -1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    grads = [p.grad for p in model.parameters()]
    assert torch.equal(grads[0], torch.ones_like(grads[0])) and all(g is None for g in grads[1:])
    assert not x.requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_inside_the_callers_modes(context):
    model, x = network("mobilenetv3_small"), images(1, 3, 64, 64)
    expected = class_activation_maps(model, x, [1])
    with context():
        assert torch.equal(class_activation_maps(model, x * 1.0, [1]), expected)


def test_checkpointing_and_channels_last_change_nothing():
    model, x = network(), images(2, 3, 64, 64)
    expected = class_activation_maps(model, x, [0, 1], "layer_cam", 2)
    model.enable_gradient_checkpointing(segments=4)
    torch.testing.assert_close(class_activation_maps(model, x, [0, 1], "layer_cam", 2), expected)
    model = model.to(memory_format=torch.channels_last)
    last = class_activation_maps(model, x.to(memory_format=torch.channels_last), [0, 1], "layer_cam", 2)
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)


def test_hierarchical_heads_are_explained_by_their_fine_logits():
    model = network(hierarchical=True, num_coarse_classes=2, classes=6)
    maps = class_activation_maps(model, images(1, 3, 64, 64), [5, 0])
    assert maps.shape == (1, 2, 64, 64)
    with pytest.raises(ExplanationError, match="from 0 to 5"):
        class_activation_maps(model, images(1, 3, 64, 64), [6])


@pytest.mark.parametrize("options", [{"method": "grad_kam"}, {"level": 4}, {"level": "coarse"}, {"level": -5}], ids=str)
def test_what_is_not_there_is_said(options):
    with pytest.raises(ExplanationError, match=r"unknown (method|level)"):
        class_activation_maps(network(), images(1, 3, 64, 64), [0], **options)


def test_values_that_are_not_finite_are_said():
    model = network()
    model.classifier.classifiers.bias.data[:] = float("nan")
    model.classifier.classifiers.weight.data[:] = float("nan")
    with pytest.raises(ExplanationError, match="not finite"):
        class_activation_maps(model, images(1, 3, 64, 64), [0])


def test_levels():
    assert [resolve_level(level, 4) for level in (0, 3, -1, -4, "fused")] == [0, 3, 3, 0, "fused"]


@pytest.mark.parametrize("size, cells, stride", [((64,), (4,), 16), ((30, 20), (3, 2), 10), ((8, 6, 4), (4, 3, 2), 2)])
def test_cells_that_cover_the_image_are_interpolated_as_torch_does(size, cells, stride):
    maps = torch.randn(2, 3, *cells)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    expected = torch.nn.functional.interpolate(maps, size=size, mode=mode, align_corners=False)
    torch.testing.assert_close(cells_to_pixels(maps, size, stride), expected, atol=1e-6, rtol=1e-5)


def test_cells_of_a_padded_image_lie_where_they_belong():
    """20 pixels at stride 16 are padded to 32: the second cell's centre, pixel 23.5, is outside the image."""
    pixels = cells_to_pixels(torch.tensor([[[0.0, 1.0]]]), (20,), 16)[0, 0]
    assert pixels[7] < 0.01 and 0.65 < pixels[19] < 0.75

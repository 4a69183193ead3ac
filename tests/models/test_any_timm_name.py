"""timm/<any name>: tried, and either a backbone like the others or refused with the reason."""

import pytest
import timm
import torch

from configs.errors import ModelError
from models.backbones import create_backbone
from models.backbones.timm_backbones import _create_with_weights, _Levels

# Channels, strides and how many maps timm has.
WORKING = {
    "timm/resnet26d": ([256, 512, 1024, 2048], [4, 8, 16, 32], 5),
    "timm/mobilevit_xxs": ([24, 48, 64, 320], [4, 8, 16, 32], 5),
    "timm/edgenext_xx_small": ([24, 48, 88, 168], [4, 8, 16, 32], 4),
    "timm/vgg11": ([256, 512, 512, 512], [4, 8, 16, 32], 6),
    # Fewer than four: the coarsest is pooled.
    "timm/levit_128s": ([128, 256, 384, 384], [16, 32, 64, 128], 3),
    # All of one stride: of a family that has its blocks told apart, and of two that have not.
    "timm/deit_tiny_patch16_224": ([192] * 4, [4, 8, 16, 32], 12),
    "timm/xcit_nano_12_p16_224": ([128] * 4, [4, 8, 16, 32], 12),
    "timm/mixer_s32_224": ([512] * 4, [8, 16, 32, 64], 8),
}
LARGE = "timm/vgg11"


@pytest.mark.parametrize("name", [n if n != LARGE else pytest.param(n, marks=pytest.mark.slow) for n in WORKING])
def test_they_give_four_levels_of_one_channel_images(name):
    channels, strides, maps_of_timm = WORKING[name]
    torch.manual_seed(0)
    backbone = create_backbone(name, in_channels=1, feature_dim=7, image_size=(64, 64)).train()
    assert (backbone.feature_channels, backbone.feature_strides) == (channels, strides)
    x = torch.randn(2, 1, 64, 64)
    maps = backbone.forward_features(x)
    assert [y.shape[1:] for y in maps] == [
        (c, -(-64 // s), -(-64 // s)) for c, s in zip(channels, strides, strict=True)
    ]
    assert backbone(x).shape == (2, 7)
    assert len(timm.create_model(name.removeprefix("timm/")).feature_info) == maps_of_timm
    (sum(y.square().mean() for y in maps) + backbone(x).sum()).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", ["timm/edgenext_xx_small", pytest.param(LARGE, marks=pytest.mark.slow)])
def test_maps_are_timms(name):
    backbone, x = create_backbone(name, image_size=(64, 64)).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        mine = backbone.forward_features(x)
        whole = timm.create_model(name.removeprefix("timm/"), num_classes=0).eval()
        whole.load_state_dict(backbone.body.state_dict(), strict=False)
        theirs = whole.forward_intermediates(x, intermediates_only=True)[-4:]
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("wrong, meant", [("timm/resnet26dd", "timm/resnet26d"), ("timm/vgg_11", "timm/vgg11")])
def test_an_unknown_one_is_refused_with_its_neighbour(wrong, meant):
    with pytest.raises(ModelError, match=f"unknown backbone '{wrong}': did you mean '{meant}'"):
        create_backbone(wrong)


@pytest.mark.parametrize("name", ["timm/inception_v3", "timm/efficientformer_l1"])
def test_one_that_needs_another_size_says_what_stops_it(name):
    with pytest.raises(ModelError, match=rf"'{name}' does not run on 64×64 images: \w+"):
        create_backbone(name, image_size=(64, 64))


def test_one_without_feature_maps_is_refused():
    with pytest.raises(ModelError, match="'timm/odd' cannot be a backbone: timm gives no feature maps for it"):
        _Levels.of(torch.nn.Linear(1, 1), "timm/odd")


def test_one_whose_maps_are_not_as_announced_is_refused(monkeypatch):
    build = timm.create_model

    def mistaken(*arguments, **options):
        model = build(*arguments, **options)
        model.feature_info[-1]["num_chs"] = 5
        return model

    monkeypatch.setattr(timm, "create_model", mistaken)
    with pytest.raises(ModelError, match=r"maps of \[.*168\] channels where timm says \[.*5\]"):
        create_backbone("timm/edgenext_xx_small", image_size=(64, 64))


# One a way in which timm names a classifier: nested, of several layers, a 1×1 convolution, none at all.
NAMED_CLASSIFIERS = (
    "caformer_s18",
    "levit_128s",
    "efficientvit_b0",
    "repvit_m0_9",
    "deit_tiny_distilled_patch16_224",
    "resnetv2_50",
    "dpn48b",
    "mobilenetv4_conv_small",
    "vit_small_patch14_dinov2",
)
PUBLISHED = [name for name in timm.list_models() if (cfg := timm.get_pretrained_cfg(name)) and cfg.has_weights]


def takes_published_weights(name: str) -> str:
    """'' where a file with the names and shapes of the published weights is loaded, else the error; no memory used."""
    with torch.device("meta"):
        published = timm.create_model(name, num_classes=timm.get_pretrained_cfg(name).num_classes).state_dict()
        try:
            body = _create_with_weights(name, name, published, {})
        except ModelError as error:
            return str(error)
    return "" if body.state_dict().keys() == published.keys() else "it was loaded without its classifier"


@pytest.mark.parametrize("name", NAMED_CLASSIFIERS)
def test_the_classifier_of_published_weights_is_found(name):
    assert takes_published_weights(name) == ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_all_published_weights_of_timm_are_taken(part):
    names = PUBLISHED[part::12]
    assert len(names) > 80
    assert {name: why for name in names if (why := takes_published_weights(name))} == {}


@pytest.mark.parametrize("classes", [0, 3])
def test_a_nested_classifier_of_other_classes_is_loaded_bit_for_bit(classes, tmp_path):
    torch.manual_seed(0)
    weights = timm.create_model("repvit_m0_9", num_classes=classes).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    body = create_backbone("timm/repvit_m0_9", str(tmp_path / "w.pth"), image_size=(64, 64)).body.state_dict()
    assert len(body) > 50 and all(torch.equal(tensor, weights[key]) for key, tensor in body.items())

"""Weights of each family of the table: read in full, or refused with the tensor that is missing."""

import re
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from configs.errors import ModelError
from models.backbones import create_backbone
from models.backbones.families import smallest_of_each_family
from models.backbones.timm_backbones import TIMM_BACKBONES

# Those of test_weights.py, and the larger ones that have tests of their own below.
ELSEWHERE = {"resnet18", "convnext_tiny", "swin_tiny", "efficientnetv2_s", "tf_efficientnet_lite0"}
TINY = {"dinov2_small", "sam_base"}
FAMILIES = [name for name in smallest_of_each_family(TIMM_BACKBONES) if name not in ELSEWHERE | TINY]
QUICK = {"efficientnet_b0", "efficientvim_m1", "regnety_004", "vit_tiny"}


def load(name: str, weights: dict[str, Tensor], folder: Path, size: tuple[int, int] = (224, 224)) -> dict[str, Tensor]:
    """Tensors of the body that is made from a file of these weights."""
    torch.save(weights, folder / "w.pth")
    return create_backbone(name, str(folder / "w.pth"), image_size=size).body.state_dict()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES])
def test_all_tensors_are_read_and_one_missing_is_named(name, tmp_path):
    torch.manual_seed(1)
    weights = timm.create_model(TIMM_BACKBONES[name].timm_name).state_dict()
    body = load(name, weights, tmp_path)
    assert len(body) > 50 and all(torch.equal(tensor, weights[key]) for key, tensor in body.items())
    middle = [key for key in body if not key.endswith("num_batches_tracked")][len(body) // 3]
    with pytest.raises(ModelError, match=rf"do not fit {name}: 1 tensors of the network.* \({middle}"):
        load(name, {key: tensor for key, tensor in weights.items() if key != middle}, tmp_path)


@pytest.fixture
def narrow(monkeypatch):
    """Vision transformers of 32 channels and two blocks."""
    small = partial(timm.create_model, embed_dim=32, depth=2, num_heads=2)
    monkeypatch.setattr(timm, "create_model", small)
    return small


@pytest.fixture
def narrow_sam(monkeypatch, narrow):
    small = partial(narrow, global_attn_indexes=(1,), img_size=128)
    monkeypatch.setattr(timm, "create_model", small)
    return small


def medsam_file(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors of the image encoder under SAM's names, beside those of SAM's other two parts."""
    encoder = {f"image_encoder.{key.replace('mlp.fc', 'mlp.lin')}": tensor for key, tensor in network.items()}
    others = ("prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight")
    return {**encoder, **{key: torch.randn(1, 256) for key in others}}


def test_sams_image_encoder_is_taken_out_of_a_file_of_medsam(narrow_sam, tmp_path):
    torch.manual_seed(1)
    network = narrow_sam(TIMM_BACKBONES["sam_base"].timm_name, num_classes=0).state_dict()
    for tensor in network.values():
        tensor.normal_()
    weights = medsam_file(network)
    assert {"image_encoder.blocks.1.mlp.lin1.weight", "image_encoder.neck.0.weight"} <= set(weights)
    body = load("sam_base", weights, tmp_path, (64, 64))
    assert len(body) == len(network) and all(torch.equal(tensor, network[key]) for key, tensor in body.items())


@pytest.mark.parametrize("missing", ["blocks.1.mlp.lin1.weight", "neck.0.weight", "patch_embed.proj.weight"])
def test_a_file_of_medsam_that_lacks_a_tensor_is_refused(missing, narrow_sam, tmp_path):
    """By timm's name for it."""
    weights = medsam_file(narrow_sam(TIMM_BACKBONES["sam_base"].timm_name, num_classes=0).state_dict())
    del weights[f"image_encoder.{missing}"]
    name = re.escape(missing.replace("lin", "fc"))
    with pytest.raises(ModelError, match=rf"do not fit sam_base: 1 tensors of the network.* \({name}, …\)$"):
        load("sam_base", weights, tmp_path, (64, 64))


def test_position_embeddings_of_dinov2_are_resized(narrow, tmp_path):
    """Made for 518 px, 37 × 37 patches; 64 px are padded to 70, 5 × 5 patches, as timm resamples them."""
    torch.manual_seed(1)
    weights = narrow(TIMM_BACKBONES["dinov2_small"].timm_name).state_dict()
    assert weights["pos_embed"].shape == (1, 37 * 37 + 1, 32)
    body = load("dinov2_small", weights, tmp_path, (64, 64))
    expected = resample_abs_pos_embed(weights["pos_embed"], [5, 5])
    torch.testing.assert_close(body.pop("pos_embed"), expected)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in body.items())
    del weights["blocks.1.ls1.gamma"]
    with pytest.raises(ModelError, match=r"do not fit dinov2_small: .*blocks\.1\.ls1\.gamma"):
        load("dinov2_small", weights, tmp_path, (64, 64))

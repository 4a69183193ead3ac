"""Published and local weights for backbones: where they are found and what their tensors are called."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlparse

from torch import Tensor

from configs.errors import CheckpointError, ModelError, WeightsUnavailableError
from utils.checkpoint import read_weights

WAYS_ON = (
    "Three ways to continue: MODEL.pretrained=false trains from random weights; "
    "MODEL.pretrained=/path/to/file takes a .pth or .safetensors file that you have; "
    "configs/quickstart.yaml is a preset that needs none."
)


def read_backbone_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a local file under the names timm uses. Raises ModelError with the ways to continue."""
    try:
        weights = read_weights(path)
    except CheckpointError as error:
        raise ModelError(f"MODEL.pretrained: {error}. {WAYS_ON}") from None
    if any(name.startswith("fusion.weight_generator.") for name in weights):
        raise ModelError(f"MODEL.pretrained: '{path}' holds a whole HybridMedNet: say MODEL.init_from={path} instead")
    return rename_chexnet(rename_sam(rename_efficientnet_lite(weights)))


def given_weights(pretrained: bool | str) -> bool | Mapping[str, Tensor]:
    """What `pretrained` says: True for the published weights, False for none, a path as the tensors of that file."""
    return read_backbone_weights(pretrained) if isinstance(pretrained, str) else pretrained


def find_weights(pretrained_cfg, name: str) -> dict[str, Tensor]:
    """Tensors of the weights that timm publishes for a model; see `fetch_weights`."""
    repository = getattr(pretrained_cfg, "hf_hub_id", None)
    if not repository:
        raise ModelError(f"no published weights are known for '{name}'. {WAYS_ON}")
    return fetch_weights(repository, "model.safetensors", name)


def fetch_weights(repository: str, filename: str, name: str) -> dict[str, Tensor]:
    """Tensors of a published file, from the local cache or the model hub.

    Raises ModelError that says why they are not available and what to do: never a start from scratch.
    """
    from huggingface_hub import hf_hub_download

    offline = not hub_can_be_reached()
    try:
        path = hf_hub_download(repository, filename, local_files_only=offline)
    except (OSError, ValueError) as error:  # the hub's own errors and httpx's are OSErrors or ValueErrors
        why = "the model hub cannot be reached from here" if offline else " ".join(str(error).split())[:300]
        raise WeightsUnavailableError(
            f"the weights {repository} of '{name}' are not available: {why}, and not in the local cache. {WAYS_ON}"
        ) from None
    return read_weights(path)


def hub_can_be_reached() -> bool:
    """False at once where the hub's name does not even resolve: its client would retry for most of a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


_SAM = "image_encoder."


def rename_sam(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder of a file of SAM's or MedSAM's, under timm's names; its prompt encoder and mask decoder go.

    Other files pass through unchanged.
    """
    if f"{_SAM}patch_embed.proj.weight" not in weights and f"{_SAM}pos_embed" not in weights:
        return dict(weights)
    return {
        name.removeprefix(_SAM).replace("mlp.lin", "mlp.fc"): tensor
        for name, tensor in weights.items()
        if name.startswith(_SAM)
    }


def rename_chexnet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of CheXNet's files (`densenet121.features.conv0`, `classifier.0`) → torchvision's, which timm converts.

    Of torch 0.3's names (`denselayer1.norm.1`) timm takes care. Other files pass through unchanged.
    """
    renamed = {re.sub(r"^densenet\d+\.", "", name): tensor for name, tensor in weights.items()}
    if "features.conv0.weight" not in renamed:
        return dict(weights)
    return {re.sub(r"^classifier\.0\.", "classifier.", name): tensor for name, tensor in renamed.items()}


_LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Blocks in each stage of EfficientNet-Lite0, which the older files number throughout.
_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)


def rename_efficientnet_lite(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the PyTorch EfficientNet-Lite0 release (`_blocks.5._bn0`) → timm's (`blocks.3.0.bn1`).

    Other files pass through unchanged.
    """
    if "_conv_stem.weight" not in weights:
        return dict(weights)
    positions = [(stage, i) for stage, depth in enumerate(_LITE0_DEPTHS) for i in range(depth)]
    return {_lite_name(name, positions): tensor for name, tensor in weights.items()}


def _lite_name(name: str, positions: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        head, _, rest = name.partition(".")
        return f"{_LITE_STEM.get(head, head)}.{rest}"
    number, layer, rest = int(match[1]), match[2], match[3]
    if number >= len(positions):
        raise ModelError(f"these weights have more blocks than EfficientNet-Lite0: {name}")
    stage, block = positions[number]
    if layer not in ("_expand_conv", "_depthwise_conv", "_project_conv", "_bn0", "_bn1", "_bn2"):
        raise ModelError(f"these weights are of another EfficientNet than Lite0, which has no '{name}'")
    # The first stage does not expand: its project_conv is timm's conv_pw, and _bn1, _bn2 are bn1, bn2.
    first = stage == 0
    renamed = {
        "_expand_conv": "conv_pw",
        "_depthwise_conv": "conv_dw",
        "_project_conv": "conv_pw" if first else "conv_pwl",
        "_bn0": "bn1",
        "_bn1": "bn1" if first else "bn2",
        "_bn2": "bn2" if first else "bn3",
    }[layer]
    return f"blocks.{stage}.{block}.{renamed}.{rest}"

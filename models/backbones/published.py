"""Where a backbone's weights are: looked up, never fetched, and no network waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import timm

from models.backbones.timm_backbones import timm_spec
from models.backbones.vision_mamba import VIM_VARIANTS
from models.backbones.weights import hub_can_be_reached
from utils.examination.findings import Finding

_SECONDS = 2.0


class Located(NamedTuple):
    """where: cached, on this machine; hub, to be downloaded; unreachable, neither; unknown: none are published.
    source: the repository or the file.
    """

    where: Literal["cached", "hub", "unreachable", "unknown"]
    source: str


def locate_published(name: str) -> Located:
    """Of the published weights that MODEL.pretrained=true means for a backbone."""
    from huggingface_hub import try_to_load_from_cache

    published = _published(name)
    if published is None:
        return Located("unknown", name)
    repository, filename = published
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Located("cached", str(Path(cached)))
    return Located("hub" if _reached_in_time() else "unreachable", repository)


def weights_findings(found: Located, name: str) -> Iterator[Finding]:
    """Of a backbone's name: what is to be downloaded, and what cannot be."""
    if found.where == "hub":
        yield Finding("note", "weights", f"the weights '{found.source}' will be downloaded when a training begins")
    elif found.where == "unreachable":
        yield Finding(
            "error",
            "weights",
            f"the weights '{found.source}' of '{name}' are not in the local cache, and the model hub cannot be reached",
            "MODEL.pretrained=false trains from random weights, MODEL.pretrained=/path/to/file takes a file that you "
            "have; or fetch them where there is a network, and copy ~/.cache/huggingface",
        )


def _published(name: str) -> tuple[str, str] | None:
    """(repository, file), None where there are none."""
    spec = timm_spec(name)
    if spec is not None:
        repository = getattr(timm.get_pretrained_cfg(spec.timm_name), "hf_hub_id", None)
        return (repository, "model.safetensors") if repository else None
    found = VIM_VARIANTS.get(name.removeprefix("vim_"))
    return found[1:] if found and name.startswith("vim_") else None


def _reached_in_time() -> bool:
    """A name server that does not answer counts as one that does not know the hub."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(hub_can_be_reached()), daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return bool(answers and answers[0])

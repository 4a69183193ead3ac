"""The loops that are compared do the same work, and what the page says of their times."""

from importlib.util import find_spec

import pytest
import torch

from benchmarks.loop import AGAIN, BARE, LIGHTNING, OURS, TIMM, deviation, network_verdicts, ratio, take_turns
from benchmarks.loop_parts import PARTS, watch
from benchmarks.training_loops import BatchesInMemory, bare_loop, lightning_loop, make_work, our_trainer, timm_loop

SETTINGS = ["MODEL.backbone=timm/test_resnet", "MODEL.attention=none", "MODEL.fusion_channels=8", "MODEL.fpn=false"]
CPU = torch.device("cpu")


def work():
    return make_work([*SETTINGS, "TRAIN.channels_last=false"], 32, 4, 3, CPU)


def test_all_loops_end_at_the_same_weights():
    shared = work()
    bare, bare_epoch = bare_loop(shared)
    assert bare_epoch() > 0
    trainer, ours = our_trainer(shared)
    others = {"ours": (trainer.model, ours), "timm": timm_loop(shared)}
    if find_spec("lightning"):  # it is of benchmarks/requirements.txt alone
        others["Lightning"] = lightning_loop(shared)
    for name, (model, epoch) in others.items():
        assert epoch() > 0
        assert deviation(model, bare, shared.model) < 0.05, name


def test_parts_are_of_the_epoch():
    shared = work()
    trainer, _ = our_trainer(shared)
    parts = watch(trainer, BatchesInMemory(shared.batches))
    assert set(parts) == {*PARTS, "whole"} and all(seconds >= 0 for seconds in parts.values())
    assert 0 < sum(parts[name] for name in PARTS) <= parts["whole"]
    assert trainer.state.epoch == 1


def test_everyone_begins_once_in_as_many_turns():
    order = []
    loops = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "abc"}
    taken = take_turns(loops, range(3), lambda: order.append("|"))
    assert "".join(order) == "abc|bca|cab|" and [len(times) for times in taken.values()] == [3, 3, 3]
    order.clear()
    take_turns(loops, range(4, 5), lambda: None)  # with another copy of the network
    assert "".join(order) == "bca"


@pytest.mark.parametrize("ours, enough", [(1.02, [True, True, True]), (1.2, [False, False, False])])
def test_verdicts_allow_for_the_noise_of_the_bare_step(ours, enough):
    seconds = {BARE: [1.0, 2.0], AGAIN: [1.04, 2.08], OURS: [ours, 2 * ours], TIMM: [1.0, 2.0], LIGHTNING: [1.0, 2.0]}
    parts = [dict.fromkeys(PARTS, 1 / len(PARTS)) | {"whole": 1.0}]
    network = {"seconds": seconds, "parts": parts, "deviations": {OURS: 0.0}}
    assert ratio(network, OURS) == pytest.approx(ours)
    assert [ok for _, _, ok in network_verdicts("net", network)][:3] == enough

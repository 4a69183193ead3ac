"""Runs interrupted and resumed in new processes, two and three times: bit for bit the undisturbed run."""

import os
import signal
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness forks")

# Dropout, drop-path, BatchNorm, windows of two batches and averaged weights are the harness's defaults.
RUNS = {
    "fp32, 2 workers": {
        "DATA.num_workers": 2,
        "DATA.use_albumentations": "true",
        "TRAIN.lr_scheduler": "onecycle",
        "TRAIN.optimizer": "sgd",
    },
    "fp32, 0 workers": {},
    "bf16, 2 workers": {
        "DATA.num_workers": 2,
        "TRAIN.mixed_precision": "bf16",
        "TRAIN.lr_scheduler": "plateau",
        "TRAIN.plateau_patience": 1,
        "MODEL.backbone": "mobilenetv3_small",
        "DATA.cache": "disk",
    },
    "fp16, 0 workers": {
        "TRAIN.early_stopping_patience": 1,
        "TRAIN.epochs": 6,
        "MODEL.attention": "cross_scale",
        "DATA.cache": "ram",
    },
    "fp32, augmented on the device": {"DATA.augment_on": "device", "DATA.num_workers": 2, "DATA.horizontal_flip": 0.5},
    "bf16, 0 workers": {"TRAIN.mixed_precision": "bf16"},
    "fp16, 2 workers": {"DATA.num_workers": 2},
}
QUICK, *SLOW = RUNS  # many processes per run
STOPS = ((2, 3), (1, 5, 2))  # optimizer steps that each process makes before it is asked to stop


def prepare(steps: int | None, precision: str):
    """What the new process does first: ask itself to stop after so many steps, scale losses on a CPU."""

    def patch() -> None:
        from training import builder
        from training.loop import TrainingLoop
        from training.precision import Precision

        if precision != "fp32":
            dtype = torch.float16 if precision == "fp16" else torch.bfloat16
            builder.choose_precision = lambda setting, device: Precision("cpu", dtype)
        outcomes, train_step = [], TrainingLoop.train_step

        def counted(trainer, *arguments):
            outcomes.append(train_step(trainer, *arguments))
            if len(outcomes) == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return outcomes[-1]

        TrainingLoop.train_step = counted

    return patch


@pytest.mark.parametrize("name", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_resumed_run_ends_bit_for_bit_as_the_undisturbed_one(name, tmp_path, harness):
    settings, precision = RUNS[name] | {"CHECKPOINT.save_freq": 0}, name.partition(",")[0]
    harness.write_phantom(tmp_path / "data", 40, 64)
    harness.undisturbed(tmp_path / "data", tmp_path / "whole", settings, prepare(None, precision))
    expected = harness.scalars(tmp_path / "logs" / "whole")
    assert len(expected["train/loss"]) > 6
    for stops in STOPS if name == "fp32, 0 workers" else STOPS[1:]:
        folder = tmp_path / f"stopped{len(stops)}"
        for number, steps in enumerate((*stops, None)):
            arguments = harness.arguments_of(tmp_path / "data", folder, settings) if number == 0 else RESUME + [folder]
            log = tmp_path / f"{folder.name}.txt"
            code = harness.wait(harness.launch([str(a) for a in arguments], log, prepare(steps, precision)))
            assert code == (143 if steps else 0), log.read_text()[-3000:]
        assert harness.differing(tmp_path / "whole", folder) == []
        assert harness.scalars(tmp_path / "logs" / folder.name) == expected
        print(f"{name}: interrupted {len(stops)} times after {stops} steps, equal bit for bit, TensorBoard's too")


RESUME = ["--resume"]

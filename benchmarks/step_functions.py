"""Which of this project's functions one optimizer step enters: how much must be read to know what a step does.

python -m benchmarks.step_functions    # prints them by file
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace

import numpy as np
import torch
from torch import nn

from benchmarks.training_loops import trainer_of
from configs.default_config import Config
from utils.batch import Batch, Inputs, Targets

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 3


def entered(work: Callable[[], object]) -> dict[str, list[str]]:
    """File → functions of this project that `work` enters, comprehensions and lambdas not counted."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    found: dict[str, list[str]] = defaultdict(list)
    for code in codes:
        path = Path(code.co_filename)
        own = (
            path.is_relative_to(ROOT)
            and path != Path(__file__)
            and ".venv" not in path.parts
            and not code.co_name.startswith("<")
        )
        if own:
            found[path.relative_to(ROOT).as_posix()].append(code.co_qualname)
    return {name: sorted(functions) for name, functions in sorted(found.items())}


def one_step() -> dict[str, list[str]]:
    """Functions that `TrainingLoop.train_step` enters on a CPU, for a window of two batches with figures."""
    settings = ["TRAIN.gradient_accumulation_steps=2", "TRAIN.mixed_precision=false", "TRAIN.channels_last=false"]
    settings += ["TRAIN.warmup_epochs=0", "TRAIN.ema_decay=0.99", "LOGGING.print_freq=1", "LOGGING.progress=plain"]
    config = Config.from_overrides(settings).resolve(tuple("abc"))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, CLASSES))
    target, mask = torch.zeros(4, CLASSES), torch.ones(4, CLASSES, dtype=torch.bool)
    labels = SimpleNamespace(target=target.numpy(), mask=np.ones((4, CLASSES), bool))
    trainer = trainer_of(config, model.train(), 10, labels)
    images = Inputs.of_images(torch.randn(4, 1, 8, 8))
    window = [Batch(images, Targets(target, mask), torch.arange(4)) for _ in range(2)]
    trainer.train_step(window)  # the first one allocates
    return entered(lambda: trainer.train_step(window))


def main() -> int:
    """Print the functions by file, then how many there are."""
    found = one_step()
    for name, functions in found.items():
        print(f"{name}: {', '.join(functions)}")
    print(f"one optimizer step enters {sum(map(len, found.values()))} functions in {len(found)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())

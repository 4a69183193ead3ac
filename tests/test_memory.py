"""A run of ten epochs: memory is flat after the first ones, and work is so many reads and steps per image and epoch."""

import csv
import gc
import json
import math
import os
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness forks; /proc tells what is resident")

MIB = 2**20
BATCH, WINDOW = 4, 2
SETTINGS = {
    "TRAIN.batch_size": BATCH,
    "TRAIN.gradient_accumulation_steps": WINDOW,
    "DATA.image_size": 64,  # so that a leak of the batches would be 8 MiB
    "TRAIN.early_stopping_patience": 0,
    "CHECKPOINT.save_every_steps": 0,
    "LOGGING.progress": "plain",
}


def measured(figures: Path, traced: bool):
    """What the new process does first: have memory looked at after each epoch, reads and steps counted."""

    def patch() -> None:
        from data.sources.image_files import FileReader
        from training.loop import TrainingLoop
        from utils.runs.recorder import Recorder

        counts, epochs = Counter(), []
        on_epoch = Recorder.on_epoch

        def look(recorder, *arguments) -> None:
            on_epoch(recorder, *arguments)
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes = {"resident": pages * os.sysconf("SC_PAGE_SIZE"), "blocks": sys.getallocatedblocks()}
            epochs.append({**sizes, "objects": tracemalloc.get_traced_memory()[0], **counts})
            figures.write_text(json.dumps(epochs))

        def counted(owner, name: str, title: str) -> None:
            original = getattr(owner, name)

            def count(*arguments, **named):
                counts[title] += 1
                return original(*arguments, **named)

            setattr(owner, name, count)

        Recorder.on_epoch = look
        counted(FileReader, "__call__", "reads")
        counted(TrainingLoop, "train_step", "steps")
        if traced:
            tracemalloc.start()

    return patch


def run(tmp_path: Path, harness, images: int, epochs: int, traced: bool = False, **settings) -> list[dict]:
    """Figures after each epoch of a run, and how many images its splits have in 'train', 'val'."""
    name = f"{images}x{epochs}"
    data = tmp_path / f"data{images}"
    if not data.exists():
        harness.write_phantom(data, images, 64)
    figures = tmp_path / f"{name}.json"
    harness.undisturbed(
        data, tmp_path / name, SETTINGS | {"TRAIN.epochs": epochs, **settings}, measured(figures, traced)
    )
    return json.loads(figures.read_text())


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_flat_after_the_first_epochs(tmp_path, harness, traced):
    """Each epoch leaves one row of metrics behind, some KiB: Python's blocks are counted, or its bytes where traced."""
    found = run(tmp_path, harness, 30, 10, traced=traced)
    python = ("objects", MIB, 1.0, "MiB of Python objects") if traced else ("blocks", 1000, 2.0, "1,000 Python blocks")
    for name, unit, allowed, title in (("resident", MIB, 4.0, "resident MiB"), python):
        sizes = [epoch[name] / unit for epoch in found]
        growth = sizes[-1] - sizes[1]
        print(f"{title} after each epoch {[round(size, 2) for size in sizes]}, from the 2nd on {growth:+.2f}")
        assert growth < allowed


def test_work_is_linear_in_images_and_epochs(tmp_path, harness):
    """Nothing is read or done more often as a run goes on, and nothing for every pair of images."""
    for images, epochs in ((20, 4), (40, 2)):
        found = run(tmp_path, harness, images, epochs)
        with (tmp_path / f"{images}x{epochs}" / "split.csv").open(newline="") as file:
            splits = Counter(row["split"] for row in csv.DictReader(file))
        looked_at = splits["train"]  # once, for the checkpoint's description; at most 64
        steps = math.ceil(math.ceil(splits["train"] / BATCH) / WINDOW)
        for epoch, figures in enumerate(found, 1):
            assert figures["reads"] == looked_at + epoch * (splits["train"] + splits["val"])
            assert figures["steps"] == epoch * steps
        print(f"{images} images, {epochs} epochs: {found[-1]['reads']} reads, {found[-1]['steps']} steps")

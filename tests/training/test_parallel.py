"""One process agrees with itself; several that agree as Parallel says make the steps of one."""

import copy
import math
import threading

import pytest
import torch
from torch import nn

from tests.training.toys import Notes, TensorLoader, fit, make_trainer, max_difference, plain_model, random_data
from training.parallel import SingleProcess
from utils.runs.control import Interrupted


class Threads:
    """A Parallel of `size` threads, each with a network of its own. board: rank → what it shows the others."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: dict) -> None:
        self.rank, self.size, self.barrier, self.board = rank, size, barrier, board

    def gather(self, value) -> list:
        """What all have given, by rank; copies, as they go on with theirs."""
        self.board[self.rank] = copy.deepcopy(value)
        self.barrier.wait(30)
        values = [self.board[rank] for rank in range(self.size)]
        self.barrier.wait(30)
        return values

    def share(self, window):
        return window[self.rank :: self.size]

    def sum(self, counts):
        gathered = self.gather(dict(counts))
        return {name: sum(each[name] for each in gathered) for name in counts}

    def reduce_gradients(self, parameters):
        parameters = list(parameters)
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, *gradients in zip(parameters, *self.gather(own)):
            parameter.grad = torch.stack(gradients).sum(0)

    def clip(self, parameters, limit):
        return nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)

    def reduce_losses(self, losses):
        return [loss for own in self.gather([loss.detach() for loss in losses]) for loss in own]

    def any(self, request):
        return next((each for each in self.gather(request) if each is not None), None)

    def full_state(self, state):
        return state


def run_threads(size: int, work) -> list:
    """work(parallel) in each of `size` threads; what they gave. An error of one ends the others, and is raised."""
    barrier, board = threading.Barrier(size), {}
    results, errors = [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, size, barrier, board))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors and not any(thread.is_alive() for thread in threads)
    return results


def loaders(poisoned: tuple[int, ...] = ()):
    """26 images in batches of 2, of uneven masks: windows of 4, the last one of a single batch."""
    images, target, mask = random_data(26)
    mask[4:6] = False  # a micro-batch without a label, which is all that a process may have
    images[[2 * number for number in poisoned]] = math.nan
    tensors = images.double(), target.double(), mask
    clean = random_data(16)
    return TensorLoader(*tensors, 2), TensorLoader(clean[0].double(), clean[1].double(), clean[2], 8)


@pytest.mark.parametrize("poisoned", [(), (5,)])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_processes_that_share_windows_make_the_steps_of_one(size, poisoned):
    """In float64, AdamW with clipping and an average; a NaN that one process meets is a skipped step of all."""
    options = {"accumulation_steps": 4, "epochs": 3, "ema": 0.9, "schedule": "cosine", "steps": 12, "clip_norm": 0.3}
    one = make_trainer(plain_model().double(), **options)
    fit(one, *loaders(poisoned))

    networks = [plain_model().double() for _ in range(size)]  # made here: the seed is the process's

    def train(parallel: Threads):
        trainer = make_trainer(networks[parallel.rank], parallel=parallel, **options)
        trainer.fit(*loaders(poisoned))
        return trainer

    trainers = run_threads(size, train)
    assert max_difference(one.model, plain_model().double()) > 1e-2
    worst = max(max_difference(one.model, trainer.model) for trainer in trainers)
    print(f"{size} processes: weights differ from one process's by at most {worst:.1e}")
    assert worst < 1e-7  # losses are float32
    for trainer in trainers:
        assert max_difference(trainer.model, trainers[0].model) == 0
        assert trainer.state.global_step == one.state.global_step == 12
        shadow = [(trainer.learner.ema.shadow[name], value) for name, value in one.learner.ema.shadow.items()]
        assert max(float((a - b).abs().max()) for a, b in shadow) < 1e-7
    for trainer in (one, trainers[0]):
        assert [r["skipped_steps"] for r in trainer.listeners[0].records] == [len(poisoned)] * 3
    recorded, expected = (
        [record["train_loss"] for record in trainer.listeners[0].records] for trainer in (trainers[0], one)
    )
    assert recorded == pytest.approx(expected, rel=1e-5), "rank 0 records the loss of all processes"
    listeners = [trainer.listeners for trainer in trainers]
    assert len(listeners[0]) == 1 and set(listeners[1:]) == {()}, "only rank 0 records"


def test_a_request_to_one_process_stops_all_at_the_same_step():
    networks = [plain_model().double() for _ in range(3)]
    saved: list[int] = []

    def train(parallel: Threads):
        def should_stop() -> str | None:
            return "pause" if parallel.rank == 2 and trainer.state.global_step >= 2 else None

        notes = Notes(save=lambda content: saved.append(content["progress"]["global_step"]))
        options = {"accumulation_steps": 4, "should_stop": should_stop, "listeners": [notes]}
        trainer = make_trainer(networks[parallel.rank], parallel=parallel, **options)
        with pytest.raises(Interrupted) as stop:
            trainer.fit(*loaders())
        return stop.value.request, trainer.state.global_step

    assert run_threads(3, train) == [("pause", 2)] * 3 and saved == [2]


def test_a_single_process_has_the_whole_of_everything():
    alone, model = SingleProcess(), plain_model()
    window = ["a", "b", "c"]
    assert alone.rank == 0 and list(alone.share(window)) == window
    counts = {"labels": 3, "coarse": 0}
    assert alone.sum(counts) == counts
    assert [alone.any(request) for request in (None, "pause")] == [None, "pause"]
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    assert alone.reduce_losses(losses) == losses
    state = {"model": model.state_dict()}
    assert alone.full_state(state) == state


@pytest.mark.parametrize("limit", [None, 0.5, 100.0])
def test_clipping_by_hand(limit):
    model = plain_model()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
    expected = [parameter.grad.double() for parameter in model.parameters()]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected))
    alone = SingleProcess()
    alone.reduce_gradients(model.parameters())
    assert float(alone.clip(model.parameters(), limit)) == pytest.approx(norm, rel=1e-5) and 0.5 < norm < 100
    factor = min(1.0, (limit or math.inf) / norm)
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad.double(), factor * gradient, rtol=1e-5, atol=0)

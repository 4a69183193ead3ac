"""What only a GPU can show; skipped where there is none.

PYTORCH_NVML_BASED_CUDA_CHECK=1 python -m pytest -rP tests/test_cuda.py   (the variable: some of these fork)
"""

import copy
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs.default_config import Config
from inference.predictor import Predictor
from models import HybridMedNet, create_backbone, list_backbones
from models.backbones.families import smallest_of_each_family
from models.backbones.selective_scan import SCAN, plain_scan
from models.backbones.swin_attention import WINDOW_ATTENTION, plain_window_attention
from models.layers import resize_to, shrinks
from tests.data.transforms.test_device_augmentation import loader_of
from tests.data.transforms.test_device_augmentation import moved as batches_of
from tests.models.test_selective_scan_triton import CASES, NAMES, arguments, results
from tests.models.test_window_attention_triton import CASES as WINDOWS
from tests.models.test_window_attention_triton import arguments as window_arguments
from tests.models.test_window_attention_triton import results as window_results
from tests.models.test_window_attention_triton import wide
from tests.test_resume import prepare
from tests.training.toys import TensorLoader, batch_of, make_trainer
from training.evaluation import Evaluator
from training.losses import TrainingLoss, binary_cross_entropy
from training.precision import Precision
from utils.batch import Batch
from utils.kernels import prepare_kernels
from utils.out_of_memory import is_out_of_memory
from utils.transfers import prefetch_to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA, CUDA0 = torch.device("cuda"), torch.device("cuda:0")


def deterministic(steps: int | None):
    """A process that asks itself to stop after so many steps, with cuDNN and cuBLAS told to repeat themselves."""
    stop = prepare(steps, "fp32")  # the precision stays what TRAIN.mixed_precision says

    def patch() -> None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
        stop()

    return patch


@pytest.mark.parametrize("precision", ["fp16", "bf16", "false"])
def test_a_run_resumed_on_cuda_ends_as_the_undisturbed_one(precision, tmp_path, harness):
    settings = {
        "TRAIN.device": "cuda",
        "TRAIN.mixed_precision": precision,
        "CHECKPOINT.save_freq": 0,
        "MODEL.attention": "cross_scale",
        "DATA.num_workers": 2,
    }
    harness.write_phantom(tmp_path / "data", 60, 64)
    for name in ("whole", "again"):
        harness.undisturbed(tmp_path / "data", tmp_path / name, settings, deterministic(None))
    noise = harness.differing(tmp_path / "whole", tmp_path / "again")
    folder = tmp_path / "stopped"
    for number, steps in enumerate((1, 5, 2, None)):
        first = [str(a) for a in harness.arguments_of(tmp_path / "data", folder, settings)]
        arguments, log = first if number == 0 else ["--resume", str(folder)], tmp_path / "log.txt"
        code = harness.wait(harness.launch(arguments, log, deterministic(steps)))
        assert code == (143 if steps else 0), log.read_text()[-3000:]
    found = harness.differing(tmp_path / "whole", folder)
    print(
        f"{precision}: two undisturbed runs differ in {len(noise)} entries, a resumed one in {len(found)} ({found[:3]})"
    )
    assert noise or not found


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_agrees_with_the_plain_scan_in_float64(case):
    from models.backbones.selective_scan_triton import triton_scan

    inputs, dy = arguments(*CASES[case])
    inputs = [x.detach().to(CUDA).requires_grad_() for x in inputs]
    found, again = results(triton_scan, inputs, dy.to(CUDA)), results(triton_scan, inputs, dy.to(CUDA))
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True)), "two runs differ"
    exact = results(plain_scan, [x.detach().double().cpu().requires_grad_() for x in inputs], dy.double())
    pairs = zip(NAMES, (x.double().cpu() for x in found), exact)
    errors = {n: ((x - e).abs().max() / e.abs().max().clamp(min=1e-30)).item() for n, x, e in pairs}
    print(case, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < (2e-5 if CASES[case][-1] == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", WINDOWS)
def test_attention_in_windows_agrees_with_the_plain_form_in_float64(case, dtype):
    from models.backbones.window_attention_triton import triton_window_attention

    (qkv, bias, mask, *rest), dy = window_arguments(*WINDOWS[case][:-1], dtype)
    arguments_ = [x.detach().to(CUDA).requires_grad_() for x in (qkv, bias)]
    arguments_ += [mask if mask is None else mask.to(CUDA), *rest]
    found, again = (window_results(triton_window_attention, arguments_, dy.to(CUDA)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True)), "two runs differ"
    exact = window_results(plain_window_attention, wide(arguments_), dy.to(CUDA).double())
    errors = [((x.double() - e).abs().max() / e.abs().max()).item() for x, e in zip(found, exact)]
    print(case, dtype, [f"{error:.1e}" for error in errors])
    assert max(errors) < (2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["swin_tiny", "vim_tiny"])
def test_networks_use_their_kernel_and_are_compiled_with_it(name):
    """In bf16, against the same network without a kernel in float64; the compiler's graph has our operator."""
    operators: set[str] = set()

    def record(graph, _):
        operators.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.manual_seed(0)
    size = (224, 224) if name == "swin_tiny" else (64, 64)
    model = create_backbone(name, image_size=size).to(CUDA).eval()
    x = torch.randn(2, 3, *size, device=CUDA)
    with torch.no_grad():
        exact = model.double()(x.double())
        model.float()
        prepare_kernels(model, CUDA, (torch.float32, torch.bfloat16))
        with torch.autocast("cuda", torch.bfloat16):
            found = {"eager": model(x), "compiled": torch.compile(model, backend=record)(x)}
        found["float32"] = model(x)
    torch.compiler.reset()
    assert any("hybridmednet" in operator for operator in operators)
    choice = WINDOW_ATTENTION if name == "swin_tiny" else SCAN
    assert {choice.chosen[CUDA0, dtype] is choice.plain for dtype in (torch.float32, torch.bfloat16)} == {False}
    errors = {kind: ((y - exact).abs().max() / exact.abs().max()).item() for kind, y in found.items()}
    print(name, {kind: f"{error:.1e}" for kind, error in errors.items()})
    assert errors["float32"] < 1e-4 and max(errors.values()) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("old, new", [((7, 7), (56, 56)), ((5, 9), (14, 9)), ((28, 28), (7, 7)), ((9, 8), (4, 4))])
def test_maps_are_resized_on_cuda_as_in_float64(old, new, layout, dtype):
    x = torch.randn(4, 32, *old, device=CUDA).to(dtype).to(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):  # which changes nothing
        y = resize_to(x, new)
    mode = {"mode": "area"} if shrinks(x, new) else {"mode": "bilinear", "align_corners": False}
    expected = F.interpolate(exact, size=new, **mode)
    dy = torch.randn(y.shape, device=CUDA)
    pairs = zip(
        (y, *torch.autograd.grad(y, x, dy.to(dtype))), (expected, *torch.autograd.grad(expected, exact, dy.double()))
    )
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    worst = max(((mine - e).abs().max() / e.abs().max()).item() for mine, e in pairs)
    assert worst < (1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


def numbered(trainer):
    """What sends (number, batch) to the device."""
    return lambda item: (item[0], trainer.window.send(item[1]))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_training_step_does_not_wait_for_the_device(kind):
    """torch raises where the host would wait; batches come by the prefetcher's stream."""
    batches = [(number, _batch(4, 64)) for number in range(6)]
    model = network("resnet18", attention="cbam").to(CUDA)
    precision = Precision("cuda", torch.bfloat16)
    trainer = make_trainer(model, kind=kind, precision=precision, ema=0.9, read_every=100, print_freq=100)
    trainer.model.train()
    moved = [sent for _, (_, sent) in prefetch_to_device(batches, numbered(trainer), CUDA)]
    assert all(batch.inputs.image.device.type == "cuda" for batch in moved)
    for number, batch in batches[:3]:  # the first ones allocate
        trainer.train_step([batch], [moved[number]])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, batch in batches[3:]:
            trainer.train_step([batch], [moved[number]])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.flush_outcomes()
    assert trainer.state.sums.steps == trainer.state.global_step == 6


def test_batches_sent_ahead_are_what_was_given():
    batches = [(number, _batch(4, 32)) for number in range(5)]
    trainer = make_trainer(network("resnet18", attention="none").to(CUDA), precision=Precision("cuda", None))
    for (number, batch), ((same, host), (_, sent)) in zip(
        batches, prefetch_to_device(batches, numbered(trainer), CUDA)
    ):
        assert number == same and host is batch
        assert torch.equal(sent.inputs.image.cpu(), batch.inputs.image)
        assert torch.equal(sent.targets.labels.cpu(), batch.targets.labels)


def test_a_real_lack_of_memory_is_survived_with_the_same_step():
    """The allocator itself refuses: this process may use little more than a quarter of what the step takes."""
    batch = _batch(64, 128)

    def trainer():
        # No BatchNorm and no dropout, which would see the smaller micro-batches.
        model = network("convnext_tiny", norm="group", dropout=0, attention="none").to(CUDA)
        return make_trainer(model, kind="sgd", precision=Precision("cuda", None), on_oom="adapt")

    one, other = trainer(), trainer()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    assert one.train_step([batch])
    needed = torch.cuda.max_memory_allocated() - held
    expected = [p.detach().cpu() for p in one.model.parameters()]
    del one
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + needed * 0.45
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        assert other.train_step([batch])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    worst = max((p.detach().cpu() - e).abs().max().item() for p, e in zip(other.model.parameters(), expected))
    state = other.state
    print(
        f"the step takes {needed / 2**20:.0f} MiB, {limit / 2**20:.0f} were allowed: {state.micro_batch_splits} parts, "
        f"recomputation for {state.recomputation}; weights differ by at most {worst:.1e}"
    )
    assert state.micro_batch_splits > 1
    assert worst < 1e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_are_augmented_on_the_device_as_on_the_cpu_and_nobody_waits(memory_format):
    """Pinned by a loader's thread, sent and finished without one call that waits for the device."""
    loader = loader_of(workers=2, pin_memory=True)
    expected = {int(i): x for batch in batches_of(loader_of(), 1) for i, x in zip(batch.index, batch.inputs.image)}
    first = next(loader.epoch(0))[1]
    assert all(tensor.is_pinned() for tensor in (*first.inputs[:3], first.augmentation_params))
    assert first.inputs.image.dtype == torch.uint8
    first.to(CUDA)  # the first one sends mean and deviation, which waits
    for _, batch in loader.epoch(1):
        torch.cuda.set_sync_debug_mode("error")
        try:
            ready = batch.to(CUDA, memory_format)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert ready.inputs.image.is_contiguous(memory_format=memory_format)
        for image, row in zip(ready.inputs.image.cpu(), batch.index.tolist()):
            torch.testing.assert_close(image, expected[row], atol=1e-4, rtol=0)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_evaluation_on_cuda_waits_for_nothing_but_results_and_scores_alike(hierarchical):
    """Batches sent ahead by a stream, results one late: the scores of a loop that waits."""
    model = network("resnet18", hierarchical=str(hierarchical).lower(), num_coarse_classes=2).eval().to(CUDA)
    whole = _batch(45, 128)
    images, (target, mask, *_) = whole.inputs.image, whole.targets
    loader = TensorLoader(images.pin_memory(), target, mask, 8, bad=(2,))
    precision, names = Precision("cuda", torch.bfloat16), tuple("abc")
    predictor = Predictor([model], precision)
    forward = (lambda x: model(x)[1]) if hierarchical else model
    evaluator = Evaluator(model, TrainingLoss(binary_cross_entropy), precision, names, forward=forward)
    expected = []
    for _, batch in loader.epoch(0):
        if batch is not None:
            with torch.inference_mode(), precision.autocast():
                outputs = evaluator.forward(batch.inputs.image.to(CUDA))
            expected.append(outputs.double().cpu())
    torch.cuda.set_sync_debug_mode("error")
    try:
        scores = evaluator(loader, "test").scores
        logits, _ = predictor.over(loader, "test")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(logits[0], torch.cat(expected).numpy(), atol=1e-3)
    np.testing.assert_allclose(scores, torch.cat(expected).sigmoid().numpy(), atol=1e-3)


def test_what_cuda_says_when_memory_is_out_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15, device=CUDA)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("name", [n for n in smallest_of_each_family(list_backbones()) if "3d" not in n])
def test_checkpointing_on_cuda_changes_rounding_at_most(name):
    torch.manual_seed(0)
    model = create_backbone(name, image_size=(64, 64)).to(CUDA).train()
    other = copy.deepcopy(model)
    other.enable_gradient_checkpointing(4, batch_size=2, autocast=torch.bfloat16)
    x = torch.randn(2, 3, *model.image_size, device=CUDA)
    losses, gradients, buffers = [], [], []
    for network_ in (model, other):
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum(y.float().square().mean() for y in network_.forward_features(x))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in network_.parameters() if p.grad is not None])
        buffers.append([b.float() for b in network_.buffers()])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*buffers, strict=True))
    scale = max(g.abs().max().item() for g in gradients[0])
    worst = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)) / scale
    print(f"{name}: loss and buffers equal, gradients differ by {worst:.1e} of the largest")
    assert worst < 1e-2


def network(backbone: str, **settings) -> HybridMedNet:
    torch.manual_seed(0)
    rows = {"pretrained": "false", "fusion_channels": 32, "num_classes": 3} | settings
    overrides = [f"MODEL.{key}={value}" for key, value in rows.items()]
    return HybridMedNet(Config.from_overrides([f"MODEL.backbone={backbone}", "DATA.image_size=128", *overrides]))


def _batch(count: int, size: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (count, 3), generator=g).float()
    mask = torch.ones(count, 3, dtype=torch.bool)
    return batch_of(torch.randn(count, 3, size, size, generator=g), target, mask)

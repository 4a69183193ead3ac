# PYTHON_ARGCOMPLETE_OK
"""Answer HTTP requests with one or several trained models, as predict.py would.

python -m inference.serve checkpoints/<run>                                # http://127.0.0.1:8000
python -m inference.serve checkpoints/<run> --port 9000 --device cuda --batch-size 32
curl --form image=@a.png --form image=@b.dcm http://127.0.0.1:8000/predict
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import socket
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import PredictionError
from configs.followed import SERVE
from utils.arguments import Parser
from utils.command_line import add_overrides, run_script, show
from utils.runs.cross_validation import model_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from data.asked import AskedModel
    from data.asked_bytes import AskedBytes, AskedStudyBytes
    from inference.ensemble import Ensemble
    from inference.serve.limits import Limits
    from inference.serve.service import ModelInfo, ReadRows, Service
    from inference.serve.uploads import Asked

logger = logging.getLogger("serve")

KEY = "HYBRIDMEDNET_API_KEY"
# Of requirements-serve.txt: a module and the package that brings it.
NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        prog="python -m inference.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Routes, formats, limits, keys ({KEY}), containers: docs/serving.md.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="RUN", nargs="+", help="a run's folder or a model's file; several: their mean")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="to listen at (127.0.0.1: this machine alone)")
    add("--port", metavar="N", type=int, default=8000, help="(8000); 0: any that is free, which is printed")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threshold", metavar="X", type=float, help="for all classes; without it the checkpoint's, or else 0.5")
    add("--tta", action="store_true", help="test-time augmentation, see predict.py")
    add("--batch-size", metavar="N", type=int, default=16, help="images that the model is asked about at once (16)")
    add("--wait-ms", metavar="X", type=float, default=5.0, help="how long an image waits for others (5)")
    add("--queue", metavar="N", type=int, default=64, help="images that may wait; more are refused with 503 (64)")
    add("--max-images", metavar="N", type=int, default=16, help="of a request (16)")
    add("--max-megabytes", metavar="X", type=float, default=64.0, help="of a request's body (64)")
    add("--max-megapixels", metavar="X", type=float, default=80.0, help="of an image (80)")
    add("--timeout", metavar="SECONDS", type=float, default=30.0, help="until a request is answered (30)")
    add("--api-key-file", metavar="FILE", help=f"what requests must bring; without it the environment's {KEY}")
    add("--without-key", action="store_true", help="answer everybody, at an address of a network too")
    add_overrides(parser, SERVE)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serve; returns the exit code: 0 after SIGTERM, 2 for the user's errors, 130 after Ctrl-C."""
    return run_script(lambda: serve(parse_arguments(arguments)), arguments)


def serve(options: argparse.Namespace) -> None:
    """The recipe: key → address → models → application → requests until a signal."""
    check_packages()
    import uvicorn

    from inference.serve.app import create_app

    key = api_key(options)
    limits = limits_of(options)
    with listener(options.host, options.port) as listening:
        service = open_service(options, limits)
        settings = uvicorn.Config(
            create_app(service, key),
            log_config=None,
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(2 * limits.timeout_seconds)),
            server_header=False,
            log_level="warning",
        )
        host, port = listening.getsockname()[:2]
        show(f"serving at http://{f'[{host}]' if ':' in host else host}:{port} ({'with' if key else 'without'} a key)")
        # uvicorn takes the signals over and raises them again at its end: what is in flight is answered by then.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(settings).run(sockets=[listening])
    show("stopped: all requests that were taken are answered")


def check_packages() -> None:
    """Raises PredictionError with the line that installs what is missing."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise PredictionError(
            f"the HTTP service needs {', '.join(missing)}: python -m pip install -r requirements-serve.txt"
        )


def api_key(options: argparse.Namespace) -> str | None:
    """What requests must bring; None: nothing. Raises PredictionError at an address of a network without one."""
    key = os.environ.get(KEY, "").strip()
    if options.api_key_file is not None:
        try:
            key = Path(options.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PredictionError(f"--api-key-file '{options.api_key_file}' cannot be read: {error}") from None
        if not key:
            raise PredictionError(f"--api-key-file '{options.api_key_file}' is empty: write a key into it")
    if key and options.without_key:
        raise PredictionError(f"--without-key, but there is a key (--api-key-file or {KEY}): leave one of them out")
    if not key and options.host not in _LOOPBACK and not options.without_key:
        raise PredictionError(
            f"--host {options.host} can be reached from a network: set {KEY} or --api-key-file, or say --without-key"
        )
    return key or None


def limits_of(options: argparse.Namespace) -> Limits:
    """What the options say. Raises PredictionError for what cannot be."""
    from inference.serve.limits import Limits

    return Limits(
        round(options.max_megabytes * 1e6),
        options.max_images,
        round(options.max_megapixels * 1e6),
        options.queue,
        options.batch_size,
        options.wait_ms / 1000,
        options.timeout,
    )


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises PredictionError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise PredictionError(f"cannot listen at {host}, port {port}: {error}; set --host or --port") from None


def open_service(options: argparse.Namespace, limits: Limits) -> Service:
    """Models → reader → the service; the model is asked once, so that the first request does not wait for it."""
    import torch
    from PIL import Image

    from data.asked_bytes import AskedBytes, AskedStudyBytes
    from inference.serve.service import Service
    from inference.serve.studies import studies_of
    from training.precision import choose_device
    from utils.batch import Inputs
    from utils.process import prepare_process

    device = choose_device(options.device)
    prepare_process(device)
    Image.MAX_IMAGE_PIXELS = limits.pixels  # which readers of all formats go by
    ensemble, models = open_models(options, device)
    check_alike(models)
    info = describe(options, ensemble, models, limits)
    if models[0].of_studies:
        given = AskedStudyBytes(models)
        return Service(ensemble, partial(read_studies, given), limits, info, partial(studies_of, columns=given.columns))
    asked = AskedBytes(models)
    service = Service(ensemble, partial(read_image, asked), limits, info)
    shapes = [(one.channels, *one.size) for one in asked.joint.preprocesses]
    ensemble.probabilities([Inputs.of_images(torch.zeros(1, *shape)).to(device) for shape in shapes])
    return service


def check_alike(models: Sequence[AskedModel]) -> None:
    """Raises PredictionError where a model takes studies and another single images, or a table is not described."""
    for model in models:
        if model.of_studies != models[0].of_studies:
            one, other = (model.file, models[0].file) if model.of_studies else (models[0].file, model.file)
            raise PredictionError(f"'{one}' takes studies, '{other}' single images: serve them one by one")
        if model.config.MODEL.table.fusion is not None and model.encoding is None:
            raise PredictionError(f"'{model.file}' does not say how its table is encoded, so it cannot be asked")


def read_studies(given: AskedStudyBytes, request: Asked) -> ReadRows:
    """All studies of a request, read."""
    from data.asked_bytes import GivenImage, GivenStudy
    from inference.serve.problems import label
    from inference.serve.service import ReadRow, ReadRows
    from inference.serve.studies import studies_of

    studies = [
        GivenStudy(
            one.name, [GivenImage(label(image.name), image.content, view) for image, view in one.images], one.cells
        )
        for one in studies_of(request, given.columns)
    ]
    inputs, found = given.read(studies)
    rows = tuple(ReadRow(one.name, one.warnings, one.images, one.missing, one.error) for one in found)
    return ReadRows(inputs, False, rows)


def read_image(asked: AskedBytes, request: Asked) -> ReadRows:
    """The one image of a question, read."""
    from inference.serve.problems import label
    from inference.serve.service import ReadRow, ReadRows

    (image,) = request.images
    name = label(image.name)
    inputs, warnings = asked.read(name, image.content)
    return ReadRows(inputs, True, (ReadRow(name, tuple(warnings)),))


def open_models(options: argparse.Namespace, device: torch.device) -> tuple[Ensemble, list[AskedModel]]:
    """(the Ensemble, what each member's file says of its data), as predict.py opens them."""
    from data.asked_images import input_numbers
    from hybridmednet.opened_model import OpenedModel
    from inference.ensemble import Ensemble
    from models.saved_model import load_models

    files = [file for name in options.checkpoint for file in model_files(Path(name))]
    opened = [OpenedModel.of(file, saved) for file, saved in zip(files, load_models(files, options.set, SERVE))]
    models = [one.asked for one in opened]
    members = [one.member(number, device, options.tta) for one, number in zip(opened, input_numbers(models))]
    return Ensemble(members, options.threshold), models


def describe(
    options: argparse.Namespace, ensemble: Ensemble, models: Sequence[AskedModel], limits: Limits
) -> ModelInfo:
    """What /model says: no path of this machine."""
    from deployment.preparation import describe_input
    from inference.serve.service import ModelInfo
    from inference.serve.studies import FORM
    from utils.environment import describe_environment

    first, fields = models[0], dict[str, str]()
    if first.of_studies:
        fields["studies"] = f"which images are a study, their views, and its row of the table: {FORM}"
    about = []
    for member, model in zip(ensemble.members, models, strict=True):
        path = Path(member.name)
        described = describe_input(model.preprocess.as_dict()).model_dump(mode="json")
        about.append({"file": f"{path.parent.name}/{path.name}", **member.facts, "input": described})
    decision, predictor = ensemble.decision, ensemble.members[0].predictor
    environment = describe_environment(str(predictor.device), predictor.precision.name)
    return ModelInfo(
        kind="studies" if first.of_studies else "volumes" if first.config.has_volumes() else "images",
        classes=list(ensemble.class_names),
        task="multi_class" if decision.task.exclusive else "multi_label",
        decision=decision.as_dict(),
        threshold_source=ensemble.threshold_source,
        no_positive_in_training=list(ensemble.not_learnt),
        test_time_augmentation=options.tta,
        models=about,
        limits={name: float(value) for name, value in asdict(limits).items()},
        packages=environment["packages"],
        device=environment["device"],
        precision=environment["precision"],
        fields=fields,
    )


if __name__ == "__main__":
    sys.exit(main())

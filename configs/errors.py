"""The one family of errors that a user can cause or cure; scripts print the message and exit with `exit_code`.

It lives here, at the bottom of the import graph, because `configs` may import no other folder.
"""


class HybridMedNetError(Exception):
    """Base of all errors with a message for the user: what, which value, what is allowed, what to do."""

    exit_code = 2


class ConfigError(HybridMedNetError):
    """A config file, an override or an assignment is wrong."""


class DataError(HybridMedNetError):
    """Images, labels or splits are missing, contradictory or unreadable."""


class LackingTableError(DataError):
    """The table of studies, or columns of it that are asked for, is not there: what can be said of it as missing."""


class CacheError(DataError):
    """A cache of decoded images was damaged or exchanged while it is read: no image's fault, so it ends the run."""


class ModelError(HybridMedNetError):
    """A model cannot be built as requested, or its weights are not available."""


class WeightsUnavailableError(ModelError):
    """Pretrained weights are not available: no network, and not in the local cache."""


class WeightsError(ModelError, RuntimeError):
    """Weights do not fit the model they are loaded into; a RuntimeError too, as callers of torch's loading expect."""


class CheckpointError(HybridMedNetError):
    """A checkpoint cannot be written, read or used."""


class OwnLoaderError(CheckpointError):
    """A file of a training of a user's own loader, or network: it does not say how an image becomes an input."""


class DamagedCheckpointError(CheckpointError):
    """A file's bytes are not those that were written: cut short, flipped, or not a checkpoint at all."""


class TrainingError(HybridMedNetError):
    """Training cannot continue, for instance because the loss is no longer finite."""


class EvaluationError(HybridMedNetError):
    """An evaluation cannot be made as asked, or what it gives cannot be written."""


class PredictionError(HybridMedNetError):
    """A model cannot be asked, or what it answers is of no use."""


class ExplanationError(HybridMedNetError):
    """A map cannot be made as asked: an unknown method, level or class, or a network that has none of it."""


class ExportError(HybridMedNetError):
    """A model cannot be exported as asked, or the exported file does not compute what the network does."""


def shortened(text: str, most: int = 2000) -> str:
    """A text for a message: the middle of a very long one left out."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"

"""Several images and a row of a table per study, joined before the classifier; see mixer.py."""

from models.studies.fusions import FUSIONS
from models.studies.mixer import StudyMixer
from models.studies.table import NUMERIC
from models.studies.views import AGGREGATORS

__all__ = ["AGGREGATORS", "FUSIONS", "NUMERIC", "StudyMixer"]

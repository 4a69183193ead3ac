"""The previous release's files carry a pickled Config: torch.load reads it, safely, as one of today's.

torch.load's safe mode refuses objects of classes that it was not told of. Importing this file tells it of that one.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from configs.default_config import Config


class OldConfig:
    """Stands in files for the previous release's Config: making one gives a Config of today's defaults."""

    def __new__(cls, *_: Any) -> Config:  # type: ignore[misc]
        warnings.warn(
            "this file carries a Config of the previous release, which kept its settings in the program: what the file "
            "does not hold has today's default",
            stacklevel=2,
        )
        return Config()


# Under the second name nothing can be made, as no name in a file has a line break: it lets what OldConfig gave take the
# settings that a file does hold, by Config.__setstate__, which checks them.
torch.serialization.add_safe_globals([(OldConfig, "configs.default_config.Config"), (Config, "\n")])

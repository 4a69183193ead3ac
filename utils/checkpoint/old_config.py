"""The previous release's files carry a pickled Config, which is read, safely, as a current one.

torch.load's safe mode refuses objects of classes that are not on its list, which is one for the whole process. This
program puts the class there while it reads a file. `import models` leaves it there (`allow_old_config`), as the
previous release's guide has users call torch.load themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from configs.default_config import Config

# A class, or one and the name that stands for it in files.
SafeClass = Callable[..., object] | tuple[Callable[..., object], str]


class OldConfig:
    """Stands in files for the previous release's Config: calling it gives a Config of current defaults."""

    def __new__(cls, *_: object) -> Config:  # type: ignore[misc]
        warnings.warn(
            "this file carries a Config of the previous release, which kept its settings in the program: what the file "
            "does not hold has the current default",
            stacklevel=2,
        )
        return Config()


# Under the second name nothing can be made, as no name in a file has a line break: it lets what OldConfig gave take the
# settings that a file does hold, by Config.__setstate__, which checks them.
_OLD_CONFIG: list[SafeClass] = [(OldConfig, "configs.default_config.Config"), (Config, "\n")]


def allow_old_config() -> None:
    """Let torch.load take the previous release's Config from here on, in the whole process."""
    torch.serialization.add_safe_globals(_OLD_CONFIG)


@contextmanager
def old_config_allowed(*others: type) -> Iterator[None]:
    """Inside, torch.load takes the previous release's Config and objects of these classes; after, what it did before.

    torch's own context takes a class away at its end that somebody else had allowed.
    """
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([name for name in (*_OLD_CONFIG, *others) if name not in before]):
        yield

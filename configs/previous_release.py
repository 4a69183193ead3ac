"""Configs that the previous release pickled: plain objects, whose settings are checked like anybody's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

from configs.errors import ConfigError
from configs.section import Section

# A file must not say what is opened, fetched or written on the machine that reads it.
PATHS = {
    "MODEL.pretrained",
    "MODEL.init_from",
    "DATA.data_dir",
    "DATA.labels_file",
    "DATA.split_file",
    "DATA.cache_dir",
    "CHECKPOINT.save_dir",
    "LOGGING.log_dir",
    "LOGGING.run_name",
}
_MAX_DISPLAYED = 20


def restore(config: Section, state: object) -> None:
    """Fill a Config that is being unpickled: the defaults, then the settings in `state`, {'MODEL': {...}, …}.

    What is unknown, not allowed today or a path keeps its default; one UserWarning names all of it.
    """
    config.__init__()  # type: ignore[misc]  # unpickling does not call it
    left_out = list(_take_over(config, state))
    if left_out:
        names = ", ".join(left_out[:_MAX_DISPLAYED]) + (", …" if len(left_out) > _MAX_DISPLAYED else "")
        warnings.warn(
            "where the previous release's Config has paths, or what is not allowed, the current defaults are used: "
            + names,
            stacklevel=2,
        )


def _take_over(config: Section, state: object) -> Iterator[str]:
    """Set what can be set; the names of what cannot."""
    if not isinstance(state, Mapping):
        yield f"all, which are not a mapping but {type(state).__name__}"
        return
    for section, settings in state.items():
        if section not in config or not isinstance(settings, Mapping):
            yield _display(section)
            continue
        for key, value in settings.items():
            if not _assign(config, section, key, value):
                yield f"{section}.{_display(key)}"


def _assign(config: Section, section: str, key: object, value: object) -> bool:
    if not isinstance(key, str) or key not in config[section] or f"{section}.{key}" in PATHS:
        return False
    try:
        config[section][key] = value
    except ConfigError:
        return False
    return True


def _display(name: object) -> str:
    return str(name)[:60] if isinstance(name, str) else type(name).__name__

"""What the tests of the settings share: the path of every setting, and a Config with some values set."""

from collections.abc import Iterator

from configs.default_config import Config
from configs.section import Section

SECTIONS = list(Config.model_fields)
FINDINGS = ("nodule", "mass", "effusion")


def all_settings(section: type[Section] = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """('MODEL', 'backbone'), …, ('MODEL', 'gradient_checkpointing', 'enabled'): the leaves."""
    for key, field in section.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            yield from all_settings(nested, (*path, key))
        else:
            yield (*path, key)


SETTINGS = list(all_settings())


def with_values(values: dict) -> Config:
    config = Config()
    for name, value in values.items():
        section, key = name.split(".")
        config[section][key] = value
    return config

"""A typed group of settings that reads like a dict and names every mistake in the user's words."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypedDict, TypeVar, Unpack, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from configs.errors import ConfigError

T = TypeVar("T")


class Section(BaseModel):
    """Settings with types, defaults and help; `section.key`, `section['key']` and `section.get('key')` all work.

    Defaults, arguments and assignments are checked alike: an unknown key or a bad value is a ConfigError and changes
    nothing. A value means the same whichever way it came: nothing tells a default from what was set.
    """

    section_name: ClassVar[str] = "Config"
    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,  # a default that somebody edited is checked like any value
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def __init__(self, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(describe_errors(error, type(self), self.section_name))) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("true and false are no numbers")
        if isinstance(value, (list, tuple)) and any(isinstance(item, bool) for item in value):
            raise ValueError("true and false are no numbers")
        return value

    def __setattr__(self, key: str, value: object) -> None:
        if isinstance(value, Section):
            value = value.model_copy(deep=True)  # two configs share nothing
        try:
            super().__setattr__(key, value)
        except ValidationError as error:
            raise ConfigError("; ".join(describe_errors(error, type(self), self.section_name))) from None

    def __setitem__(self, key: str, value: object) -> None:
        setattr(self, key, value)

    # Any: which setting it is, and so its type, is known to the caller alone.
    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields:
            raise ConfigError(unknown_name(f"{self.section_name}.{key}", key, type(self).model_fields))
        return getattr(self, key)

    # Any: as above.
    def get(self, key: str, default: object = None) -> Any:
        """The value of `key`, or `default` where there is no such key."""
        return getattr(self, key) if key in self.keys() else default

    def __contains__(self, key: object) -> bool:
        return key in type(self).model_fields

    def keys(self) -> list[str]:
        """The names of all settings, in the order of their definition."""
        return list(type(self).model_fields)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.keys())

    # Any: as above.
    def items(self) -> list[tuple[str, Any]]:
        """(name, value) pairs."""
        return [(key, getattr(self, key)) for key in self.keys()]


def settled(value: T | None, key: str) -> T:
    """The value of a setting that `Config.resolve` fills; ConfigError where it is still open."""
    if value is None:
        raise ConfigError(f"{key} is still null: call config.resolve(class_names) first, which takes it from the data")
    return value


def unknown_name(where: str, name: str, known: Iterable[str]) -> str:
    """'unknown setting TRAIN.batchsize: did you mean 'batch_size'?', or the list of what there is."""
    names = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean '{names[close[0]]}'?" if close else f"there are: {', '.join(names.values())}"
    return f"unknown setting {where}: {hint}"


def describe_errors(error: ValidationError, model: type[BaseModel], where: str) -> list[str]:
    """One sentence a problem: which key, which value, what is allowed. Problems of a union are reported once."""
    problems: dict[str, str] = {}
    for detail in error.errors():
        key, field_model = _locate(detail, model)
        text = _describe(detail, field_model, f"{where}.{key}", key.rsplit(".", 1)[-1])
        if key in problems and "is not allowed" in problems[key]:
            continue
        problems[key] = text
    return list(problems.values())


def _locate(detail: ErrorDetails, model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The dotted name of the setting an error is about, and the section it belongs to."""
    path, current, parts = [], model, detail["loc"]
    for depth, part in enumerate(parts, start=1):
        path.append(str(part))
        field = current.model_fields.get(str(part))
        nested = field.annotation if field is not None else None
        if depth == len(parts) or not (isinstance(nested, type) and issubclass(nested, Section)):
            break
        current = nested
    return ".".join(path), current


def _describe(detail: ErrorDetails, model: type[BaseModel], where: str, key: str) -> str:
    if detail["type"] in ("extra_forbidden", "no_such_attribute"):
        return unknown_name(where, key, model.model_fields)
    field = model.model_fields.get(key)
    if field is None:
        return f"{where}: {detail['msg']}"
    allowed = allowed_values(field)
    value = detail["input"] if len(detail["loc"]) <= 1 or not isinstance(detail["input"], dict) else "a mapping"
    close = difflib.get_close_matches(str(value).lower(), _choices(field.annotation), n=1)
    hint = f"; did you mean '{close[0]}'?" if close else _of_percent(value, field)
    return f"{where}: {value!r} is not allowed: {allowed}{hint}"


def _of_percent(value: object, field: FieldInfo) -> str:
    """'; 20 % is 0.2' for a number over a share, which is at most 1."""
    most = [getattr(rule, name, None) for rule in field.metadata for name in ("le", "lt")]
    try:
        percent = math.nan if isinstance(value, bool) else float(str(value).rstrip(" %"))
    except ValueError:
        return ""
    return f"; {percent:g} % is {percent / 100:g}" if 1 in most and 1 < percent <= 100 else ""


def _choices(annotation: object) -> list[str]:
    """The strings that an annotation lists as literals, however deep in unions."""
    found = [arg for arg in get_args(annotation) if isinstance(arg, str)]
    for arg in get_args(annotation):
        if not isinstance(arg, str):
            found += _choices(arg)
    return found


_TYPE_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_BOUND_WORDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}


def allowed_values(field: FieldInfo) -> str:
    """What a field takes, in words: 'a whole number at least 1', 'one of cosine, constant', 'text or null'."""
    return " or ".join(dict.fromkeys(_type_words(field.annotation))) + _bounds(field.metadata)


def _bounds(rules: Iterable[object]) -> str:
    """' (at least 0 and less than 1)', '' without bounds."""
    bounds = [
        f"{text} {getattr(rule, name):g}"
        for rule in rules
        for name, text in _BOUND_WORDS.items()
        if getattr(rule, name, None) is not None
    ]
    return f" ({' and '.join(bounds)})" if bounds else ""


def _type_words(annotation: object) -> list[str]:
    origin = getattr(annotation, "__origin__", None)
    if hasattr(annotation, "__metadata__"):  # Annotated[int, Gt(0)]
        return [word + _bounds(annotation.__metadata__) for word in _type_words(origin)]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return ["a mapping of settings"]
    if annotation in _TYPE_WORDS:
        return [_TYPE_WORDS[annotation]]
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, (str, int)) for argument in arguments):
        return ["one of " + ", ".join(map(str, arguments))]
    if origin is dict:
        return ["a mapping of names"]
    if origin in (list, tuple):
        return [f"a list, each {_type_words(arguments[0])[0]}" if arguments else "a list"]
    return [word for argument in arguments for word in _type_words(argument)] or ["a valid value"]


def default_text(field: FieldInfo) -> str:
    """The default as YAML would write it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


class _Limits(TypedDict, total=False):
    """What a number must be: greater than, greater than or equal to, less than, less than or equal to."""

    gt: float
    ge: float
    lt: float
    le: float


def setting(default: T, help_text: str, **limits: Unpack[_Limits]) -> T:
    """A field of a section: its default, its help text, and what a number must be."""
    return Field(default, description=help_text, **limits)

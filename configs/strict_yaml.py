"""YAML for settings: plain values only, no surprising conversions, no expansion of aliases beyond the text's size."""

from __future__ import annotations

import re

import yaml

from configs.errors import ConfigError, shortened

MAX_CHARACTERS = 2**18  # all our settings with their help are a tenth of it
_MOST_EXPANDED = 4 * MAX_CHARACTERS
_MOST_LEVELS = 20
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_yaml(text: str, what: str) -> object:
    """The value of a document; ConfigError naming it for anything that prevents reading."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{what} has more than {MAX_CHARACTERS:,} characters: settings are shorter")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{what} is not valid YAML: {shortened(' '.join(str(error).split()))}") from None


class _StrictLoader(yaml.SafeLoader):
    """safe_load that refuses what YAML 1.1 reads otherwise than it looks, and aliases that could expand.

    Refused are a key given twice, numbers such as 012 and 1:30 (10 and 90) or beyond 64 bits, tags, more than 20
    levels, an alias of what it stands in, and aliases that together say more than a million characters.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            _refuse(event, f"the tag {event.tag!r} is not allowed: put text in quotes, write other values plainly")
        if self._level == _MOST_LEVELS:
            _refuse(event, f"more than {_MOST_LEVELS} levels")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        assert node is not None, "peek_event was the beginning of one"
        self._measure(node, event)
        return node

    def _measure(self, node: yaml.Node, event: yaml.Event) -> None:
        """Note how many characters a node says, all aliases written out; refuse too many."""
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = 1 + self._size_of(node)
        elif id(node) not in self._sizes:
            _refuse(event, "an alias of what it stands in")
        if self._sizes[id(node)] > _MOST_EXPANDED:
            _refuse(event, f"with its aliases written out it has more than {_MOST_EXPANDED:,} characters")

    def _size_of(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return len(node.value)
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
        return sum(self._sizes[id(item)] for pair in pairs for item in pair)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                _refuse(key_node, "keys must be plain words")
            if key in seen:
                _refuse(key_node, f"'{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            _refuse_number(node, "begins with 0, which YAML reads as octal")
        self._refuse_base_60(node)
        number = super().construct_yaml_int(node)
        if abs(number) >= 2**63:
            _refuse(node, "a number beyond 64 bits")
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        self._refuse_base_60(node)
        return super().construct_yaml_float(node)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        if _SURROGATE.search(node.value):
            _refuse(node, "half a character (a lone surrogate) is no text")
        return super().construct_yaml_str(node)

    def _refuse_base_60(self, node: yaml.ScalarNode) -> None:
        if ":" in node.value:
            _refuse_number(node, "has a colon, which YAML reads as base 60")


def _refuse_number(node: yaml.ScalarNode, why: str) -> None:
    _refuse(node, f"'{node.value}' {why}: write it plainly, or in quotes")


def _refuse(node: yaml.Node | yaml.Event, why: str) -> None:
    mark = node.start_mark
    assert isinstance(mark, yaml.Mark), "SafeLoader's, not the C library's"
    raise yaml.constructor.ConstructorError(None, None, why, mark)


for _kind in ("int", "float", "str"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(_StrictLoader, f"construct_yaml_{_kind}"))

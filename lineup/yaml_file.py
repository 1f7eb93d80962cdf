"""YAML that people write, read strictly: plain numbers and words of YAML 1.2, no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from lineup.errors import UserError

FORMS = {  # of YAML 1.2, as DVC reads it, but for 0x1f, 1_000, dates: words here
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    message = f"'{key.value}' stands twice"
                    raise ConstructorError(None, None, message, key.start_mark)
                seen.add(key.value)
        return node


for _tag, (_form, _starts) in FORMS.items():
    _pattern = re.compile(f"^({_form})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_starts))


def read_yaml(path: Path) -> Any:  # noqa: ANN401
    """Return the content of a YAML file; UserError that names what can't be read, and where."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        place = f"from byte {error.start} on"
        raise UserError(f"{path} is not UTF-8, {place}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None

"""Yaml of others: PyYAML's safe loader, within a few times the size of the text."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without merge keys, a few of which make a mapping of any size."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)


def load_yaml(text: str) -> Any:
    """The content of a yaml text, which its aliases do not make larger than a few times the text.

    Raises:
        ScannerError: as of PyYAML.
        ValueError: not valid.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  a subclass of SafeLoader
    except ScannerError:
        raise
    except Exception as error:  # PyYAML raises many types on an odd scalar, as !!int '' or !!bool x.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    left, waiting = 1000 + 4 * len(text), [content]
    while waiting:
        item = waiting.pop()
        inner = [*item, *item.values()] if isinstance(item, dict) else item
        inner = inner if isinstance(inner, (list, tuple, set)) else ()
        left -= 1 + len(item if isinstance(item, (str, bytes)) else inner)
        if left < 0:
            raise ValueError("its aliases (*name) repeat too much")
        waiting.extend(inner)
    return content

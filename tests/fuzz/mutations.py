"""Changes to files that know what the file holds: json by its values, text by its words and lines, bytes by headers.

A change is three whole numbers that hypothesis draws (what is done, where, with which value), so that a failing input
shrinks to few changes, and making one takes microseconds.
"""

import copy
import json
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st


Change = tuple[int, int, int]
CHANGES = st.lists(st.tuples(st.integers(0, 23), st.integers(0, 9999), st.integers(0, 9999)), min_size=1, max_size=4)

_NUMBERS = [0, 1, -1, 2, 0.5, -0.0, 7, 59.5, 60, 61, 255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63]
_NUMBERS += [2**64, -(2**63) - 1, 10**30, 10**400, 1e12, 1.1e12, 1e300, 1e-300, float("nan"), float("inf"), -1e9]
_TEXTS = [
    "",
    " ",
    "0",
    "1",
    "-1",
    "1.0",
    "nan",
    "1e999",
    "²",
    "\ud83d",
    "a\nb",
    "a\u2028b",
    "\0",
    "\x1b[31m",
    "\ufeff",
]
_TEXTS += [
    "../../x",
    "/etc/hostname",
    "C:\\x",
    "..",
    ".",
    "a.png",
    "A.PNG",
    "a.png/b.png",
    "b.jpg",
    "red",
    " red ",
    "red\t",
]
_TEXTS += [
    "background",
    "object",
    "x" * 300,
    "é",
    "e\u0301",
    "http://a.b/c.png",
    "a,b",
    'a"b',
    "<b>",
    "a|b",
    "`x`",
    "{{x}}",
]
_TEXTS += ["rectangle", "polygon", "mask", "circle", "xyxy", "true", "None", "null"]
_DEEP: Any = []
for _ in range(60):
    _DEEP = [_DEEP]
_VALUES = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    _DEEP,
    [0] * 4,
    [1, 2, 3, 4],
    [1e9] * 6,
    [0] * 1000,
]
_VALUES += [[10, 8, 30, 24], [[10, 8, 30, 8, 30, 24]], [[1e5, 1e5, -1e5, 1e5, 3, 9]], [["1", "2"]] * 3, "10 8 20 16"]
_VALUES += [
    {"size": [40, 60], "counts": [2400]},
    {"size": [40, 60], "counts": "PPYo0"},
    {"size": [40, 60], "counts": 5},
]
_VALUES += [
    {"size": [2**16, 2**16], "counts": [2**32]},
    {"size": [40.0, "60"], "counts": [0, 2400]},
    {"counts": "0" * 99},
]
_VALUES += [{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"file_name": "a.png"}, {"id": 1, "name": "red"}, {"x": 1, "y": 2}]

_WORDS = [*(str(number) for number in _NUMBERS if number != 10**400), *(text for text in _TEXTS if text != "\ud83d")]
_WORDS += [
    "\n",
    "\n\n",
    "\r",
    "\t",
    ",",
    ";",
    ":",
    "'",
    '"',
    "<",
    ">",
    "&",
    "&amp;",
    "&#0;",
    "&#65;",
    "</object>",
    "<!--",
    "]]>",
]
_WORDS += [
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<: ",
    "!!float ''",
    "!!binary x",
    "!!python/none",
    "? ",
    "| ",
    "%",
    "#",
    "---",
]
_WORDS += ["9" * 5000, "1_000", "0x10", "1e5", "+1", "--1", "١", "\U0001f600"]


def changed_json(content: Any, changes: Sequence[Change]) -> Any:
    """A copy of what json, yaml or a row holds, with some of its values, keys and lists changed."""
    content = copy.deepcopy(content)
    for change in changes:
        content = _changed_value(content, *change)
    return content


def json_bytes(content: Any) -> bytes:
    """Json as Python writes it: NaN, halves of characters as escapes."""
    return json.dumps(content, default=str).encode()


def _places(content: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value inside."""
    found, waiting = [], [content]
    while waiting and len(found) < 2000:
        item = waiting.pop()
        inner = (
            list(item.items()) if isinstance(item, dict) else list(enumerate(item)) if isinstance(item, list) else ()
        )
        for key, value in inner:
            found.append((item, key))
            waiting.append(value)
    return found


def _changed_value(content: Any, what: int, where: int, which: int) -> Any:
    places = _places(content)
    if not places or (what == 0 and where % 20 == 0):
        return _odd(which)
    container, key = places[where % len(places)]
    value = container[key]
    if what < 12:
        container[key] = _odd(which)
    elif what < 14:
        del container[key]
    elif what == 14 and isinstance(container, dict):
        other, name = places[which % len(places)]
        container[name if isinstance(name, str) else str(which)] = container.pop(key)
    elif what < 16:
        container[key] = [copy.deepcopy(value)] * (which % 4) if what == 14 else {"0": value}
    elif what == 16:
        other, name = places[which % len(places)]
        container[key] = copy.deepcopy(other[name])
    elif what == 17 and isinstance(value, list):
        container[key] = copy.deepcopy(value) * (which % 4) + value
    elif what < 20 and isinstance(value, (int, float)):
        factors = (-1, 0.5, 1000, 1 / 3, 1e9)
        is_small = abs(value) < 1e15  # larger ones are no floats
        container[key] = value * factors[which % len(factors)] if is_small and what == 19 else str(value)
    elif what < 22 and isinstance(value, str):
        text = _TEXTS[which % len(_TEXTS)]
        container[key] = value + text if what == 20 else text + value
    elif isinstance(container, list):
        container.insert(int(key), _odd(which))
    else:
        container[_TEXTS[which % len(_TEXTS)]] = copy.deepcopy(value)
    return content


def _odd(which: int) -> Any:
    pool = (_NUMBERS, _TEXTS, _VALUES)[which % 3]
    return copy.deepcopy(pool[which // 3 % len(pool)])


def changed_text(text: str, changes: Sequence[Change]) -> str:
    """A text with some of its words, signs and lines changed."""
    for what, where, which in changes:
        if what < 18:
            parts = re.findall(r"[\w.+-]+|\s|[^\w\s]", text) or [""]
            place = where % len(parts)
            word = _WORDS[which % len(_WORDS)]
            if what < 10:
                parts[place] = word
            elif what < 12:
                parts[place : place + 1 + which % 3] = []
            elif what < 14:
                parts.insert(place, word)
            elif what < 16:
                other = which % len(parts)
                parts[place], parts[other] = parts[other], parts[place]
            else:
                parts[place] *= 1 + which % 40
            text = "".join(parts)
        else:
            lines = text.split("\n")
            place = where % len(lines)
            if what < 20:
                del lines[place]
            elif what < 22:
                lines[place:place] = lines[place : place + 3] * (1 + which % 9)
            else:
                lines[place] = lines[which % len(lines)]
            text = "\n".join(lines)
    return text


def changed_bytes(data: bytes, changes: Sequence[Change]) -> bytes:
    """Bytes with some of them set, left out, repeated or cut off; near the start, where headers are, more often."""
    made = bytearray(data)
    for what, where, which in changes:
        if not made:
            break
        place = where % (min(len(made), 64) if what % 2 else len(made))
        if what < 6:
            made[place] = which % 256
        elif what < 8:
            made[place] ^= 1 << which % 8
        elif what < 14:
            numbers = (
                0,
                1,
                0x7F,
                0x80,
                0xFF,
                0x7FFF,
                0x8000,
                0xFFFF,
                0x7FFFFFFF,
                0x80000000,
                0xFFFFFFFF,
                0x10000,
                60000,
            )
            number, size = numbers[which % len(numbers)], (2, 4, 4)[what % 3]
            order = "little" if which // 13 % 2 else "big"
            made[place : place + size] = (number % 256**size).to_bytes(size, order)
        elif what < 16:
            del made[place : place + 1 + which % 40]
        elif what < 18:
            made[place:place] = made[place : place + 1 + which % 200]
        elif what < 20:
            del made[len(made) - which % (len(made) + 1) :]
        elif what < 22:
            made += bytes(which % 256 for _ in range(which % 100))
        else:
            made[place:place] = (b"\0", b"\xff", b"\n", b"\xef\xbb\xbf", b"\xff\xfe")[which % 5]
    return bytes(made)

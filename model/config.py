"""Read the numbers of a ``config.json`` into a configuration dataclass.

No model is as large as the limits here. Without them a number too many in a file would have the networks built, without
weights, until the memory ends.
"""

import sys
from dataclasses import fields
from typing import Any, TypeVar

from runtime.errors import shown

Config = TypeVar("Config")
_MOST_LAYERS, _LONGEST_LIST = 1000, 16
_LARGEST = 1 << 24
"""Of all other whole numbers: sizes of layers, and of the vocabulary."""


def from_dict(kind: type[Config], data: dict[str, Any], folder: str) -> Config:
    """`kind` with the values of its fields in `data`; other keys are left aside.

    Raises:
        ValueError: a value is not a positive number, or a list of them, like the field's default; or it is larger than
            that of any model.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{folder}: the configuration is {shown(data)}, wanted an object")
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]  # a dataclass, which no annotation can say
        value = data.get(field.name)
        if value is None:
            continue
        many = isinstance(value, list)
        numbers = value if many else [value]
        allowed = (int, float) if isinstance(field.default, float) or "float" in str(field.type) else (int,)
        fits = numbers and all(type(n) in allowed and 0 < n <= sys.float_info.max for n in numbers)
        if many != ("tuple" in str(field.type)) or not fits:
            wanted = "a list of positive integers" if "tuple" in str(field.type) else "a positive number"
            raise ValueError(f"{folder}: {field.name} is {shown(value)}, wanted {wanted}")
        if allowed == (int,):
            _check_limits(f"{folder}: {field.name}", numbers, _MOST_LAYERS if "layers" in field.name else _LARGEST)
        values[field.name] = tuple(value) if many else value
    return kind(**values)


def _check_limits(name: str, numbers: list[int], largest: int) -> None:
    if len(numbers) > _LONGEST_LIST:
        raise ValueError(f"{name} has {len(numbers)} numbers, wanted at most {_LONGEST_LIST}")
    if max(numbers) > largest:
        raise ValueError(f"{name} is {shown(max(numbers))}, wanted at most {largest}")

"""Read the numbers of a ``config.json`` into a configuration dataclass."""

import math
from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def from_dict(kind: type[Config], data: dict[str, Any], folder: str) -> Config:
    """`kind` with the values of its fields in `data`; other keys are left aside.

    Raises:
        ValueError: a value is not a positive number, or a list of them, like the field's default.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{folder}: the configuration is {data!r}, wanted an object")
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]  # a dataclass, which no annotation can say
        value = data.get(field.name)
        if value is None:
            continue
        many = isinstance(value, list)
        numbers = value if many else [value]
        allowed = (int, float) if isinstance(field.default, float) or "float" in str(field.type) else (int,)
        fits = numbers and all(type(n) in allowed and 0 < n < math.inf for n in numbers)
        if many != ("tuple" in str(field.type)) or not fits:
            wanted = "a list of positive integers" if "tuple" in str(field.type) else "a positive number"
            raise ValueError(f"{folder}: {field.name} is {value!r}, wanted {wanted}")
        values[field.name] = tuple(value) if many else value
    return kind(**values)

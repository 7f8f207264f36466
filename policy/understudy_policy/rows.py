"""Dataclasses of arrays whose first axis is the workload: taking, joining and growing their rows.

Everything that decides is a structure of arrays. These few functions are the only place that knows how to
walk such a structure, so that a new field never needs bookkeeping of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import array_api_compat
import array_api_compat.numpy
import numpy as np

Rows = TypeVar("Rows")
Array = Any
"""A NumPy array or a torch tensor: the functions of this package take either."""

SHARED = "shared"
"""Field metadata key: the field belongs to all rows at once (a clock, a ring's head) and has no row axis."""


def shared(**kwargs: Any) -> Any:
    """A dataclass field that all rows have in common."""
    return dataclasses.field(metadata={SHARED: True}, **kwargs)


def namespace(*arrays: Array) -> Any:
    """The array namespace (NumPy's or torch's) of the given arrays."""
    # Asking the library costs more than the arithmetic on a few hundred rows.
    if all(type(array) is np.ndarray for array in arrays):
        return array_api_compat.numpy
    return array_api_compat.array_namespace(*arrays)


def device(array: Array) -> Any:
    """Where the array lives, to create its companions there."""
    return array_api_compat.device(array)


def maximum(xp: Any, a: Array, b: Array) -> Array:
    """Element-wise larger value that promotes nothing: `where`, because Python scalars are allowed for b."""
    return xp.where(a >= b, a, b)


def minimum(xp: Any, a: Array, b: Array) -> Array:
    """Element-wise smaller value; see `maximum`."""
    return xp.where(a <= b, a, b)


def is_unknown(values: Array) -> Array:
    """True where a value is NaN, which is how this program writes "unknown".

    A comparison, because torch's compiler takes `isnan` element by element and compares sixteen at once.
    """
    return values != values  # only NaN differs from itself


def mean_of_known(values: Array) -> Array:
    """Mean of what is known in each row of `[N, K]`; NaN where nothing is."""
    xp = namespace(values)
    known = ~is_unknown(values)
    count = xp.sum(xp.astype(known, values.dtype), axis=1)
    total = xp.sum(xp.where(known, values, xp.zeros_like(values)), axis=1)
    return xp.where(count > 0, total / maximum(xp, count, 1.0), xp.full_like(total, xp.nan))


def map_rows(function: Callable[[Array], Array], rows: Rows) -> Rows:
    """Apply a function to every per-row array of a dataclass, nested ones included; None stays None."""

    def one(field: dataclasses.Field[Any]) -> Any:
        value = getattr(rows, field.name)
        if dataclasses.is_dataclass(value):
            return map_rows(function, value)
        return value if value is None or field.metadata.get(SHARED) else function(value)

    structure: Any = rows
    replaced: Rows = dataclasses.replace(structure, **{f.name: one(f) for f in dataclasses.fields(structure)})
    return replaced


def take(rows: Rows, index: Array) -> Rows:
    """The rows named by an integer index or a boolean mask, in its order."""
    return map_rows(lambda array: array[index], rows)


def concatenate(first: Rows, second: Rows) -> Rows:
    """All rows of the first (NumPy) structure, then all rows of the second; shared fields are the first's."""

    def join(a: Any, b: Any) -> Any:
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(a):
            if field.metadata.get(SHARED):
                continue
            x, y = getattr(a, field.name), getattr(b, field.name)
            if x is None and y is None:
                continue
            changes[field.name] = join(x, y) if dataclasses.is_dataclass(x) else np.concatenate([x, y])
        return dataclasses.replace(a, **changes)

    joined: Rows = join(first, second)
    return joined


def as_torch_or_numpy(rows: Rows, convert: Callable[[Array], Array]) -> Rows:
    """The same structure in another array library: `convert` is applied to shared arrays too."""

    def one(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return as_torch_or_numpy(value, convert)
        return convert(value) if isinstance(value, np.ndarray) else value

    structure: Any = rows
    changes = {field.name: one(getattr(rows, field.name)) for field in dataclasses.fields(structure)}
    replaced: Rows = dataclasses.replace(structure, **changes)
    return replaced

"""Arrays `[N, K]` are kept column by column in memory, because a tick walks all workloads of one column at a time.

The first axis is the workload wherever arrays are handed on; inside the cluster model it is the last one. So a
number per workload meets a whole table without reshaping, a window shifts by moving columns, and a compiler can turn a
tick into a few loops over the workloads. Both directions are views; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable

import array_api_compat.numpy as in_numpy

from understudy_policy.rows import Array, namespace


def by_column(rows: Array) -> Array:
    """The view `[K, N]` of `[N, K]`, or `[R, K, N]` of `[N, R, K]`."""
    return namespace(rows).permute_dims(rows, (*range(1, rows.ndim), 0))


def by_row(columns: Array) -> Array:
    """The view `[N, K]` of `[K, N]`, or `[N, R, K]` of `[R, K, N]`."""
    return namespace(columns).permute_dims(columns, (columns.ndim - 1, *range(columns.ndim - 1)))


def stack(*columns: Array) -> Array:
    """Arrays `[N]` side by side as `[N, K]`, kept column by column."""
    return by_row(namespace(columns[0]).stack(list(columns), axis=0))


def once(*columns: Array) -> list[Array]:
    """The same arrays `[N]`, as columns of one table.

    A compiler that fuses loops computes again, for every column of a table, whatever goes into all of them. What lies
    in a table of its own is computed once.
    """
    table = by_column(stack(*columns))
    return [table[k] for k in range(len(columns))]


def each(function: Callable[..., Array], *tables: Array) -> Array:
    """A function of every column: of tables `[K, N]` the table `[K, N]` of its results.

    NumPy is given whole tables, because calls are what costs there. A compiler is given column after column: it makes
    one loop of them, in which whatever they have in common is read and computed once.

    Args:
        function: of as many arrays `[N]` as there are tables, element by element; tables must do as well.
        tables: `[K, N]` each.
    """
    xp = namespace(tables[0])
    if xp is in_numpy:
        return function(*tables)
    return xp.stack([function(*columns) for columns in zip(*tables, strict=True)], axis=0)

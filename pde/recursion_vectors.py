"""A few doubles side by side as one value of compiled kernels, which the compiler keeps in a vector register.

Four neighbours of a spline with two classes each lie next to each other: one load, one multiplication and
one addition for eight numbers, which no compiler finds by itself where they may start anywhere in memory.
Machines with shorter registers get the same numbers in two or four steps. Arrays are contiguous, indices
those of their flat form.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core.datamodel import registry
from numba.core.datamodel.models import PrimitiveModel

# untyped, as kernels are
_intrinsic: Any = extending.intrinsic
#: sums may be reordered and contracted, as in `kernel`
_FAST = ("contract", "reassoc", "nsz")
#: relative error of an interpolated value
_ROUNDING = 1e-13


class Lanes(types.Type):
    """The type of `count` doubles."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Lanes({count})")


@registry.register_default(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.DoubleType(), kind.count))


_TWO, _FOUR, _EIGHT = Lanes(2), Lanes(4), Lanes(8)


def _shuffled(builder: Any, value: Any, order: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _splat(builder: Any, number: Any, count: int) -> Any:
    vector = ir.VectorType(number.type, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return _shuffled(builder, first, [0] * count)


def _place(context: Any, builder: Any, kinds: Any, values: Any, count: int) -> Any:
    data = context.make_array(kinds[0])(context, builder, values[0]).data
    vector = ir.VectorType(ir.DoubleType(), count)
    return builder.bitcast(builder.gep(data, [values[1]]), vector.as_pointer())


def _loader(lanes: Lanes) -> Any:
    def typed(context, array, index):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return builder.load(_place(context, builder, signature.args, values, lanes.count), align=8)

        return lanes(array, types.uint64), generate

    return typed


#: 2, 4 or 8 numbers of an array from an index on
load2, load4, load8 = (_intrinsic(_loader(lanes)) for lanes in (_TWO, _FOUR, _EIGHT))


@_intrinsic
def store(context, array, index, value):  # type: ignore[no-untyped-def]
    """Put a vector into an array from an index on."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        builder.store(values[2], _place(context, builder, signature.args, values, value.count), align=8)
        return context.get_dummy_value()

    return types.void(array, types.uint64, value), generate


@_intrinsic
def times(context, a, b):  # type: ignore[no-untyped-def]
    """a b, number by number; b may be one number for all."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        left, right = values
        right = right if isinstance(b, Lanes) else _splat(builder, right, a.count)
        return builder.fmul(left, right, flags=_FAST)

    return a(a, b if isinstance(b, Lanes) else types.float64), generate


@_intrinsic
def plus_times(context, total, a, b):  # type: ignore[no-untyped-def]
    """total + a b, b a vector or one number."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        left = values[2] if isinstance(b, Lanes) else _splat(builder, values[2], a.count)
        return builder.fadd(values[0], builder.fmul(values[1], left, flags=_FAST), flags=_FAST)

    return total(total, a, b if isinstance(b, Lanes) else types.float64), generate


@_intrinsic
def twice(context, a):  # type: ignore[no-untyped-def]
    """Each of 4 numbers twice in a row: 8."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return _shuffled(builder, values[0], [0, 0, 1, 1, 2, 2, 3, 3])

    return _EIGHT(a), generate


@_intrinsic
def repeated(context, a):  # type: ignore[no-untyped-def]
    """A pair four times: 8 numbers."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return _shuffled(builder, values[0], [0, 1] * 4)

    return _EIGHT(a), generate


@_intrinsic
def pair_sum(context, a):  # type: ignore[no-untyped-def]
    """The sum of the four pairs of 8 numbers: 2."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        total = values[0]
        for half in (4, 2):
            low, high = (_shuffled(builder, total, [*range(s, s + half)]) for s in (0, half))
            total = builder.fadd(low, high, flags=_FAST)
        return total

    return _TWO(a), generate


def _part(first: int) -> Any:
    def typed(context, a):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return _shuffled(builder, values[0], [first, first + 1])

        return _TWO(a), generate

    return typed


#: the first and the second pair
low, high = _intrinsic(_part(0)), _intrinsic(_part(2))


@_intrinsic
def differ(context, a, b):  # type: ignore[no-untyped-def]
    """Whether any number of a is off that of b by more than the rounding of a sum."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        off, rounding = builder.fsub(*values), ir.Constant(values[1].type, [_ROUNDING] * b.count)
        size = builder.fmul(values[1], rounding)
        further = builder.fcmp_ordered(">", builder.fmul(off, off), builder.fmul(size, size))
        found = builder.bitcast(further, ir.IntType(a.count))
        return builder.icmp_unsigned("!=", found, ir.Constant(found.type, 0))

    return types.boolean(a, b), generate


@_intrinsic
def number(context, a, index):  # type: ignore[no-untyped-def]
    """One of a vector's numbers."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.extract_element(values[0], builder.trunc(values[1], ir.IntType(32)))

    return types.float64(a, types.uint64), generate


def _chooser(comparison: str) -> Any:
    def typed(context, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return builder.select(builder.fcmp_ordered(comparison, *values), *values)

        return a(a, b), generate

    return typed


#: the smaller or larger, number by number; the second where one is nan
smaller, larger = _intrinsic(_chooser("<")), _intrinsic(_chooser(">"))

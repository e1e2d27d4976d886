# SPDX-License-Identifier: GPL-3.0-or-later
"""Eight float32 at once in Numba kernels: a type `Lanes` with operators, so that SIMD code does not hang on luck.

Numba leaves it to LLVM whether a loop becomes SIMD code, and one signed index or a short loop is enough for a no. These
are LLVM's own vectors: AVX, two SSE or two NEON registers. In a kernel,

    alpha = minimum(opacity * load(values, at), MAX_ALPHA)
    store(out, at, select(alpha >= MIN_ALPHA, alpha, zero))

works on eight neighbors in memory; numbers beside Lanes are spread over all eight; comparisons give a `Mask`.
"""

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

WIDTH = 8
_FLAGS = ("nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc")
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_MASK = ir.VectorType(ir.IntType(1), WIDTH)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Mask")


lanes_type, mask_type = _LanesType(), _MaskType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type) -> None:
        super().__init__(manager, fe_type, _VECTOR)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type) -> None:
        super().__init__(manager, fe_type, _MASK)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A number in all eight lanes; Lanes as they are."""
    if value.type == _VECTOR:
        return value
    zero = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, zero)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), _mask_of([0] * WIDTH))


def _mask_of(indices: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)


_PAIRS = ((lanes_type, lanes_type), (lanes_type, types.float32), (types.float32, lanes_type))


def _define(function: Callable, result: types.Type, emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]):
    """Make an operator known for two Lanes, or one and a float32."""

    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args: tuple, kws: dict):
            return signature(result, *args) if args in _PAIRS else None

    for pair in _PAIRS:

        @lower_builtin(function, *pair)
        def _lower(context, builder, sig, args):
            return emit(builder, _spread(builder, args[0]), _spread(builder, args[1]))


_define(operator.add, lanes_type, lambda builder, a, b: builder.fadd(a, b, flags=_FLAGS))
_define(operator.sub, lanes_type, lambda builder, a, b: builder.fsub(a, b, flags=_FLAGS))
_define(operator.mul, lanes_type, lambda builder, a, b: builder.fmul(a, b, flags=_FLAGS))
_define(operator.truediv, lanes_type, lambda builder, a, b: builder.fdiv(a, b, flags=_FLAGS))
_define(operator.gt, mask_type, lambda builder, a, b: builder.fcmp_ordered(">", a, b, flags=_FLAGS))
_define(operator.ge, mask_type, lambda builder, a, b: builder.fcmp_ordered(">=", a, b, flags=_FLAGS))
_define(operator.le, mask_type, lambda builder, a, b: builder.fcmp_ordered("<=", a, b, flags=_FLAGS))


@infer_global(operator.and_)
class _And(AbstractTemplate):
    def generic(self, args: tuple, kws: dict):
        return signature(mask_type, *args) if args == (mask_type, mask_type) else None


@lower_builtin(operator.and_, mask_type, mask_type)
def _and(context, builder, sig, args):
    return builder.and_(*args)


def _data(context, builder, array_type, array) -> ir.Value:
    return context.make_array(array_type)(context, builder, array).data


def _address(context, builder, array_type, array, at) -> ir.Value:
    """Of the eight numbers from `at` on, as a pointer to a vector."""
    address = builder.gep(_data(context, builder, array_type, array), [at])
    return builder.bitcast(address, _VECTOR.as_pointer())


@intrinsic
def load(typingctx, array, at):
    """The eight numbers of a flat float32 array from `at` on."""

    def emit(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], *args), align=4)

    return lanes_type(array, types.uint64), emit


@intrinsic
def store(typingctx, array, at, value):
    """Write eight numbers into a flat float32 array from `at` on."""

    def emit(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.uint64, lanes_type), emit


@intrinsic
def spread(typingctx, value):
    """A number in all eight lanes."""
    return lanes_type(types.float32), lambda context, builder, sig, args: _spread(builder, args[0])


@intrinsic
def steps(typingctx):
    """0, 1, ... 7."""
    return lanes_type(), lambda context, builder, sig, args: ir.Constant(_VECTOR, [float(i) for i in range(WIDTH)])


@intrinsic
def minimum(typingctx, a, b):
    """The smaller one of Lanes and a number or Lanes."""

    def emit(context, builder, sig, args):
        a, b = (_spread(builder, value) for value in args)
        return builder.select(builder.fcmp_ordered("<", a, b, flags=_FLAGS), a, b)

    return lanes_type(a, b), emit


@intrinsic
def maximum(typingctx, a, b):
    """The larger one of Lanes and a number or Lanes."""

    def emit(context, builder, sig, args):
        a, b = (_spread(builder, value) for value in args)
        return builder.select(builder.fcmp_ordered(">", a, b, flags=_FLAGS), a, b)

    return lanes_type(a, b), emit


@intrinsic
def select(typingctx, mask, a, b):
    """Lanes of `a` where the mask is set, of `b` elsewhere."""

    def emit(context, builder, sig, args):
        return builder.select(args[0], _spread(builder, args[1]), _spread(builder, args[2]))

    return lanes_type(mask, a, b), emit


def _unary(name: str, doc: str):
    @intrinsic
    def function(typingctx, value):
        def emit(context, builder, sig, args):
            declared = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.{name}.v{WIDTH}f32"
            )
            return builder.call(declared, args, fastmath=_FLAGS)

        return lanes_type(value), emit

    function.__doc__ = doc
    return function


absolute = _unary("fabs", "Without sign.")
root = _unary("sqrt", "Square root.")
floor = _unary("floor", "The next whole number below.")
ceil = _unary("ceil", "The next whole number above.")


def _halved(builder: ir.IRBuilder, value: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """All eight joined, pairwise and always in the same order."""
    width = WIDTH
    while width > 1:
        width //= 2
        nothing = ir.Constant(value.type, ir.Undefined)
        low = builder.shuffle_vector(value, nothing, _mask_of(list(range(width))))
        high = builder.shuffle_vector(value, nothing, _mask_of(list(range(width, 2 * width))))
        value = join(low, high)
    return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))


@intrinsic
def total(typingctx, value):
    """The sum of the eight."""

    def emit(context, builder, sig, args):
        return _halved(builder, args[0], lambda a, b: builder.fadd(a, b, flags=_FLAGS))

    return types.float32(value), emit


@intrinsic
def greatest(typingctx, value):
    """The largest of the eight."""

    def emit(context, builder, sig, args):
        return _halved(
            builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b, flags=_FLAGS), a, b)
        )

    return types.float32(value), emit

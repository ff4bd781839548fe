"""From Python to object code for this CPU, by Numba.

Imported where a kernel is not in the cache (``kernel_cache.py``), and with it all modules that
define kernels. What decides the outcome is the entry's key: the engine's source, the kernel's name
and types, the processor and the compilers.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.ma  # else Numba does, at the first array, where a fork may come in between
from llvmlite import binding, ir
from numba.core import registry, types
from numba.core.ccallback import _CFuncCompiler
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaError
from numba.np.numpy_support import from_dtype

from .. import disk_cache
from . import (
    backward,
    bfloat16,
    forward,
    fused_step,
    gate_rows_kernels,
    gates,
    gemm,
    int8,
    kernel_abi,
    layer_norm,
    panels,
    parallel_kernels,
    plan_kernels,
    product_kernels,
    ragged_kernels,
    stream_kernels,
    target,
    thread_kernels,
    training_kernels,
)
from .kernel_cache import CompileError, Kernel, Variant, content_of

_MODULES = (  # in which names of kernels are looked up
    backward, bfloat16, forward, fused_step, gate_rows_kernels, gates, gemm, int8, layer_norm,
    panels, parallel_kernels, plan_kernels, product_kernels, ragged_kernels, stream_kernels,
    thread_kernels,
    training_kernels,
)  # fmt: skip


def compile_kernel(kernel: Any, variant: Variant, entry: disk_cache.Entry) -> Kernel:
    """Compile a kernel, and keep it in an entry."""
    function = _named(kernel) if isinstance(kernel, str) else kernel
    with _exceptions_of_signals_deferred():
        with global_compiler_lock:
            try:
                library, symbol = _compile(function, variant)
            except NumbaError as error:
                raise CompileError(str(error)) from error
            address = library.get_pointer_to_function(symbol)
        _save(entry, library, symbol)
    return Kernel(function.__name__, address, library, cache_hits=0)


def _named(kernel: str) -> Callable[..., Any]:
    module, name = kernel.split(".")
    return getattr(next(m for m in _MODULES if m.__name__.endswith(f".{module}")), name)


class _Compiler(_CFuncCompiler):
    def _customize_flags(self, flags: Any) -> Any:
        flags = super()._customize_flags(flags)
        flags.no_cfunc_wrapper = True  # which tells Python of errors: there are none
        return flags


def _compile(function: Callable[..., Any], variant: Variant) -> tuple[Any, str]:
    """The library of a kernel, and the name of its function there.

    A kernel takes the ctx and returns nothing. One that takes more is a function that Python calls
    (``kernel_cache.python_function``): it takes addresses and returns one.
    """
    ctx = kernel_abi.KernelContext.of(from_dtype(np.dtype(variant.dtype)), variant)
    more = [types.int64] * (function.__code__.co_argcount - 1)
    result = types.int64 if more else types.none
    options = {"error_model": "numpy"}  # no test for division by zero
    compiler = _Compiler(function, registry.cpu_target, options, {}, Compiler)
    made = compiler.compile((ctx, *more), result)
    context, library, fndesc = made.target_context, made.library, made.fndesc
    module = library.create_ir_module("kernel")
    outside = ir.VoidType() if result is types.none else context.get_value_type(result)
    kind = ir.FunctionType(outside, list(map(context.get_value_type, fndesc.argtypes)))
    wrapper = ir.Function(module, kind, fndesc.llvm_cfunc_wrapper_name)
    builder = ir.IRBuilder(wrapper.append_basic_block())
    inner = context.call_conv.get_function_type(fndesc.restype, fndesc.argtypes)
    callee = ir.Function(module, inner, fndesc.llvm_func_name)
    _, value = context.call_conv.call_function(
        builder, callee, fndesc.restype, fndesc.argtypes, wrapper.args, attrs=("noinline",)
    )
    builder.ret_void() if result is types.none else builder.ret(value)
    library.add_ir_module(module)
    return library, wrapper.name


def _save(entry: disk_cache.Entry, library: Any, symbol: str) -> None:
    """Keep a kernel's object code, unless it holds addresses of this process.

    Nor is it kept where Numba compiles for another processor than ``target.py`` says, as where its
    settings have changed since then.
    """
    if library.has_dynamic_globals or target.machine() != _machine():
        return
    module = library._final_module
    declared = [
        part.name
        for part in (*module.functions, *module.global_variables)
        if part.is_declaration and not part.name.startswith("llvm.")
    ]
    if all(map(binding.address_of_symbol, declared)):
        entry.save(content_of(symbol, declared, library._get_compiled_object()))


def _machine() -> tuple[str, str, str]:
    """The processor that Numba compiles for."""
    return registry.cpu_target.target_context.codegen().magic_tuple()


@contextmanager
def _exceptions_of_signals_deferred() -> Iterator[None]:
    """Raise the exception of a signal handler, such as KeyboardInterrupt, where the block ends.

    LLVM calls Python back while it compiles. A handler may run in such a call, and its exception
    would be lost there, with the compiled code. The handlers themselves run at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    raised: list[BaseException] = []
    handlers: dict[int, Any] = {n: signal.getsignal(n) for n in signal.valid_signals()}
    before = {n: handler for n, handler in handlers.items() if callable(handler)}

    def run(number: int, frame: Any) -> None:
        try:
            before[number](number, frame)
        except BaseException as error:
            raised.append(error)

    try:
        for number in before:
            signal.signal(number, run)
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is run:  # no handler has set another
                signal.signal(number, handler)
        if raised:
            raise raised[-1]

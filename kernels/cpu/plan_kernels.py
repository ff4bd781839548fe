"""Plans as compiled code reads them; and the function that writes a call's arrays into one, and
runs it if nobody else is needed for that: the shortest way from Python to a pass."""

from llvmlite import ir
from numba.core import cgutils, types

from .kernel_abi import (
    arguments_address,
    array_at,
    as_object,
    call_at,
    emits,
    is_array,
    jitted,
    load_i64,
    record,
    release_gil,
    take_gil,
)
from .plan import PLACES, OptionRecord, Plan
from .plans import Known

read_plan, read_record = record(Plan), record(OptionRecord)


# ---- filled by a call


_read_known = record(Known)
_I64 = ir.IntType(64)
_C_CONTIGUOUS, _ALIGNED = 0x1, 0x100  # flags of an array
_SCRATCH, _KEPT, _END = PLACES["pWx"], PLACES["state"], len(PLACES)


@emits(types.int64)
def integer(builder, address):
    """The value of an int of Python's."""
    kind = ir.FunctionType(_I64, [_I64])
    function = cgutils.get_or_insert_function(builder.module, kind, "numba_rnn_integer")
    return builder.call(function, [address])


@emits(types.void)
def _add_to_fields(builder, plan, begin, end, number):
    start = builder.inttoptr(plan, _I64.as_pointer())
    with cgutils.for_range_slice(builder, begin, end, _I64(1)) as (k, _):
        place = builder.gep(start, [k])
        builder.store(builder.add(builder.load(place), number), place)


@jitted
def _is_dense(array):
    return array.flags & (_C_CONTIGUOUS | _ALIGNED) == _C_CONTIGUOUS | _ALIGNED


def _filler(b_ndim):
    def fill(ctx, objects, count):
        me = _read_known(array_at(arguments_address(ctx)).data)
        plan = read_plan(array_at(load_i64(objects, 0)).data)
        xs, Wx = array_at(load_i64(objects, 1)), array_at(load_i64(objects, 2))
        Wh, b = array_at(load_i64(objects, 3)), array_at(load_i64(objects, 4))
        Wr, start = array_at(load_i64(objects, 5)), array_at(load_i64(objects, 6))
        end, hs = array_at(load_i64(objects, 7)), array_at(load_i64(objects, 8))
        dxs, dWx = array_at(load_i64(objects, 9)), array_at(load_i64(objects, 10))
        dWh, db = array_at(load_i64(objects, 11)), array_at(load_i64(objects, 12))
        dWr = array_at(load_i64(objects, 13))
        for array in (Wx, Wh, Wr, dWx, dWh, dWr):
            if not (is_array(me, array, 2) and _is_dense(array)):
                return as_object(me, False)
        for array in (b, db):
            if not (is_array(me, array, b_ndim) and _is_dense(array)):
                return as_object(me, False)
        for array in (xs, start, end, hs, dxs):
            if not is_array(me, array, 3) or array.flags & _ALIGNED == 0:
                return as_object(me, False)
        if not (_is_dense(start) and _is_dense(end)):
            return as_object(me, False)
        behind, scratch = integer(load_i64(objects, 14)), integer(load_i64(objects, 15))
        kept, address = integer(load_i64(objects, 16)), array_at(load_i64(objects, 0)).data
        plan.self_address = address
        plan.xs, plan.xs_row, plan.xs_time = (
            xs.data,
            load_i64(xs.strides, 0),
            load_i64(xs.strides, 1),
        )
        plan.Wx, plan.Wx_row = Wx.data, load_i64(Wx.strides, 0)
        plan.Wh, plan.Wh_row = Wh.data, load_i64(Wh.strides, 0)
        plan.Wr, plan.Wr_row = Wr.data + behind, load_i64(Wr.strides, 0)
        plan.b, plan.b_row = b.data, load_i64(b.strides, 0) if b_ndim == 2 else 0
        plan.state_in, plan.state_out = start.data, end.data
        plan.state_step = load_i64(start.strides, 0)
        plan.hs, plan.hs_row, plan.hs_time = (
            hs.data,
            load_i64(hs.strides, 0),
            load_i64(hs.strides, 1),
        )
        plan.dxs, plan.dWx, plan.dWh, plan.dWr = dxs.data, dWx.data, dWh.data, dWr.data + behind
        plan.db = db.data
        if not integer(load_i64(objects, 17)):
            plan.dxs = 0
        _add_to_fields(address, _SCRATCH, _KEPT, scratch)
        _add_to_fields(address, _KEPT, _END, kept)
        if integer(load_i64(objects, 18)):
            state = release_gil()
            call_at(plan.entry, address)
            take_gil(state)
        return as_object(me, True)

    return fill


fill, fill_two_biases = _filler(1), _filler(2)

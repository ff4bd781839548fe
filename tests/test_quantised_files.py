"""Files of models with weights in int8, and the bridges, which refuse these."""

import numpy as np
import pytest

from numba_rnn import TimeAffine, TimeLSTM, bridges, jobs
from numba_rnn.models import Sequential
from numba_rnn.training import save_checkpoint
from quantised import XS, made


def test_a_quantised_model_is_saved_and_loaded(tmp_path):
    model = made("sequential")
    floats = tmp_path / "floats.safetensors"
    model.save(floats)
    want = model.predict(XS)
    path = tmp_path / "int8.safetensors"
    model.quantise().save(path)
    got = model.predict(XS)
    fresh = made("sequential").load(path)
    assert fresh.quantised
    np.testing.assert_array_equal(fresh.predict(XS), got)
    np.testing.assert_array_equal(fresh.load(floats).predict(XS), want)  # of float32 again
    assert not fresh.quantised
    arrays = model.arrays()
    assert arrays["int8/0.Wx"].dtype == np.int8
    assert "0.Wx" not in arrays
    for change, message in (
        ({"scale/0.Wx": None}, r"scale/0.Wx: expected an array"),
        ({"scale/0.Wx": np.ones(3, np.float32)}, r"scale/0.Wx: expected shape \(15,\)"),
        ({"int8/0.Wx": np.ones((3, 15), np.int32)}, r"int8/0.Wx: expected int8"),
        ({"int8/0.Wx": np.full((3, 15), -128, np.int8)}, "from -127 to 127, got -128"),
        ({"scale/0.Wx": np.zeros(15, np.float32)}, "scale: expected finite numbers above 0"),
        (
            {"int8/0.b": np.ones(15, np.int8)},
            "0.b: expected float32, as the layer has it, got int8",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fresh.load_arrays(arrays | change)
        assert not fresh.quantised


def test_a_checkpoint_of_a_language_model_in_int8(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 50)
    config = jobs.TrainConfig(text=str(tmp_path / "text.txt"), batch=4, time=16, epochs=1, hidden=8)
    jobs.train(config, tmp_path)
    model, vocabulary, content = jobs.load_model(tmp_path)
    save_checkpoint(tmp_path / "int8.safetensors", model.quantise().arrays(), content)
    again, _, _ = jobs.load_model(tmp_path / "int8.safetensors")
    assert again.quantised
    ids = vocabulary.encode("to be or")[None]
    np.testing.assert_array_equal(again.predict(ids), model.predict(ids))
    small, large = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("int8", "best"))
    assert small < large


def test_a_stateful_quantised_model_keeps_its_state(tmp_path):
    model = Sequential(TimeLSTM.create(3, 5, rng=0, stateful=True), TimeAffine.create(5, 2, rng=0))
    model.quantise().predict(XS)
    model.save(tmp_path / "model.safetensors")
    twin = Sequential(TimeLSTM.create(3, 5, rng=1, stateful=True), TimeAffine.create(5, 2, rng=1))
    twin.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(twin.predict(XS), model.predict(XS))


def test_bridges_refuse_them():
    layer = made("lstm").quantise()
    for write in (bridges.to_book, bridges.to_onnx, bridges.torch_state_dict):
        with pytest.raises(bridges.ConversionError, match=r"int8 ones; copy\.deepcopy"):
            write(layer)

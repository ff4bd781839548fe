"""A character model of tiny Shakespeare, beside its twin in PyTorch."""

import math
from collections.abc import Iterator

from benchmarks.published import Options, Row
from numba_rnn.models import Rnnlm
from numba_rnn.text import Vocabulary, read_text
from numba_rnn.training import TruncatedBPTT


def characters(options: Options) -> Iterator[Row]:
    """Bits per character of the last tenth of the text, after as many seconds each."""
    import torch

    from benchmarks.published.twin import race

    text = read_text(options.data / "text" / "tinyshakespeare.txt.gz")
    ids, cut, T = Vocabulary.of(text, "char").encode(text), len(text) * 9 // 10, 64
    ours = Rnnlm(int(ids.max()) + 1, 64, 192, rng=0)
    layers = ours.embedding, *ours.recurrent, ours.affine
    twin, made = race(
        ours, layers, lambda: TruncatedBPTT(ids[:cut], 32, T), 0.004, options.seconds, stateful=True
    )
    blocks = TruncatedBPTT(ids[cut:], 10, T)
    with torch.no_grad():
        theirs = sum(float(twin.loss(*block)) for block in blocks) / len(blocks)
    print(f"  tiny Shakespeare: {made[0]} iterations, PyTorch {made[1]}", flush=True)
    found = f"{ours.mean_loss(ids[cut:], 10, T) / math.log(2):.3f}"
    beside = f"{theirs / math.log(2):.3f} (PyTorch twin)"
    yield "tiny Shakespeare, bits", "2.71 (nanoGPT, 3 min of CPU)", found, options.seconds
    yield "tiny Shakespeare, bits", beside, found, options.seconds

"""Published numbers: the language model of Deep Learning from Scratch 2, chapter 6.

The book's weights on the Penn Treebank test text give a perplexity of 136.078. Needs the data:
NUMBA_RNN_DATA names a folder with ptb/ptb.{train,test}.txt.gz and ptb/book_rnnlm.npz.
"""

import os
from pathlib import Path

import pytest

from helpers import BACKENDS
from numba_rnn import use_backend
from numba_rnn.bridges import from_book
from numba_rnn.text import Vocabulary, read_text
from numba_rnn.training import TruncatedBPTT

DATA = os.environ.get("NUMBA_RNN_DATA")

if DATA:  # not a skip: without the data there is nothing to collect

    @pytest.fixture(scope="module")
    def test_corpus():
        ptb = Path(DATA) / "ptb"
        train = read_text(ptb / "ptb.train.txt.gz")
        vocabulary = Vocabulary.of(train, "word")
        assert len(vocabulary) == 10_000
        assert len(vocabulary.encode(train)) == 929_589
        return vocabulary.encode(read_text(ptb / "ptb.test.txt.gz"))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_books_weights_give_the_books_perplexity(test_corpus, backend):
        assert len(test_corpus) == 82_430
        assert len(TruncatedBPTT(test_corpus, 10, 35)) == 235
        model = from_book(Path(DATA) / "ptb" / "book_rnnlm.npz", dtype="float32")
        with use_backend(backend):
            assert abs(model.perplexity(test_corpus) - 136.078) < 0.02

"""Reading a token artifact: windows, their order, batches."""

import json
from pathlib import Path

import numpy as np
import pytest

from boomspec.core.errors import BoomspecError
from runners.data.tokens import TokenStream
from tests.messages import wording


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    """A stream of the tokens 0, 1, 2, ... 102: ten windows of ten, with a rest of two."""
    folder = tmp_path_factory.mktemp("numbers")
    np.arange(103, dtype="<u4").tofile(folder / "train.bin")
    meta = {"dtype": "uint32", "eos": 0, "vocabulary": 70_000}
    counts = {"tokens": 103, "documents": 1, "bytes": 103}
    (folder / "meta.json").write_text(json.dumps({**meta, "train": counts}))
    return TokenStream(folder)


def test_windows_overlap_by_the_one_token_that_is_label_and_then_input(stream: TokenStream) -> None:
    assert stream.windows(10) == 10
    assert stream.windows(102) == 1
    assert stream.windows(103) == 0
    batch_BT = stream.batch(0, sequences=10, sequence_length=10, seed=0)
    assert (batch_BT.shape, batch_BT.dtype) == ((10, 11), np.int64)
    starts = batch_BT[:, 0]
    np.testing.assert_array_equal(batch_BT, starts[:, None] + np.arange(11))
    assert sorted(starts) == list(range(0, 100, 10))


def test_every_epoch_visits_every_window_once_in_an_order_of_its_own(stream: TokenStream) -> None:
    epochs = [stream.batch(step, sequences=10, sequence_length=10, seed=0)[:, 0] for step in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(0, 100, 10))] * 3
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], stream.batch(0, sequences=10, sequence_length=10, seed=1)[:, 0])


def test_a_batch_depends_on_step_and_seed_only_and_may_span_epochs(stream: TokenStream) -> None:
    in_sixes = np.concatenate([stream.batch(step, sequences=6, sequence_length=10, seed=3) for step in (3, 0, 4, 1, 2)])
    in_sixes = in_sixes.reshape(5, 6, 11)[[1, 3, 4, 0, 2]].reshape(30, 11)
    in_fifteens = np.concatenate([stream.batch(step, sequences=15, sequence_length=10, seed=3) for step in (0, 1)])
    np.testing.assert_array_equal(in_sixes, in_fifteens)


def test_a_stream_shorter_than_one_window_or_than_its_record_is_refused(stream: TokenStream, tmp_path: Path) -> None:
    with pytest.raises(BoomspecError, match=wording("tokens.tokens_too_few_one")):
        stream.batch(0, sequences=1, sequence_length=103, seed=0)
    (tmp_path / "train.bin").write_bytes(b"\0" * 10)
    (tmp_path / "meta.json").write_text((stream.file.parent / "meta.json").read_text())
    with pytest.raises(BoomspecError, match=wording("tokens.bytes_but_meta_json")):
        TokenStream(tmp_path)

"""Several token artifacts become one: shares, budgets, resumes, masks and what is held out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.tasks import Blend, TrainTokenizer
from runners.data.token_writer import TokenWriter
from runners.data.tokens import TokenStream
from runners.runtime.context import Context
from runners.runtime.job import Input
from runners.tasks import blend, tokenize
from tests.messages import wording
from tests.runners import corpora

LETTERS, WORDS = "abcdefgh", ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Token artifacts of two texts: many short documents, and fewer longer ones, by the first's tokenizer."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    short = ["".join(rng.choice(list(LETTERS), size=rng.integers(5, 40))) for _ in range(400)]
    long = [" ".join(rng.choice(WORDS, size=rng.integers(30, 90))) for _ in range(60)]
    learns = corpora.record(train_tokenizer=TrainTokenizer(vocabulary=300, bytes=3000), held_out_every=10)
    one = corpora.context(folder / "one", learns, text=corpora.write_jsonl(folder / "short.jsonl", _rows(short)))
    tokenize.run(one)
    copies = corpora.record(train_tokenizer=None, held_out_every=5)
    two = corpora.context(folder / "two", copies, text=corpora.write_jsonl(folder / "long.jsonl", _rows(long)))
    two.inputs["tokenizer"] = Input("1" * 64, path=one.path)
    tokenize.run(two)
    assert (one.path / "tokenizer" / "tokenizer.json").read_bytes() == (
        two.path / "tokenizer/tokenizer.json"
    ).read_bytes()
    return [one.path, two.path]


def _rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def context_of(folder: Path, sources: list[Path], **fields: Any) -> Context[Blend]:
    folder.mkdir(parents=True)
    inputs = {f"source_{i}": Input(str(i) * 64, path=path) for i, path in enumerate(sources)}
    execution = Execution(training=TrainingOptions(checkpoint_seconds=0.0))
    return Context(Blend(**fields), inputs, folder, folder.with_name(f"{folder.name}.resume"), execution=execution)


def blended(folder: Path, sources: list[Path], **fields: Any) -> Path:
    blend.run(context_of(folder, sources, **fields))
    return folder


def documents(folder: Path, split: Any = "train") -> list[tuple[int, ...]]:
    stream = TokenStream(folder, split)
    starts, ends = stream.bounds
    return [tuple(stream.tokens[start:end].tolist()) for start, end in zip(starts, ends, strict=True)]


def origins(made: Path, sources: list[Path], split: Any = "train") -> list[int]:
    """The source of every document; checks that each source's documents are in order, from its first on."""
    own = [documents(source, split) for source in sources]
    taken, found = [0] * len(sources), []
    for document in documents(made, split):
        number = next(i for i, of in enumerate(own) if taken[i] < len(of) and of[taken[i]] == document)
        taken[number] += 1
        found.append(number)
    return found


def test_weights_share_the_tokens_that_there_are_and_every_stretch_has_about_these_shares(tmp_path, sources) -> None:
    made = blended(tmp_path / "blend", sources, weights=(3, 1))
    stream, meta = TokenStream(made), json.loads((made / "meta.json").read_text())
    of, own = origins(made, sources), [len(TokenStream(path)) - 1 for path in sources]
    whole = min(own[0] / 3, own[1])
    longest = max(len(document) for document in documents(sources[1]))
    for number, (taken, weight) in enumerate(zip(meta["train"]["sources"], (3, 1), strict=True)):
        assert weight * whole - 1 <= taken["tokens"] < weight * whole + longest
        assert taken["documents"] == of.count(number)
    assert any(taken["tokens"] == there for taken, there in zip(meta["train"]["sources"], own, strict=True))
    lengths = np.array([len(document) for document in documents(made)])
    shares = np.cumsum(lengths * (np.array(of) == 0)) / np.cumsum(lengths)
    assert np.abs(shares * np.cumsum(lengths) - 0.75 * np.cumsum(lengths)).max() <= longest
    assert stream.tokens[0] == stream.eos
    assert len(stream) == 1 + lengths.sum() == meta["train"]["tokens"]
    assert meta["train"]["documents"] == len(of) == stream.documents


def test_what_is_held_out_is_mixed_by_the_same_shares(tmp_path, sources) -> None:
    made = blended(tmp_path / "blend", sources, weights=(1, 1))
    origins(made, sources, "held_out")
    meta, own = (
        json.loads((made / "meta.json").read_text()),
        [len(TokenStream(path, "held_out")) - 1 for path in sources],
    )
    taken = [one["tokens"] for one in meta["held_out"]["sources"]]
    longest = max(len(document) for path in sources for document in documents(path, "held_out"))
    assert all(min(own) <= count < min(own) + longest for count in taken)
    texts = [json.loads(line)["text"] for path in sources for line in _file(path).read_text().splitlines()]
    assert meta["held_out"]["bytes"] == sum(
        len(text)
        for i, text in enumerate(texts[:400])
        if i % 10 == 1 and i // 10 < meta["held_out"]["sources"][0]["documents"]
    ) + sum(
        len(text)
        for i, text in enumerate(texts[400:])
        if i % 5 == 1 and i // 5 < meta["held_out"]["sources"][1]["documents"]
    )


def _file(source: Path) -> Path:
    return source.parent / ("short.jsonl" if source.name == "one" else "long.jsonl")


def test_a_budget_ends_with_the_document_that_reaches_it_and_too_large_a_one_is_an_error(tmp_path, sources) -> None:
    made = blended(tmp_path / "blend", sources, budgets=(1000, 300))
    for number, (taken, budget) in enumerate(
        zip(json.loads((made / "meta.json").read_text())["train"]["sources"], (1000, 300), strict=True)
    ):
        last = documents(sources[number])[taken["documents"] - 1]
        assert taken["tokens"] - len(last) < budget <= taken["tokens"]
    with pytest.raises(BoomspecError, match=wording("blend.budget_is", budget="10,000,000")):
        blended(tmp_path / "large", sources, budgets=(1000, 10_000_000))


def test_a_blend_that_is_killed_anywhere_comes_to_the_same_bytes(tmp_path, sources, monkeypatch) -> None:
    whole = blended(tmp_path / "whole", sources, weights=(2, 1))
    monkeypatch.setattr(blend, "_REPORTED", 7)
    kept = TokenWriter.append
    for stop in (3, 20, 150, 190):
        writes = 0

        def append(self: TokenWriter, *given: Any, stop: int = stop, **named: Any) -> None:
            nonlocal writes
            if (writes := writes + 1) > stop:
                raise KeyboardInterrupt
            kept(self, *given, **named)

        folder = tmp_path / f"killed-{stop}"
        killed = context_of(folder, sources, weights=(2, 1))
        monkeypatch.setattr(TokenWriter, "append", append)
        attempts = 0
        while True:
            attempts, writes = attempts + 1, 0
            try:
                blend.run(replace(killed))
            except KeyboardInterrupt:
                if attempts > 3:  # it would never get further than its first checkpoint
                    monkeypatch.setattr(TokenWriter, "append", kept)
            else:
                break
        assert attempts > 1
        names = sorted(path.name for path in whole.iterdir() if path.is_file())
        assert names == sorted(path.name for path in folder.iterdir() if path.is_file())
        assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_sources_of_different_tokenizers_are_not_mixed(tmp_path, sources) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in sources[1].iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"prefix": [5]}))
    with pytest.raises(BoomspecError, match=wording("blend.different_tokenizers")):
        blended(tmp_path / "blend", [sources[0], other], weights=(1, 1))

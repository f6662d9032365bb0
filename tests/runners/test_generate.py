"""A teacher writes text: a function of seed and row, whatever is written together; prompts carry no label."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Generate, Sampling
from runners.data.tokens import TokenStream, repeated
from runners.modeling.labels import inputs_of, without_label
from runners.modeling.sampling import Ends, Writer, draw, uniforms
from runners.runtime.context import Context
from runners.tasks import distill, generate
from tests.messages import wording
from tests.runners import tiny
from tests.runners.test_distill import load, metrics, payload, teacher_artifact
from tests.runners.test_distill import record as distill_record

LENGTH, PROMPT, ROWS = 16, 5, 11


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def with_prefix(tokens: Path, folder: Path, prefix: list[int]) -> Path:
    """The token artifact as that of a tokenizer that begins every text so."""
    shutil.copytree(tokens, folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"prefix": prefix}))
    return folder


def record(**fields: Any) -> Generate:
    plain = {"rows": ROWS, "sequence_length": LENGTH, "prompt_tokens": PROMPT, "sampling": Sampling(), "seed": 3}
    return Generate(**{**plain, "precision": "fp32", **fields})


def made(folder: Path, of: Generate, folders: dict[str, Path], batch_size: int | None = None) -> Context[Generate]:
    context = tiny.context(folder, of, resume=folder.parent / f"resume-{folder.name}", **folders)
    if batch_size is not None:
        context.execution = type(context.execution)(batch_size=batch_size)
    generate.run(context)
    return context


def batches(folder: Path, count: int = ROWS) -> np.ndarray[Any, Any]:
    """The rows as a training reads them, in the order in which they were written."""
    stream = TokenStream(folder)
    assert stream.windows(LENGTH) == count
    with patch("runners.data.tokens._drawn", lambda step, count, windows, seed: range(count)):
        return stream.batch(0, sequences=count, sequence_length=LENGTH, seed=0)


def test_the_rows_do_not_depend_on_what_is_written_together(tmp_path: Path, folders: dict[str, Path]) -> None:
    one, four = (made(tmp_path / str(size), record(), folders, size) for size in (1, 4))
    assert payload(one) == payload(four)
    other = made(tmp_path / "seed", record(seed=4), folders)
    assert payload(one)["train.bin"] != payload(other)["train.bin"]


def test_a_row_is_the_window_of_the_text_and_what_the_teacher_writes_behind_it(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    context = made(tmp_path / "made", record(sampling=Sampling(top_k=1)), folders)
    rows = batches(context.path)
    inputs = inputs_of(torch.from_numpy(rows))
    stream = TokenStream(folders["tokens"])
    windows = np.concatenate([stream.batch(row, sequences=1, sequence_length=LENGTH, seed=3) for row in range(ROWS)])
    assert np.array_equal(inputs[:, :PROMPT], windows[:, :PROMPT])
    teacher = load(folders["teacher"] / "model")
    with torch.no_grad():  # the most probable token, without a cache
        likeliest = teacher(inputs[:, :LENGTH]).logits.argmax(-1)
    assert torch.equal(likeliest[:, PROMPT - 1 : LENGTH - 1], inputs[:, PROMPT:LENGTH])
    # Labels are what the teacher wrote: neither the prompt nor the row that follows.
    assert (rows[:, :PROMPT] < -1).all()
    assert (rows[:, PROMPT:LENGTH] >= 0).all()
    assert (rows[:, LENGTH] < -1).all()


def test_prompts_are_labels_where_that_is_asked_for(tmp_path: Path, folders: dict[str, Path]) -> None:
    rows = batches(made(tmp_path / "made", record(label_prompts=True), folders).path)
    assert (rows[:, :LENGTH] >= 0).all()
    assert (rows[:, LENGTH] < -1).all()  # the next row's first token


@pytest.mark.parametrize("prefix", [[], [0], [1], [1, 2]])
@pytest.mark.parametrize("prompt", [0, 1, PROMPT])
def test_every_window_is_a_row_however_texts_begin(
    tmp_path: Path, folders: dict[str, Path], prefix: list[int], prompt: int
) -> None:
    """The teacher is one that writes an end of text as often as any token."""
    tokens = with_prefix(folders["tokens"], tmp_path / "tokens", prefix)
    context = made(tmp_path / "made", record(prompt_tokens=prompt), {**folders, "tokens": tokens})
    rows = batches(context.path)
    inputs = inputs_of(torch.from_numpy(rows)).numpy()
    start = prefix or [0]
    if prompt == 0:
        assert (inputs[:, : len(start)] == start).all()
    prompted = max(prompt, len(start))
    written = rows[:, prompted : LENGTH + (1 if prefix else 0)]
    whole = np.fromfile(context.path / "train.bin", "<u2")
    size = LENGTH + 1 - max(1, len(prefix))
    assert len(whole) == ROWS * size + max(1, len(prefix))
    # A row whose first token begins a text once more is read from its second.
    shifted = np.array([repeated(whole[row * size :][: len(prefix)], prefix) > 0 for row in range(ROWS)])
    assert not shifted.all()
    assert (written[~shifted] >= 0).all()
    assert (rows[:, len(prefix) : prompted] < 0).all()


def test_behind_an_end_of_text_the_next_one_begins_as_texts_do(folders: dict[str, Path]) -> None:
    model, prefix = tiny.model(layers=2), (1, 2)
    writer = Writer([(model, 1.0)], Sampling(temperature=100.0), Ends(0, prefix, 8))
    drawn = torch.from_numpy(np.stack([uniforms(0, row, count=200) for row in range(4)]))
    tokens = writer.write(torch.tensor([[1, 2, 5]] * 4), drawn[:, :60])
    ends = [(row, at) for row, at in (tokens[:, 3:-2] == 0).nonzero().tolist()]
    assert ends
    for row, at in ends:
        assert tokens[row, 3 + at + 1 : 3 + at + 3].tolist() == [1, 2]


def test_a_prompt_that_ends_a_text_is_followed_by_what_a_text_begins_with() -> None:
    model, drawn = tiny.model(layers=2), torch.from_numpy(np.stack([uniforms(0, row, count=8) for row in range(2)]))
    writer = Writer([(model, 1.0)], Sampling(temperature=100.0), Ends(0, (1, 2), 8))
    prompts = torch.tensor([[1, 2, 5, 0], [1, 2, 5, 5]])
    ended, other = writer.write(prompts, drawn)[:, 4:]
    assert ended[:2].tolist() == [1, 2]
    assert torch.equal(other, writer.write(prompts[1:], drawn[1:])[0, 4:])
    # Where an end of text is all that texts begin with, nothing is due behind it.
    assert Writer([(model, 1.0)], Sampling(), Ends(0, (0,), 8)).write(prompts, drawn).shape == (2, 12)


def test_a_task_that_is_killed_goes_on_after_its_last_whole_part_to_the_same_bytes(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    whole = made(tmp_path / "whole", record(), folders, 3)
    asked = []
    write = Writer.write

    def stopping(writer: Writer, *arguments: Any) -> torch.Tensor:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return write(writer, *arguments)

    resume = tmp_path / "resume"
    with patch.object(generate, "_SAVE_SECONDS", 0.0), patch.object(Writer, "write", stopping):
        first = tiny.context(tmp_path / "first", record(), resume=resume, **folders)
        first.execution = type(first.execution)(batch_size=3)
        with pytest.raises(KeyboardInterrupt):
            generate.run(first)
    assert json.loads((resume / "written.json").read_text())["rows"] == 6
    with (resume / "train.bin").open("ab") as file:
        file.write(b"cut off")  # what a part that was not whole has left
    again = tiny.context(tmp_path / "again", record(), resume=resume, **folders)
    generate.run(again)  # with parts of another size
    assert payload(again) == payload(whole)
    assert any("goes on after row 6" in note for note in tiny.notes(again))


def test_a_checkpoint_that_does_not_match_its_file_is_ignored(tmp_path: Path, folders: dict[str, Path]) -> None:
    whole = made(tmp_path / "whole", record(), folders)
    resume = tmp_path / "resume"
    resume.mkdir()
    (resume / "train.bin").write_bytes(b"\1" * 400)
    (resume / "written.json").write_text(json.dumps({"rows": 2, "crc": 7}))
    context = tiny.context(tmp_path / "again", record(), resume=resume, **folders)
    generate.run(context)
    assert payload(context) == payload(whole)


def test_a_student_learns_from_what_was_written_and_is_compared_on_text_of_people(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    written = made(tmp_path / "made", record(rows=48), folders).path
    context = tiny.context(
        tmp_path / "student", distill_record(), teacher=folders["teacher"], tokens=written, held_out=folders["tokens"]
    )
    distill.run(context)
    losses = [row["loss"] for row in metrics(context)]
    assert losses[-1] < losses[0]
    other = tiny.context(tmp_path / "text", distill_record(), **folders)
    distill.run(other)
    before = [
        [pair["before"] for pair in json.loads((of.path / distill.SIMILARITY).read_text())["pairs"]]
        for of in (context, other)
    ]
    assert before[0] == before[1]


def test_sequences_of_another_length_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    stream = TokenStream(made(tmp_path / "made", record(), folders).path)
    with pytest.raises(BoomspecError, match=wording("generate.another_length")):
        stream.batch(0, sequences=1, sequence_length=LENGTH - 1, seed=0)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    weights = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).expand(20_000, 4)
    drawn = draw(weights, torch.from_numpy(uniforms(1, 0, count=20_000)))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, weights[0], atol=0.012)
    assert shares[1] == 0
    ends = draw(weights[:2], torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert ends.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(), [0, 1, 2, 3]),
        (Sampling(top_k=2), [1, 3]),
        (Sampling(top_p=0.49), [1]),
        (Sampling(top_p=0.51), [1, 3]),
        (Sampling(top_p=0.79), [1, 3]),
        (Sampling(top_k=3, top_p=0.95), [1, 2, 3]),
        (Sampling(top_k=9), [0, 1, 2, 3]),
    ],
)
def test_the_least_probable_tokens_are_cut_off(sampling: Sampling, left: list[int]) -> None:
    writer = Writer([], sampling, Ends(0, (), 4))
    probabilities = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    cut = writer.cut(probabilities)
    assert cut[0].nonzero().flatten().tolist() == left
    assert torch.equal(cut[0][left], probabilities[0][left])


def test_the_temperature_and_the_shares_of_two_models_make_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(3, 7, generator=generator), torch.randn(3, 7, generator=generator)
    writer = Writer([(None, 0.8), (None, 0.2)], Sampling(temperature=2.0), Ends(0, (), 6))
    expected = 0.8 * (one[:, :6] / 2).softmax(-1) + 0.2 * (other[:, :6] / 2).softmax(-1)
    assert torch.allclose(writer.probabilities([one, other]), expected)


def test_a_token_without_a_label_is_read_all_the_same() -> None:
    tokens = np.array([0, 5, 7])
    hidden = torch.from_numpy(without_label(tokens))
    assert (hidden < -1).all()
    assert inputs_of(torch.cat([hidden, torch.tensor([-1, 3])])).tolist() == [0, 5, 7, 0, 3]

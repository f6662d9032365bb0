"""Documents begin as the tokenizer begins them: in streams, windows and what is measured, and as a plan says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Calibration
from boomspec.models.tokenizer import _FROM_FILE, text_start
from runners.data.tokens import TokenStream
from runners.evaluation.held_out import text_bytes, window_losses, windows
from runners.evaluation.members import WHOLE, WholeModel
from runners.runtime.context import Progress
from runners.search.calibration import calibration_batches
from runners.tasks import tokenize
from runners.training.loop import train
from runners.training.moment import Moment
from tests.messages import wording
from tests.runners import tiny
from tests.runners.corpora import TEXTS, context, record, tokenizer_source, write_texts

UNKNOWN, BOS, EOS, MASK = range(4)  # the special tokens of the tokenizers here
TOKENS = ["<unk>", "<s>", "</s>", "[gMASK]"]
# How texts begin: a template as Llama 3, Gemma and Mistral have it, none as GPT-2, EOS itself as OPT, two as GLM-4.
TEMPLATES: dict[str, tuple[str | None, tuple[int, ...]]] = {
    "llama 3": ("<s> $A", (BOS,)),
    "with an end": ("<s> $A </s>", (BOS,)),
    "gpt-2": (None, ()),
    "opt": ("</s> $A", (EOS,)),
    "glm-4": ("[gMASK] <s> $A", (MASK, BOS)),
}


def write_tokenizer(folder: Path, template: str | None, *, sequence: bool = False, **config: Any) -> Path:
    folder.mkdir(parents=True)
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=TOKENS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    plain = processors.ByteLevel(trim_offsets=False)
    if template is not None:
        special = [(token, i) for i, token in enumerate(TOKENS)]
        first = processors.TemplateProcessing(single=template, pair=f"{template} $B", special_tokens=special)
        made.post_processor = processors.Sequence([plain, first]) if sequence else first
    else:
        made.post_processor = plain
    made.save(str(folder / "tokenizer.json"))
    plain_config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**plain_config, **config}))
    return folder


def tokenized(folder: Path, tokenizer: Path, *, name: str = "tokens", **fields: Any) -> Path:
    made = context(
        folder / name,
        record(train_tokenizer=None, **fields),
        text=write_texts(folder / "texts"),
        tokenizer=tokenizer_source(tokenizer),
    )
    tokenize.run(made)
    return made.path


@pytest.fixture(params=TEMPLATES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, tuple[int, ...]]:
    """A folder with a token artifact, its tokenizer, and what texts begin with."""
    template, prefix = TEMPLATES[request.param]
    tokenizer = write_tokenizer(tmp_path / "tokenizer", template)
    return tokenized(tmp_path, tokenizer), tokenizer, prefix


def texts(held_out: bool) -> list[str]:
    return [text for i, text in enumerate(TEXTS) if (i % 4 == 1) == held_out and text]


def test_a_stream_has_every_document_as_the_tokenizer_begins_it(case: tuple[Path, Path, tuple[int, ...]]) -> None:
    folder, tokenizer, prefix = case
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    for split, held_out in (("train", False), ("held_out", True)):
        stream = TokenStream(folder, split)  # type: ignore[arg-type]
        assert stream.prefix == prefix
        expected = [] if set(prefix) - {EOS} else [EOS]
        for text in texts(held_out):
            begun = loaded.encode(text)[: len(prefix)] if set(prefix) - {EOS} else []
            expected += [*begun, *loaded.encode(text, add_special_tokens=False, split_special_tokens=True), EOS]
        assert stream.tokens.tolist() == expected
        assert stream.bytes == sum(len(text.encode()) for text in texts(held_out))


@pytest.mark.parametrize("length", [8, 9, 31])
def test_every_window_begins_with_it_and_every_token_of_the_text_is_a_label_once(
    case: tuple[Path, Path, tuple[int, ...]], length: int
) -> None:
    folder, _, prefix = case
    stream = TokenStream(folder)
    count = stream.windows(length)
    batch_BT = stream.batch(0, sequences=count, sequence_length=length, seed=0)
    assert batch_BT.shape == (count, length + 1)
    if not prefix:
        return
    assert (batch_BT[:, : len(prefix)] == prefix).all()
    assert not (batch_BT[:, len(prefix) : 2 * len(prefix)] == prefix).all(1).any()  # never twice
    order = np.argsort([_place(row[len(prefix) :], stream.tokens) for row in batch_BT])
    labels = np.concatenate([batch_BT[i, len(prefix) :] for i in order])
    text = [token for token in labels.tolist() if token not in prefix]
    expected = [token for token in stream.tokens[: count * (length + 1 - len(prefix))].tolist() if token not in prefix]
    repeats = sum(1 for i in range(count) if stream.tokens[i * (length + 1 - len(prefix))] in prefix)
    assert len(expected) <= len(text) <= len(expected) + repeats * len(prefix)
    assert stream.unlabelled == tuple(sorted(set(prefix) - {EOS}))


def _place(part: np.ndarray, tokens: np.ndarray) -> int:
    views = np.lib.stride_tricks.sliding_window_view(tokens, len(part))
    return int(np.flatnonzero((views == part).all(1))[0])


def test_a_padded_row_is_a_document_with_its_beginning(case: tuple[Path, Path, tuple[int, ...]]) -> None:
    folder, tokenizer, prefix = case
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    stream = TokenStream(folder)
    rows = stream.padded_batch(0, sequences=stream.documents, sequence_length=400, seed=0)
    found = sorted(row[row >= 0].tolist() for row in rows)
    encoded = [loaded.encode(t, add_special_tokens=False, split_special_tokens=True) for t in texts(held_out=False)]
    assert found == sorted([*prefix, *ids, EOS] for ids in encoded)


def test_calibration_windows_begin_with_it(case: tuple[Path, Path, tuple[int, ...]]) -> None:
    folder, _, prefix = case
    calibration = Calibration(sequences=5, sequence_length=12, seed=0)
    model = tiny.model(vocab_size=TokenStream(folder).vocabulary)
    for tokens_BT in calibration_batches(calibration, folder, batch_size=8, model=model):
        assert tokens_BT.shape[1] == 12
        assert (tokens_BT[:, : len(prefix)] == torch.tensor(prefix)).all()


def reference(model: Any, stream: TokenStream, length: int) -> tuple[float, int]:
    """Sum of losses and number of tokens, token by token as a reader of the definition would work them out."""
    prefix, tokens, total, count = stream.prefix, stream.tokens.tolist(), 0.0, 0
    step = length + 1 - len(prefix) if prefix else length
    for start in range(0, len(tokens) if prefix else len(tokens) - 1, step):
        window = tokens[start : start + step + (0 if prefix else 1)]
        if prefix:
            for i in range(len(prefix)):
                if window[: len(prefix) - i] == list(prefix[i:]):
                    window = window[len(prefix) - i :]
                    break
            window = [*prefix, *window]
        with torch.inference_mode():
            logits = model(torch.tensor([window[:-1]])).logits[0] if len(window) > 1 else []
        for row, label in zip(logits, window[1:], strict=True):
            if label != stream.eos and label not in prefix:
                total += float(cross_entropy(row[None], torch.tensor([label])))
                count += 1
    return total, count


@pytest.mark.parametrize("length", [8, 16, 61])
def test_held_out_loss_is_that_of_every_token_of_the_text_once(
    case: tuple[Path, Path, tuple[int, ...]], length: int
) -> None:
    folder, _, prefix = case
    stream = TokenStream(folder, "held_out")
    model = tiny.model(vocab_size=stream.vocabulary)
    found = window_losses(
        WholeModel(model),
        tokens=stream.tokens,
        eos=stream.eos,
        prefix=prefix,
        sequence_length=length,
        batch_size=3,
        progress=Progress(None),
    )[WHOLE]
    total, count = reference(model, stream, length)
    assert len(found.tokens) == windows(len(stream), length, prefix)
    assert int(found.tokens.sum()) == count
    text = [token for token in stream.tokens.tolist() if token not in {EOS, *prefix}]
    assert count == len(text)
    assert found.loss == pytest.approx(total / count, rel=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert text_bytes(stream.tokens, eos=stream.eos, prefix=prefix, tokenizer=tokenizer) == stream.bytes


def test_bos_may_be_asked_for_or_left_out(tmp_path: Path) -> None:
    plain = write_tokenizer(tmp_path / "plain", None)
    llama = write_tokenizer(tmp_path / "llama", "<s> $A")
    assert TokenStream(tokenized(tmp_path, plain, name="a", bos=True)).prefix == (BOS,)
    without = TokenStream(tokenized(tmp_path, llama, name="b", bos=False))
    assert without.prefix == ()
    same = TokenStream(tokenized(tmp_path, plain, name="c"))
    assert without.tokens.tolist() == same.tokens.tolist()
    none = write_tokenizer(tmp_path / "none", None, bos_token=None)
    with pytest.raises(BoomspecError, match=wording("bos.no_beginning_sequence_token")):
        tokenized(tmp_path, none, name="d", bos=True)


def test_what_a_document_says_of_a_special_token_is_text(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", "<s> $A")
    source = write_texts(tmp_path / "own", ["one <s> two </s> three", "more"])
    made = context(
        tmp_path / "made",
        record(train_tokenizer=None, held_out_every=0),
        text=source,
        tokenizer=tokenizer_source(tokenizer),
    )
    tokenize.run(made)
    tokens = TokenStream(made.path).tokens.tolist()
    assert (tokens.count(BOS), tokens.count(EOS)) == (2, 2)


def test_labels_of_a_training_are_never_the_beginning_of_a_text(tmp_path: Path) -> None:
    folder = tokenized(tmp_path, write_tokenizer(tmp_path / "tokenizer", "[gMASK] <s> $A"))
    stream = TokenStream(folder)
    recipe = tiny.recipe(steps=2, sequences=6, sequence_length=12)
    batches = [stream.batch(step, sequences=6, sequence_length=12, seed=0) for step in range(2)]
    model = tiny.model(vocab_size=stream.vocabulary)
    seen: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def loss(
        inputs_BT: torch.Tensor, labels_BT: torch.Tensor, count: int, _moment: Moment
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        seen.append((inputs_BT, labels_BT, count))
        logits = model(inputs_BT).logits
        value = cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=-100, reduction="sum") / count
        return value, {"cross_entropy": value.detach()}

    made = tiny.context(tmp_path / "train", None)
    train(
        model,
        recipe=recipe,
        batch=batches.__getitem__,
        loss=loss,
        weights={"cross_entropy": 1.0},
        context=made,
        unlabelled=stream.unlabelled,
    )
    for (inputs, labels, count), batch in zip(seen, batches, strict=True):
        assert (inputs.numpy() == batch[:, :-1]).all()
        expected = np.where(np.isin(batch[:, 1:], [MASK, BOS]), -100, batch[:, 1:])
        assert (labels.numpy() == expected).all()
        assert count == int((expected >= 0).sum())


def test_a_model_that_leans_on_it_is_measured_with_it(tmp_path: Path) -> None:
    """Of models that make nothing of a text without it a perplexity in billions was once reported."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer", "<s> $A")
    ours = TokenStream(tokenized(tmp_path, tokenizer, name="with"), "held_out")
    without = TokenStream(tokenized(tmp_path, tokenizer, name="without", bos=False), "held_out")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ours.vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = TokenStream(tmp_path / "with")
    for step in range(100):
        tokens = torch.from_numpy(stream.batch(step, sequences=8, sequence_length=24, seed=0))
        for inputs, labels in (
            (tokens[:, :-1], tokens[:, 1:]),
            (tokens[:, 1:-1], torch.full_like(tokens[:, 2:], MASK)),
        ):
            logits = model(inputs).logits  # without its first token everything is nonsense
            cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = [
        window_losses(
            WholeModel(model.eval()),
            tokens=found.tokens,
            eos=EOS,
            prefix=found.prefix,
            sequence_length=24,
            batch_size=8,
            progress=Progress(None),
        )[WHOLE].loss
        for found in (ours, without)
    ]
    assert measured[0] < measured[1] - 1


def test_lm_eval_begins_a_text_in_the_same_way(tmp_path: Path) -> None:
    harness = pytest.importorskip("runners.evaluation.lm_eval_family")
    for name, (template, prefix) in TEMPLATES.items():
        folder = write_tokenizer(tmp_path / name, template)
        model = tiny.model(vocab_size=400)
        lm = harness.Harness(WholeModel(model), tokenizer=folder, trusted=False, batch_size=1, progress=Progress(None))
        plain = AutoTokenizer.from_pretrained(folder).encode("text", add_special_tokens=False)
        assert lm.tok_encode("text") == [*prefix, *plain], name
        assert lm.tok_batch_encode(["text", "text"])[0].tolist() == [[*prefix, *plain]] * 2, name
        # What is scored is the answer, and never the end of a text that some tokenizers put behind it.
        both = AutoTokenizer.from_pretrained(folder).encode("text answer", add_special_tokens=False)
        assert lm._encode_pair("text", " answer") == ([*prefix, *plain], both[len(plain) :]), name


# --- what a plan says ------------------------------------------------------------------------------

PROCESSORS: list[tuple[str | None, bool]] = [
    ("<s> $A", False),
    ("<s> $A", True),
    ("<s> $A </s>", False),
    ("[gMASK] <s> $A", False),
    ("$A </s>", False),
    (None, False),
]
OTHERS = {"GPTNeoXTokenizer", "CodeLlamaTokenizer"}  # that make a post-processor of their own


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("made_by", sorted(_FROM_FILE - {"PythonBackend"} | OTHERS))
def test_a_plan_claims_of_a_tokenizer_what_transformers_makes_of_its_files(
    tmp_path: Path, made_by: str, add_bos_token: bool | None
) -> None:
    named = "PreTrainedTokenizerFast" if made_by == "PreTrainedTokenizer" else made_by
    for i, (template, sequence) in enumerate(PROCESSORS):
        more = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        folder = write_tokenizer(tmp_path / str(i), template, sequence=sequence, tokenizer_class=named, **more)
        claimed = text_start(folder)
        assert (claimed is None) == (made_by in OTHERS)
        if claimed is not None:
            loaded = AutoTokenizer.from_pretrained(folder)
            whole, plain = loaded.encode("a"), loaded.encode("a", add_special_tokens=False)
            assert whole[: len(whole) - (whole[-1] == EOS)] == [*map(TOKENS.index, claimed), *plain]


def test_of_a_tokenizer_without_its_file_nothing_is_claimed(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "a", "<s> $A")
    assert text_start(folder) == ("<s>",)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["post_processor"] = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert text_start(folder) is None
    (folder / "tokenizer.json").unlink()
    assert text_start(folder) is None

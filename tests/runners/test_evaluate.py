"""Evaluation on tiny real models: against plain computations, and with the real lm-eval."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution
from boomspec.core.graph import Source
from boomspec.core.identity import folder_digest
from boomspec.core.tasks import Evaluate, HeldOut, LmEval
from boomspec.corpus import python_stdlib
from runners.evaluation import held_out
from runners.evaluation.lm_eval_family import Harness
from runners.evaluation.members import WholeModel
from runners.modeling.models import load_frozen
from runners.runtime.context import Context, Progress
from runners.runtime.job import Input
from runners.runtime.statistics import weighted_stderr
from runners.tasks import evaluate
from tests.messages import wording

EOS = 0
LENGTH = 16
SCORED = "documents scored"
DOCUMENTS = ["def f(x):\n    return x + 1\n", "# naïve café: ünïcödé\nimport os\n" * 3, "class A:\n    pass\n"]
STDLIB = Path(__file__).parents[2] / "specs/tasks"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """A model artifact: a random untied Llama and a byte-level tokenizer trained on real code."""
    folder = tmp_path_factory.mktemp("artifact") / "model"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(path) for path in python_stdlib()[1:3]], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    special = {"bos_token_id": EOS, "eos_token_id": EOS}
    config = LlamaConfig(vocab_size=320, max_position_embeddings=256, tie_word_embeddings=False, **sizes, **special)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder.parent


@pytest.fixture(scope="module")
def tokens(artifact, tmp_path_factory) -> Path:
    """A token artifact: EOS d1 EOS d2 EOS d3 EOS."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = AutoTokenizer.from_pretrained(artifact / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    stream = [EOS]
    for document in DOCUMENTS:
        stream += [*tokenizer.encode(document), EOS]
    np.array(stream, dtype="<u2").tofile(folder / "held_out.bin")
    text_bytes = sum(len(document.encode()) for document in DOCUMENTS)
    split = {"tokens": len(stream), "documents": len(DOCUMENTS), "bytes": text_bytes}
    meta = {"dtype": "uint16", "eos": EOS, "vocabulary": 320, "train": split, "held_out": split}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def run(folder: Path, measure, inputs: dict[str, Input], *, progress: Path | None = None, **options) -> dict:
    """Run the task's body in `folder`; returns results.json."""
    folder.mkdir()
    context = Context(
        record=Evaluate(measure=measure, precision="fp32"),
        inputs=inputs,
        path=folder,
        resume=folder.parent / "resume",
        execution=Execution(**options),
        progress=Progress(progress, every_seconds=0.0),
    )
    evaluate.run(context)
    return json.loads((folder / "results.json").read_text())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def measure_text(artifact, tokens, tmp_path):
    """Run the held-out measure; returns its metrics."""

    def measured(name: str = "out", *, max_tokens: int | None = None, **options) -> dict:
        inputs = {"model": Input("m", artifact), "tokens": Input("t", tokens)}
        measure = HeldOut(sequence_length=LENGTH, max_tokens=max_tokens)
        return run(tmp_path / name, measure, inputs, **options)["results"]["held_out"]

    return measured


def plain_losses(artifact: Path, stream: list[int]) -> list[float]:
    """-log p of every token of the text, window by window and token by token."""
    model = load_frozen(artifact / "model", dtype=torch.float32)
    losses = []
    for start in range(0, len(stream) - 1, LENGTH):
        window = torch.tensor(stream[start : start + LENGTH + 1])
        logits_TV = model(window[None, :-1]).logits[0]
        log_p_TV = torch.log_softmax(logits_TV.double(), dim=-1)
        losses += [-log_p_TV[i, label].item() for i, label in enumerate(window[1:].tolist()) if label != EOS]
    return losses


def stream_of(tokens: Path) -> list[int]:
    return np.fromfile(tokens / "held_out.bin", dtype="<u2").tolist()


def test_held_out_loss_is_the_plain_mean_over_the_text_s_tokens(measure_text, artifact, tokens):
    expected = plain_losses(artifact, stream_of(tokens))
    assert len(expected) == len(stream_of(tokens)) - 1 - len(DOCUMENTS)  # all but the first token and the separators
    assert measure_text()["loss,none"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_perplexity_and_bits_per_byte_follow_from_the_loss(measure_text, artifact, tokens):
    metrics = measure_text()
    nats, text_bytes = sum(plain_losses(artifact, stream_of(tokens))), sum(len(d.encode()) for d in DOCUMENTS)
    assert metrics["perplexity,none"] == pytest.approx(math.exp(metrics["loss,none"]))
    assert metrics["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


def test_max_tokens_measures_the_first_tokens_and_the_bytes_of_their_text(measure_text, artifact, tokens):
    first = stream_of(tokens)[: 3 * LENGTH]
    text = AutoTokenizer.from_pretrained(artifact / "model").decode([t for t in first if t != EOS])
    nats = sum(plain_losses(artifact, first))
    metrics = measure_text(max_tokens=3 * LENGTH)
    assert metrics["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_neither_batch_size_nor_the_chunks_of_logits_change_the_loss(measure_text, monkeypatch):
    expected = measure_text("one", batch_size=1)
    monkeypatch.setattr(held_out, "MEASURED_LOGITS", 320 * 5)  # five positions at a time
    assert measure_text("two", batch_size=4)["loss,none"] == pytest.approx(expected["loss,none"], rel=1e-6)


def test_the_standard_error_of_equal_weights_is_the_usual_one():
    values = np.array([1.0, 2.0, 4.0, 4.5])
    assert weighted_stderr(values, np.full(4, 7)) == pytest.approx(values.std(ddof=1) / 2)
    assert weighted_stderr(values[:1], np.ones(1)) is None


def test_table_and_items_hold_the_same_numbers_as_the_results(measure_text, tmp_path):
    metrics = measure_text()
    loss = read_csv(tmp_path / "out/table.csv")[0]
    items = read_csv(tmp_path / "out/items.csv")
    weights = np.array([float(item["weight"]) for item in items])
    values = np.array([float(item["value"]) for item in items])
    assert (loss["metric"], loss["higher_is_better"]) == ("loss", "False")
    assert float(loss["value"]) == metrics["loss,none"] == pytest.approx((weights * values).sum() / weights.sum())
    assert float(loss["stderr"]) == metrics["loss_stderr,none"] == pytest.approx(weighted_stderr(values, weights))


def test_progress_of_held_out_text_ends_at_the_number_of_predicted_tokens(measure_text, tokens, tmp_path):
    measure_text(progress=tmp_path / "progress.jsonl")
    last = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])
    assert (last["done"], last["total"], last["unit"]) == (
        len(stream_of(tokens)) - 1,
        len(stream_of(tokens)) - 1,
        "tokens",
    )


# --- lm-eval ---------------------------------------------------------------------------------------


def tasks_of(folder: Path) -> Input:
    return Input("x", source=Source("lm_eval_tasks", {"folder": folder_digest(folder)}, {"folder": str(folder)}))


def lm_eval_inputs(artifact: Path, folder: Path = STDLIB) -> dict[str, Input]:
    return {"model": Input("m", artifact), "tasks": tasks_of(folder)}


def test_lm_eval_runs_a_task_from_a_folder_and_again_with_the_same_bytes(artifact, tmp_path):
    measure = LmEval(task="stdlib_continuation", limit=8, seed=0)
    inputs, progress = lm_eval_inputs(artifact), tmp_path / "progress.jsonl"
    results = run(tmp_path / "one", measure, inputs, progress=progress)
    run(tmp_path / "two", measure, inputs)
    accuracy = results["results"]["stdlib_continuation"]["acc_mutual_info,none"]
    samples = [json.loads(line) for line in (tmp_path / "one/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    assert accuracy == pytest.approx(np.mean([sample["acc_mutual_info"] for sample in samples]))
    assert [float(item["value"]) for item in read_csv(tmp_path / "one/items.csv")] == [
        s["acc_mutual_info"] for s in samples
    ]
    lines = [json.loads(line) for line in progress.read_text().splitlines()]
    most = {unit: max(line["done"] for line in lines if line.get("unit") == unit) for unit in ("requests", SCORED)}
    assert most == {"requests": 8 * 4 * 2, SCORED: 8}  # with and without the context
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["items.csv", "results.json", "samples.jsonl", "table.csv"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert str(STDLIB) not in (tmp_path / "one/results.json").read_text()


GROUP = """
group: both
task: [first, second]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""
MEMBER = """
task: NAME
custom_dataset: !function data.load
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
DATA = """
import datasets

def load(**_):
    rows = [{"context": f"x = {i}", "choices": [" + 1", " - 1"], "label": i % 2} for i in range(4)]
    return {"test": datasets.Dataset.from_list(rows)}
"""


def test_a_group_of_tasks_gives_rows_for_the_group_and_its_members(artifact, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "both.yaml").write_text(GROUP)
    (folder / "data.py").write_text(DATA)
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(MEMBER.replace("NAME", name))
    run(tmp_path / "out", LmEval(task="both", seed=0), lm_eval_inputs(artifact, folder))
    table = read_csv(tmp_path / "out/table.csv")
    value = {row["measure"]: float(row["value"]) for row in table if row["metric"] == "acc"}
    assert set(value) == {"both", "first", "second"}
    assert value["both"] == pytest.approx((value["first"] + value["second"]) / 2)


def test_an_untied_head_stays_untied_in_lm_eval_even_where_the_config_says_tied(artifact, tmp_path):
    folder = tmp_path / "model"
    load_frozen(artifact / "model", dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(artifact / "model").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = load_frozen(folder, dtype=torch.float32)
    inputs_BT = torch.arange(12).reshape(2, 6)
    before_BTV = model(inputs_BT).logits
    lm = Harness(WholeModel(model), tokenizer=folder, batch_size=1, progress=Progress(None))
    assert torch.equal(lm.model(inputs_BT).logits, before_BTV)


def test_an_unknown_task_is_answered_with_the_closest_name(artifact, tmp_path):
    with pytest.raises(BoomspecError, match=wording("evaluate.did_you_mean_stdlib")):
        run(tmp_path / "out", LmEval(task="stdlib_continuatoin", seed=0), lm_eval_inputs(artifact))


def test_a_graph_that_was_compiled_with_another_lm_eval_is_refused(artifact, tmp_path):
    inputs = lm_eval_inputs(artifact)
    inputs["tasks"] = Input("x", source=Source("lm_eval_tasks", {"lm_eval": "0.0.1"}, {}))
    with pytest.raises(BoomspecError, match=wording("evaluate.graph_compiled")):
        run(tmp_path / "out", LmEval(task="arc_easy", seed=0), inputs)


def test_few_shots_that_a_task_would_ignore_are_refused(artifact, tmp_path):
    measure = LmEval(task="stdlib_continuation", num_fewshot=5, seed=0)
    with pytest.raises(BoomspecError, match="fixes num_fewshot at 0"):
        run(tmp_path / "out", measure, lm_eval_inputs(artifact))


def test_items_of_the_stdlib_task_come_from_held_out_files_and_are_always_the_same():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("stdlib_continuation_utils", STDLIB / "stdlib_continuation/utils.py")
    utils = module_from_spec(spec)
    spec.loader.exec_module(utils)
    first, again = utils.load(items=40)["test"], utils.load(items=40)["test"]
    files = [path.read_text(encoding="utf-8") for path in python_stdlib()]
    assert first.to_list() == again.to_list()
    for item in first:
        assert len(set(item["choices"])) == 4
        assert {len(choice) for choice in item["choices"]} == {utils.CONTINUATION}
        text = item["context"] + item["choices"][item["label"]]
        assert any(text in files[i] for i in range(0, len(files), utils.HELD_OUT_EVERY))


def test_of_a_stream_with_a_mask_its_labels_alone_are_measured_the_ends_of_turns_among_them(artifact, tokens, tmp_path):
    masked, stream = tmp_path / "masked", stream_of(tokens)
    shutil.copytree(tokens, masked)
    labels = np.random.default_rng(0).random(len(stream)) < 0.4
    labels[stream.index(EOS, 1)] = True
    np.packbits(labels, bitorder="little").tofile(masked / "held_out.labels")
    meta = json.loads((masked / "meta.json").read_text())
    meta["held_out"] |= {"labelled": int(labels.sum()), "bytes": 100}
    (masked / "meta.json").write_text(json.dumps(meta))
    inputs = {"model": Input("m", artifact), "tokens": Input("t", masked)}
    measured = run(tmp_path / "out", HeldOut(sequence_length=LENGTH, max_tokens=None), inputs)["results"]["held_out"]
    model = load_frozen(artifact / "model", dtype=torch.float32)
    losses = []
    for start in range(0, len(stream) - 1, LENGTH):
        window = torch.tensor(stream[start : start + LENGTH + 1])
        log_p_TV = torch.log_softmax(model(window[None, :-1]).logits[0].double(), dim=-1)
        losses += [-log_p_TV[i, t].item() for i, t in enumerate(window[1:].tolist()) if labels[start + 1 + i]]
    assert len(losses) == labels[1:].sum()
    assert measured["loss,none"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert measured["bits_per_byte,none"] == pytest.approx(sum(losses) / math.log(2) / 100, rel=1e-5)


@pytest.mark.parametrize("prefix", [(), (7,), (EOS,), (7, 8)])
def test_the_labels_of_a_window_are_its_own_next_tokens(prefix):
    rng = np.random.default_rng(1)
    stream, labels = rng.integers(1, 12, size=203), rng.random(203) < 0.5
    windows = list(held_out._batches(stream, prefix, 16, 3, padding=EOS))
    hidden = np.where(labels, stream, -100)
    rows = list(held_out._batches(hidden, prefix, 16, 3, padding=-100, of=stream))
    counted = 0
    for window_BS, label_BS in zip(windows, rows, strict=True):
        assert window_BS.shape == label_BS.shape
        shown = label_BS[:, 1:] != -100
        assert torch.equal(label_BS[:, 1:][shown], window_BS[:, 1:][shown])
        counted += int(shown.sum())
    # A beginning of the stream that a window has anyway, and the first token without one, are inputs only.
    assert labels.sum() - counted <= (0 if not prefix else sum(stream == prefix[0])) + (not prefix)

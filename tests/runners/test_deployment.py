"""What a size is like where it is used: the texts that it writes, how fast it is, and the memory that it takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Generation, Speed, Texts
from boomspec.models.facts import read_facts
from boomspec.models.kv_cache import layer_cache_bytes
from boomspec.store import FolderStore
from runners.executor.ready import Ready
from runners.modeling.models import load_frozen
from runners.report.collect import collect
from runners.report.deployment import texts_side_by_side
from runners.report.page import write_page
from runners.runtime.context import Context
from runners.tasks import speed, texts
from runners.verify.choose import choose
from runners.verify.compare import compare
from tests.messages import wording
from tests.runners import small, tiny

WORDS = ("<eos>", *map(str, range(1, 61)), "system", "user", "assistant")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model artifact: a tiny Llama with a tokenizer of words, and a chat template."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny.model(layers=3, tie_word_embeddings=True).save_pretrained(folder / "model")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    return folder


def asked(**fields: Any) -> Texts:
    settings = Generation(**{"max_tokens": 12, "temperature": 0.0, **fields.pop("settings", {})})
    return Texts(**{"prompts": ("3 4 5", "7 9"), "precision": "fp32", "chat": False, "settings": settings, **fields})


def written(folder: Path, of: Texts, model: Path) -> dict[str, Any]:
    context = tiny.context(folder, of, model=model)
    texts.run(context)
    found: dict[str, Any] = json.loads((context.path / texts.TEXTS).read_text())
    return found


def test_the_likeliest_tokens_are_those_of_transformers(tmp_path: Path, artifact: Path) -> None:
    found = written(tmp_path / "greedy", asked(), artifact)
    model = load_frozen(artifact / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(artifact / "model")
    for one in found["texts"]:
        prompt = tokenizer(one["prompt"], return_tensors="pt").input_ids
        expected = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0)
        assert one["text"] == tokenizer.decode(expected[0, prompt.shape[1] :], skip_special_tokens=True)
        assert one["ended"] == (int(expected[0, -1]) == 0)
    assert [one["prompt"] for one in found["texts"]] == ["3 4 5", "7 9"]
    assert found == written(tmp_path / "again", asked(), artifact)


def test_a_chat_template_is_used_where_there_is_one_and_the_result_says_so(tmp_path: Path, artifact: Path) -> None:
    found = written(tmp_path / "auto", asked(chat=None, system="1"), artifact)
    assert found["chat"] is True
    tokenizer = AutoTokenizer.from_pretrained(artifact / "model")
    tokens = texts.prompt_tokens(tokenizer, "3 4", asked(system="1"), chat=True)
    assert tokens == tokenizer("system 1 user 3 4 assistant", add_special_tokens=False).input_ids
    bare = AutoTokenizer.from_pretrained(artifact / "model")
    bare.chat_template = None
    assert texts.uses_chat(asked(chat=None), bare, tmp_path) is False
    with pytest.raises(BoomspecError) as error:
        texts.uses_chat(asked(chat=True), bare, tmp_path)
    assert wording("deployment.no_template") in str(error.value)


def test_drawn_texts_are_a_function_of_the_seed(tmp_path: Path, artifact: Path) -> None:
    drawn = {"settings": {"temperature": 1.5, "top_p": 0.9}, "samples": 2, "seed": 3}
    found, other = (
        written(tmp_path / str(seed), asked(**{**drawn, "seed": seed}), artifact)["texts"] for seed in (3, 4)
    )
    alone = written(tmp_path / "one", asked(**{**drawn, "samples": None}), artifact)["texts"]
    assert [one["sample"] for one in found] == [0, 1, 0, 1]
    assert found[0]["text"] != found[1]["text"]
    assert found != other
    assert alone == found[::2]  # one text more changes none of those before it


def test_a_text_ends_where_the_model_has_no_position_left(tmp_path: Path, artifact: Path) -> None:
    (one,) = written(tmp_path, asked(prompts=("3",), settings={"max_tokens": 500}), artifact)["texts"]
    assert one["tokens"] == 63 or one["ended"]  # of 64 positions


def measured(folder: Path, model: Path, **fields: Any) -> tuple[Context[Speed], dict[str, Any]]:
    plain = {"prompt_tokens": 24, "new_tokens": 8, "batch": 2, "repeats": 2, "precision": "fp32"}
    context = tiny.context(folder, Speed(**{**plain, **fields}), model=model)
    speed.run(context)
    return context, json.loads((context.path / speed.SPEED).read_text())


def test_speed_and_memory_of_a_model(tmp_path: Path, artifact: Path) -> None:
    """Counted bytes are exact; what is measured agrees with the times that stand beside it."""
    _, found = measured(tmp_path, artifact)
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    first = sum(run["first_token"] for run in found["runs"]) / 2
    decode = sum(run["decode"] for run in found["runs"]) / 2
    assert values["first_token_seconds"] == pytest.approx(first)
    assert values["prefill_tokens_per_second"] == pytest.approx(2 * 24 / first)
    assert values["decode_tokens_per_second"] == pytest.approx(2 * 7 / decode)
    facts = read_facts(artifact / "model")
    assert values["cache_bytes"] == sum(layer_cache_bytes(facts, context=32, batch=2)) == 3 * 2 * 16 * 4 * 32 * 2
    model = load_frozen(artifact / "model", dtype=torch.float32)
    assert values["weight_bytes"] == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert found["device"]
    assert found["threads"] == torch.get_num_threads()
    _, half = measured(tmp_path / "bf16", artifact, precision="bf16")
    assert half["metrics"]["cache_bytes"]["value"] == values["cache_bytes"] / 2


def test_peak_memory_is_what_a_model_takes_and_not_what_the_process_has(tmp_path: Path) -> None:
    """40 MB of weights in a process of hundreds of MB; the second measurement is no larger than the first."""
    tiny.model(layers=2, hidden_size=512, intermediate_size=2048, head_dim=256).save_pretrained(
        tmp_path / "a" / "model"
    )
    peaks = [measured(tmp_path / str(i), tmp_path / "a")[1]["metrics"] for i in range(2)]
    for metrics in peaks:
        weights, peak = (metrics[name]["value"] for name in ("weight_bytes", "peak_memory_bytes"))
        assert 30e6 < weights < 50e6
        assert 0.9 * weights < peak < weights + 30e6


def test_the_speed_on_another_device_is_not_measured_here(tmp_path: Path, artifact: Path) -> None:
    with pytest.raises(BoomspecError) as error:
        measured(tmp_path / "other", artifact, device="NVIDIA H200")
    assert wording("deployment.other_device") in str(error.value)
    _, here = measured(tmp_path / "here", artifact)
    measured(tmp_path / "same", artifact, device=here["device"].upper())


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FolderStore]:
    """A run of all tasks of a spec that asks for texts and speed."""
    folder = tmp_path_factory.mktemp("family")
    more = {"texts": {"prompts": ["line 1", "text"]}, "speed": {"prompt_tokens": 8, "new_tokens": 4}, "every": "50%"}
    store = FolderStore(folder / "store")
    graph = small.compiled(small.write_spec(folder, evaluate=more), store).graph
    small.execute(graph, store)
    return graph, store


def test_the_report_has_texts_side_by_side_and_three_pictures_of_one_family(family) -> None:
    graph, store = family
    node = next(node for node in graph.nodes.values() if node.task.kind == "report")
    study = collect(node.task.record, lambda role: store.path(graph.nodes[i := node.task.inputs[role]].task.kind, i))
    assert list(study.texts) == ["student", "interpolated 3 layers", "teacher"]
    assert [asked["prompt"] for asked in texts_side_by_side(study.trials[0])] == ["line 1", "text"]
    for metric in ("peak_memory_bytes", "decode_tokens_per_second"):
        assert [row.cell.layers for row in study.speeds if row.metric == metric] == [2, 3, 4]
    assert "speed" not in study.measures  # no quality
    assert len(study.machines) == 1
    assert not study.missing
    folder = store.path("report", node.id)
    rows = (folder / "deployment.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 6
    content = json.loads((folder / "results.json").read_text())
    assert {row["metric"] for row in content["deployment"]} >= {"peak_memory_bytes", "cache_bytes"}
    assert len(content["texts"]) == 6
    (curves,) = [training for training in study.trainings if training.held_out]
    assert [row["step"] for row in curves.held_out] == [0, 1, 2]
    assert all({"loss", "step"} <= step.keys() for step in curves.steps)
    assert {row["model"] for row in content["during"]} == {"student", "3 layers"}
    assert (folder / "figures" / "during-student.png").stat().st_size > 0


def test_a_page_with_speeds_of_two_machines_says_that_they_cannot_be_compared(family, tmp_path: Path) -> None:
    graph, store = family
    node = next(node for node in graph.nodes.values() if node.task.kind == "report")
    kinds = {i: made.task.kind for i, made in graph.nodes.items()}
    moved = tmp_path / "speed"
    shutil.copytree(store.path("speed", node.task.inputs["teacher/:speed"]), moved)
    found = json.loads((moved / speed.SPEED).read_text())
    (moved / speed.SPEED).write_text(json.dumps({**found, "device": "Another CPU"}))

    def own(role: str) -> Path:
        return store.path(kinds[node.task.inputs[role]], node.task.inputs[role])

    of_two = collect(node.task.record, lambda role: moved if role == "teacher/:speed" else own(role))
    assert {machine.partition(" with")[0] for machine in of_two.machines} == {found["device"], "Another CPU"}
    (tmp_path / "figures").mkdir()
    pages = [
        write_page(tmp_path, study, title="x", figures=tmp_path / "figures").read_text()
        for study in (of_two, collect(node.task.record, own))
    ]
    assert [wording("deployment.several_machines") in page for page in pages] == [True, False]


def test_nothing_else_runs_while_the_speed_is_measured(family) -> None:
    graph, _ = family
    ready = Ready(graph, graph.nodes, machines=lambda: [{"CPU": 8.0}])
    given: list[str] = []
    while True:
        while part := ready.take():
            given += part
        if not given:
            break
        running = [graph.nodes[task_id].task.kind for task_id in given]
        assert "speed" not in running or running == ["speed"]
        for task_id in given:
            ready.ended(task_id, made=True)
        given = []
    kinds = [graph.nodes[i].task.kind for i in graph.nodes]
    assert kinds.count("speed") == 3
    assert not ready.take()


def test_another_measurement_of_a_machine_is_not_called_broken(family, tmp_path: Path) -> None:
    graph, store = family
    assert not any(node.task.kind == "speed" for node in choose(graph, [], [], end_to_end=False))
    node = next(node for node in choose(graph, [], ["speed"], end_to_end=False))
    again = FolderStore(tmp_path / "again")
    record = store.record("speed", node.id)
    found = json.loads((store.path("speed", node.id) / speed.SPEED).read_text())
    found["metrics"]["decode_tokens_per_second"]["value"] *= 2
    with again.workspace("speed", node.id) as workspace:
        (workspace.path / speed.SPEED).write_text(json.dumps(found))
        again.publish(workspace, "speed", node.id, node.task.identity(), record["provenance"])
    assert compare(node, store, again, 0.0, measured=not node.task.record.repeatable).verdict == "measured"
    assert compare(replace(node), store, again, 0.0).verdict == "differs"

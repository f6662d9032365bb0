"""Text that vLLM writes. vLLM needs a GPU: a small package stands in for it, which generates with transformers."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.registry import model_registry

from boomspec.compile.lm_eval.tasks import task_index
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.tasks import Chat, Evaluate, Generation, Thinking
from boomspec.store import FolderStore
from tests.messages import wording
from tests.runners import small
from tests.runners.lm_eval_tasks import CHOICE, WRITTEN, chat_model, measured, model, numbers, row, task

STAND_IN = '''
"""What lm-eval uses of vLLM 0.8.0, made of transformers."""
from types import SimpleNamespace
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


SEEN = []  # the parameters of all texts


class SamplingParams(SimpleNamespace):
    pass


class TokensPrompt(dict):
    pass


class LLM:
    def __init__(self, model, dtype, **options):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        positions = self.model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=positions))

    def generate(self, prompts, sampling_params, **options):
        SEEN.extend(sampling_params)
        return [self._one(prompt["prompt_token_ids"], params) for prompt, params in zip(prompts, sampling_params)]

    def _one(self, tokens, params):
        ids = torch.tensor([tokens])
        options = {"max_new_tokens": params.max_tokens, "do_sample": False, "pad_token_id": 0}
        found = self.model.generate(ids, **options)[0, len(tokens):].tolist()
        text = self.tokenizer.decode(found)
        ends = [text.index(stop) for stop in params.stop if stop and stop in text]
        text, ended = text[: min(ends, default=len(text))], bool(ends) or found[-1] == self.tokenizer.eos_token_id
        return SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason="stop" if ended else "length")])
'''


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package `vllm`."""
    place = tmp_path / "site-packages"
    (place / "vllm" / "lora").mkdir(parents=True)
    (place / "vllm" / "__init__.py").write_text(STAND_IN)
    (place / "vllm" / "lora" / "__init__.py").touch()
    (place / "vllm" / "lora" / "request.py").write_text("class LoRARequest: pass\n")
    loads = "from transformers import AutoTokenizer\n\n\ndef get_tokenizer(name, **options):\n"
    (place / "vllm" / "tokenizers.py").write_text(f"{loads}    return AutoTokenizer.from_pretrained(name)\n")
    (place / "vllm-0.8.0.dist-info").mkdir()
    (place / "vllm-0.8.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.8.0\n")
    monkeypatch.syspath_prepend(place)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm" or name.endswith("vllm_causallms")]:
        del sys.modules[name]
    model_registry._objs["vllm"] = "lm_eval.models.vllm_causallms:VLLM"  # as before it was imported


ROWS = [row(4, answer="5") | {"context": numbers(4, start)} for start in range(1, 9)] + [row(13), row(30)]


def test_text_is_measured_as_with_transformers(tmp_path: Path, vllm: None) -> None:
    student, source = model(tmp_path / "student"), task(tmp_path / "tasks", ROWS, WRITTEN)
    expected = measured(tmp_path / "expected", student, source)
    found = measured(tmp_path / "found", student, source, backend="vllm")
    assert found["results"] == expected["results"]
    assert found["counts"] == expected["counts"]
    assert found["counts"]["own"]["contexts_cut"] == 2
    assert 0 < found["counts"]["own"]["generations_cut"] <= len(ROWS)
    assert (found["config"]["model"], expected["config"]["model"]) == ("vllm", "hf")


def test_a_chat_reaches_vllm_as_it_reaches_transformers(tmp_path: Path, vllm: None) -> None:
    """Its prompts begin once: the tokenizer and the template both begin a text."""
    student, source = chat_model(tmp_path / "student"), task(tmp_path / "tasks", ROWS, WRITTEN)
    fields = {"chat": Chat(system="41 42", template={"think": True}), "num_fewshot": 0}
    expected = measured(tmp_path / "expected", student, source, **fields)
    found = measured(tmp_path / "found", student, source, backend="vllm", **fields)
    assert found["results"] == expected["results"]
    assert found["counts"] == expected["counts"]
    texts = [(tmp_path / name / "samples.jsonl").read_text() for name in ("found", "expected")]
    assert texts[0] == texts[1]


SETTINGS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "presence_penalty": 0.5}
SETTINGS |= {"repetition_penalty": 1.1, "max_tokens": 3}


def test_settings_of_a_spec_are_vllm_s_own_with_a_seed_for_each_text(tmp_path: Path, vllm: None) -> None:
    student, source = model(tmp_path / "student"), task(tmp_path / "tasks", ROWS, WRITTEN)
    fields = {"generation": Generation(**SETTINGS, stop=("5",)), "samples": 2, "seed": 0, "backend": "vllm"}
    found = measured(tmp_path / "found", student, source, **fields)
    seen = importlib.import_module("vllm").SEEN
    assert len(seen) == 2 * len(ROWS) == found["counts"]["own"]["generations"]
    assert all({name: getattr(params, name) for name in SETTINGS} == SETTINGS for params in seen)
    assert {tuple(params.stop) for params in seen} == {("5", "<eos>")}
    seeds = [params.seed for params in seen]
    assert len(set(seeds)) == len(seeds)
    seen.clear()
    measured(tmp_path / "again", student, source, **fields)
    assert [params.seed for params in seen] == seeds
    assert "exact_match mean@2,none" in found["results"]["own"]


def test_thoughts_that_vllm_writes_are_no_answers(tmp_path: Path, vllm: None) -> None:
    """A thought may hold what stops an answer, so that is looked for behind it, as lm-eval's own model does."""
    student, source = model(tmp_path / "student"), task(tmp_path / "tasks", ROWS, WRITTEN)
    settings = Generation(max_tokens=6)
    plain = measured(tmp_path / "plain", student, source, generation=settings, thinking=Thinking(end="37"))
    found = measured(
        tmp_path / "found", student, source, generation=settings, thinking=Thinking(end="37"), backend="vllm"
    )
    seen = importlib.import_module("vllm").SEEN
    assert {tuple(params.stop) for params in seen} == {("<eos>",)}
    assert found["results"] == plain["results"]
    assert found["counts"] == plain["counts"]
    assert 0 < found["counts"]["own"]["unfinished_thoughts"] <= len(ROWS)


def test_a_machine_without_vllm_says_so(tmp_path: Path) -> None:
    student, source = model(tmp_path / "student"), task(tmp_path / "tasks", ROWS, WRITTEN)
    with pytest.raises(BoomspecError, match=wording("vllm.not_installed")):
        measured(tmp_path / "found", student, source, backend="vllm")


def compiled(folder: Path, *tasks: dict[str, Any], **sections: Any) -> dict[str, Evaluate]:
    """The evaluations of the student, by their measure."""
    for number, config in enumerate(tasks):
        task(folder / "tasks", [row()], {**config, "task": f"own{number}"})
        (folder / "tasks" / "own.yaml").rename(folder / "tasks" / f"own{number}.yaml")
    task_index.cache_clear()
    evaluate = {"tasks": [f"own{n}" for n in range(len(tasks))], "tasks_folder": "tasks", "backend": "vllm"}
    sections = {"evaluate": evaluate, "execution": {"evaluate": {"gpus": 1}}, **sections}
    graph = small.compiled(small.write_spec(folder, **sections), FolderStore(folder / "store")).graph
    nodes = [node for node in graph.nodes.values() if node.name.startswith("evaluate student: ")]
    return {node.name.removeprefix("evaluate student: "): node.task.record for node in nodes}


def test_only_tasks_that_generate_text_have_the_backend(tmp_path: Path) -> None:
    found = compiled(tmp_path, CHOICE, WRITTEN)
    assert {name: record.backend for name, record in found.items()} == {
        "held_out": None,
        "own0": None,
        "own1": "vllm",
    }


NOTHING_GENERATES = wording("vllm.nothing_generates")
NO_GPU, STRICT = wording("vllm.no_gpu"), wording("vllm.strict")


@pytest.mark.parametrize(
    ("tasks", "sections", "message"),
    [
        ((CHOICE,), {}, NOTHING_GENERATES),
        ((WRITTEN,), {"execution": {"evaluate": {"gpus": 0}}}, NO_GPU),
        ((WRITTEN,), {"determinism": {"algorithms": "strict"}}, STRICT),
    ],
)
def test_what_vllm_cannot_do_is_an_error_of_the_spec(
    tmp_path: Path, tasks: tuple[dict[str, Any], ...], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        compiled(tmp_path, *tasks, **sections)

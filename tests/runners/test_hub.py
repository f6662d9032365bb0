"""A teacher on the hub: its commit is pinned, its sizes come from headers, its weights are fetched at that commit."""

import json
import os
import re
import shutil
import subprocess
import sys

import yaml
from safetensors.torch import load_file, save_file

from boomspec.models.facts import read_facts, total_parameters
from boomspec.models.hub import _connects
from tests.messages import wording
from tests.runners import tiny
from tests.runners.hub_server import COMMIT, hub, hub_of

SPEC = {
    "boomspec": 1,
    "name": "hub",
    "teacher": {"model": "maker/teacher"},
    "student": {"keep": 2},
    "data": {"files": "*.txt", "sequence_length": 16},
    "distill": {"tokens": 1024, "batch_tokens": 128},
}


def call(folder, endpoint: str, *command: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "0" if endpoint else "1",
    }
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment)


def test_a_hub_teacher_is_planned_from_headers_and_fetched_at_the_pinned_commit(tmp_path):
    model = tiny.model(layers=4)
    model.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer.json").write_text("{}")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    facts = read_facts(tmp_path / "hub")
    with hub("maker/teacher", tmp_path / "hub") as (endpoint, log):
        planned = call(tmp_path, endpoint, "-m", "boomspec.commands.cli", "plan", "spec.yaml", "--json")
        assert planned.returncode == 0, planned.stderr
        sizes = json.loads(planned.stdout)["experiments"][0]["sizes"]
        whole = [line for line in log if line.startswith("GET") and "safetensors" in line and "bytes" not in line]
        assert whole == []  # headers only
        assert sizes[-1]["parameters"] == total_parameters(facts.tensors(range(4), tied=facts.tied))

        graph = json.loads(call(tmp_path, endpoint, "-m", "boomspec.commands.cli", "graph", "spec.yaml").stdout)
        identities = [source["identity"] for source in graph["sources"].values() if source["kind"] == "model"]
        assert identities == [{"hub": "maker/teacher", "revision": COMMIT}]

        code = (
            "from boomspec.core.graph import Source; from runners.runtime.job import Input\n"
            "from runners.modeling.models import model_folder\n"
            f"source = Source('model', {identities[0]!r}, {{'hub': 'maker/teacher'}})\n"
            "print(model_folder(Input(source.id, source=source)))"
        )
        fetched = call(tmp_path, endpoint, "-c", code)
        assert fetched.returncode == 0, fetched.stderr
    folder = fetched.stdout.strip()
    assert COMMIT in folder
    assert read_facts(type(tmp_path)(folder)).count == 4

    # Validating needs no network, and now knows the layers.
    valid = call(tmp_path, "", "-m", "boomspec.commands.cli", "validate", "spec.yaml", "--json")
    assert json.loads(valid.stdout) == {"valid": True, "teacher_checked": True, "experiments": [""]}

    # And now the hub is gone, but what was fetched is here.
    again = call(tmp_path, "", "-m", "boomspec.commands.cli", "plan", "spec.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["experiments"][0]["sizes"] == sizes


def test_a_hub_teacher_without_a_chat_template_is_an_error_of_plan_where_the_data_has_conversations(tmp_path):
    (tmp_path / "chat.jsonl").write_text('{"messages": []}\n')
    chat = SPEC["data"] | {"files": "chat.jsonl", "messages": "messages"}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC | {"data": chat}))
    for name, template in (("bare", None), ("chat", "{{ messages }}")):
        tiny.model(layers=4).save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text("{}")
        if template is not None:
            (tmp_path / name / "chat_template.jinja").write_text(template)
        with hub("maker/teacher", tmp_path / name) as (endpoint, _):
            done = call(tmp_path, endpoint, "-m", "boomspec.commands.cli", "graph", "spec.yaml")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        assert (done.returncode == 0) == (template is not None), done.stderr
        assert (wording("chat_data.hub_without") in done.stderr) == (template is None)


def test_what_a_repository_holds_instead_of_a_model_is_said_when_it_is_planned(tmp_path):
    """With the names of its files alone, before anything of them is fetched."""
    says = {
        "adapter": "holds a PEFT adapter beside the model",
        "adapter-alone": "holds a PEFT adapter",
        "gptq": "quant_method gptq",
        "gguf": "holds a model in GGUF (m.gguf), and no config.json",
        "bin": "holds weights that are pickled (pytorch_model.bin)",
    }
    for name in says:
        tiny.model(layers=2).save_pretrained(tmp_path / name)
        if name in ("bin", "gguf", "adapter-alone"):
            (tmp_path / name / "model.safetensors").unlink()
    for name, file in (("adapter", "adapter_config.json"), ("bin", "pytorch_model.bin"), ("gguf", "m.gguf")):
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "adapter-alone" / "config.json").rename(tmp_path / "adapter-alone" / "adapter_config.json")
    (tmp_path / "gguf" / "config.json").unlink()
    config = tmp_path / "gptq" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    code = (
        "import json; from boomspec.models.hub import pinned_model; from boomspec.core.errors import BoomspecError\n"
        "found = {}\n"
        f"for name in {list(says)!r}:\n"
        "    try: pinned_model(f'maker/{name}', None)\n"
        "    except BoomspecError as error: found[name] = error.message\n"
        "print(json.dumps(found))"
    )
    with hub_of({f"maker/{name}": tmp_path / name for name in says}) as (endpoint, log):
        done = call(tmp_path, endpoint, "-c", code)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: found.get(name, "").startswith(f"model 'maker/{name}': ") for name in says} == dict.fromkeys(
        says, True
    )
    assert {name: text in found[name] for name, text in says.items()} == dict.fromkeys(says, True), found
    assert not [line for line in log if line.startswith("GET") and "safetensors" in line]


def test_a_tied_model_whose_file_holds_another_head_is_planned_as_it_is_run(tmp_path):
    """Head and embedding of one shape, in a model that says that they are one: places of both are compared."""
    heads = {"same": lambda head: head, "other": lambda head: head + 1, "last": _last_row, "hidden": _a_middle_row}
    for name, change in heads.items():
        folder = tmp_path / name
        tiny.model(layers=2, tie_word_embeddings=True, vocab_size=70_000).save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"].clone())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code = (
        "import json; from boomspec.models.hub import pinned_model; from boomspec.core.errors import BoomspecError\n"
        "from boomspec.core.graph import Source; from runners.runtime.job import Input\n"
        "from runners.modeling.models import model_folder\n"
        "from boomspec.models.facts import read_facts\n"
        "found = {}\n"
        f"for name in {list(heads)!r}:\n"
        "    commit, facts = pinned_model(f'maker/{name}', None)\n"
        "    where = {'hub': f'maker/{name}', **({'tied': True} if facts.believed else {})}\n"
        "    source = Source('model', {'hub': f'maker/{name}', 'revision': commit}, where)\n"
        "    try: run = read_facts(model_folder(Input(source.id, source=source))).tied\n"
        "    except BoomspecError as error: run = error.message\n"
        "    found[name] = [facts.tied, facts.believed, run, pinned_model(f'maker/{name}', None)[1].tied]\n"
        "print(json.dumps(found))"
    )
    with hub_of({f"maker/{name}": tmp_path / name for name in heads}) as (endpoint, _):
        done = call(tmp_path, endpoint, "-c", code)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] == [True, True, True, True]
    assert found["other"] == [False, False, False, False]
    assert found["last"] == [False, False, False, False]
    # Where the places do not show it, the first task that has the files says so, and the next plan knows.
    planned, believed, said, again = found["hidden"]
    assert (planned, believed, again) == (True, True, False)
    assert wording("hub.head_differs_embedding_few") in said


def _last_row(head):
    head[-1] += 1
    return head


def _a_middle_row(head):
    head[len(head) // 3] += 1
    return head


def test_the_chat_template_of_a_teacher_is_read_before_anything_is_trained(tmp_path):
    """It may be a file of its own, which a repository without a template does not have."""
    own = "task: own\ntest_split: test\ngeneration_kwargs: {until: ['.'], max_gen_toks: 8}\n"
    found = {}
    for name, template in {"without": None, "with": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}.items():
        folder = tmp_path / name
        tiny.model(layers=4).save_pretrained(folder / "hub")
        (folder / "hub" / "tokenizer.json").write_text("{}")
        (folder / "hub" / "tokenizer_config.json").write_text("{}")
        if template is not None:
            (folder / "hub" / "chat_template.jinja").write_text(template)
        (folder / "tasks").mkdir()
        (folder / "tasks" / "own.yaml").write_text(own)
        (folder / "text.txt").write_text("text")
        asked = {"tasks": ["own"], "tasks_folder": "tasks", "chat": {"system": "Be brief."}}
        (folder / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "evaluate": asked}))
        with hub("maker/teacher", folder / "hub") as (endpoint, _):
            found[name] = call(folder, endpoint, "-m", "boomspec.commands.cli", "plan", "spec.yaml", "--json")
    assert found["with"].returncode == 0, found["with"].stderr
    assert re.search(wording("asking.no_template"), found["without"].stdout)
    assert "evaluate.chat" in found["without"].stdout


def test_hosts_that_need_no_proxy_are_no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "localhost")
    connects = _connects.__wrapped__
    assert not connects("http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert connects("http://hub.invalid")
    assert not connects("http://localhost:9")

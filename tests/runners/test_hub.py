"""A teacher on the hub: its commit is pinned, its sizes come from headers, its weights are fetched at that commit."""

import json
import os
import subprocess
import sys

import yaml

from boomspec.models.facts import read_facts, total_parameters
from tests.runners import tiny
from tests.runners.hub_server import COMMIT, hub

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
        planned = call(tmp_path, endpoint, "-m", "boomspec.cli", "plan", "spec.yaml", "--json")
        assert planned.returncode == 0, planned.stderr
        sizes = json.loads(planned.stdout)["experiments"][0]["sizes"]
        whole = [line for line in log if line.startswith("GET") and "safetensors" in line and "bytes" not in line]
        assert whole == []  # headers only
        assert sizes[-1]["parameters"] == total_parameters(facts.tensors(range(4), tied=facts.tied))

        graph = json.loads(call(tmp_path, endpoint, "-m", "boomspec.cli", "graph", "spec.yaml").stdout)
        identities = [source["identity"] for source in graph["sources"].values() if source["kind"] == "model"]
        assert identities == [{"hub": "maker/teacher", "revision": COMMIT}]

        code = (
            "from boomspec.graph import Source; from runners.context import Input\n"
            "from runners.models import model_folder\n"
            f"source = Source('model', {identities[0]!r}, {{'hub': 'maker/teacher'}})\n"
            "print(model_folder(Input(source.id, source=source)))"
        )
        fetched = call(tmp_path, endpoint, "-c", code)
        assert fetched.returncode == 0, fetched.stderr
    folder = fetched.stdout.strip()
    assert COMMIT in folder
    assert read_facts(type(tmp_path)(folder)).count == 4

    # Validating needs no network, and now knows the layers.
    valid = call(tmp_path, "", "-m", "boomspec.cli", "validate", "spec.yaml", "--json")
    assert json.loads(valid.stdout) == {"valid": True, "teacher_checked": True, "experiments": [""]}

    # And now the hub is gone, but what was fetched is here.
    again = call(tmp_path, "", "-m", "boomspec.cli", "plan", "spec.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["experiments"][0]["sizes"] == sizes

"""Every spec of the papers' experiments plans, with the hub's real client and no network but a hub on loopback."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boomspec.spec.experiments import load_spec
from tests.boomspec.public_hub import FIXTURES, headers, public_models
from tests.boomspec.test_reference_plans import table
from tests.runners.hub_server import hub_of

SPECS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))}
DATASETS = ["EleutherAI/the_pile_deduplicated", "allenai/tulu-3-sft-mixture"]

# One process for all: the hub's address is read when its client is imported, and lm-eval's tasks are listed once.
PLAN_ALL = """
import json, sys
from click.testing import CliRunner
from boomspec.commands.cli import main
def plan(path):
    result = CliRunner().invoke(main, ["plan", path, "--json", "--store", "store"], catch_exceptions=False)
    return {"code": result.exit_code, "plan": json.loads(result.stdout)}
print(json.dumps({path: plan(path) for path in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of `boomspec plan --json` for each spec, and what was asked of the hub for it."""
    folder = tmp_path_factory.mktemp("specs")
    paths = {str(path): name for name, path in SPECS.items() if name != "quickstart"}
    with hub_of(public_models(folder / "hub"), DATASETS) as (endpoint, log):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        result = subprocess.run(
            [sys.executable, "-c", PLAN_ALL, *paths], capture_output=True, text=True, cwd=folder, env=environment
        )
    assert result.returncode == 0, result.stderr
    return {"log": log, **{paths[path]: answer for path, answer in json.loads(result.stdout).items()}}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_opens_with_its_question_and_has_the_name_of_its_file(name: str) -> None:
    comment = SPECS[name].read_text().split("boomspec: 1")[0]
    assert comment.startswith("# ")
    assert "?" in comment.split("#\n")[0]
    assert load_spec(SPECS[name]).spec.name == name
    assert name == "quickstart" or "arXiv" in comment


@pytest.mark.parametrize("name", [name for name in SPECS if name != "quickstart"])
def test_a_spec_plans_offline(planned: dict[str, Any], name: str) -> None:
    answer = planned[name]
    assert answer["code"] == 0, answer["plan"]
    assert {task["action"] for task in answer["plan"]["tasks"]} <= {"run", "unneeded"}


# Teachers: the published counts. Students: 2.3B, 4.9B, 1.6B, 3.8B, 1.9B as published, to the last digit.
COUNTS = {
    "qwen3-4b": (19, 2_306_644_224, 36, 4_022_468_096),
    "qwen3-8b": (19, 4_910_646_016, 36, 8_190_735_360),
    "pythia-2.8b": (17, 1_595_061_760, 32, 2_775_208_960),
    "pythia-6.9b": (17, 3_836_604_416, 32, 6_857_302_016),
    "llama-3.2-3b": (15, 1_904_047_104, 28, 3_212_749_824),
    "distilgpt2": (6, 81_912_576, 12, 124_439_808),
}


@pytest.mark.parametrize("name", COUNTS)
def test_students_and_teachers_have_the_published_number_of_parameters(planned: dict[str, Any], name: str) -> None:
    first, *_, last = planned[name]["plan"]["experiments"][0]["sizes"]
    assert (first["layers"], first["parameters"], last["layers"], last["parameters"]) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "sizes"), [("qwen3-8b", 18), ("pythia-2.8b", 16), ("pythia-6.9b", 16), ("llama-3.2-3b", 14)]
)
def test_a_pair_has_a_size_for_each_number_of_patched_blocks(planned: dict[str, Any], name: str, sizes: int) -> None:
    assert [size["patched"] for size in planned[name]["plan"]["experiments"][0]["sizes"]] == list(range(sizes))


def test_a_published_student_gives_the_layer_plans_of_the_published_code(planned: dict[str, Any]) -> None:
    plans = [tuple(size["plan"]) for size in planned["qwen3-4b-published"]["plan"]["experiments"][0]["sizes"]]
    assert plans == table("qwen3-4b")[2]["last_to_first"]


def test_experiments_with_the_same_student_share_its_distillation(planned: dict[str, Any]) -> None:
    def distillation(name: str) -> str:
        return next(t["id"] for t in planned[name]["plan"]["tasks"] if t["name"] == "distill student")

    same = ["random-init", "standard-distillation", "klpatch"]
    assert {distillation(f"qwen3-4b-{name}") for name in same} == {distillation("qwen3-4b")}
    others = ["cross-entropy", "no-cosine", "no-kl", "cosine-only", "half-billion-tokens", "every-third"]
    assert len({distillation(f"qwen3-4b-{name}") for name in others} - {distillation("qwen3-4b")}) == len(others)


def test_nothing_but_headers_of_weights_is_fetched(planned: dict[str, Any]) -> None:
    weights = [line for line in planned["log"] if line.startswith("GET") and line.split()[1].endswith(".safetensors")]
    assert weights
    assert all("bytes=" in line for line in weights)


@pytest.mark.parametrize(
    ("model", "elements"),
    [
        ("openai-community/gpt2", 137_022_720),  # its causal masks count
        ("distilbert/distilgpt2", 88_204_032),
        ("google-bert/bert-base-uncased", 110_106_428),
        ("distilbert/distilbert-base-uncased", 66_985_530),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
    ],
)
def test_recorded_headers_have_as_many_elements_as_the_hub_shows(model: str, elements: int) -> None:
    files = headers(FIXTURES / model.replace("/", "--"))
    assert sum(math.prod(shape) for tensors in files.values() for _, shape in tensors.values()) == elements

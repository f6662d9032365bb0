"""Uploads to a hub on loopback, by the commands that people call: the client of huggingface_hub does the requests.

In a process of their own: the client reads its endpoint when it is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.messages import wording
from tests.runners.hub_uploads import Hub, writable_hub
from tests.runners.test_family import KEPT, make_family
from tests.runners.test_family_folder import written

# Many calls in one process: the client looks at HF_TOKEN each time.
SEVERAL = """
import json, os, sys
from click.testing import CliRunner
from boomspec.commands.cli import main
answers = []
for arguments, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({} if token is None else {"HF_TOKEN": token})
    done = CliRunner().invoke(main, ["export", *arguments])
    answers.append([done.exit_code, done.stdout, done.stderr])
print(json.dumps(answers))
"""
CARD = "---\nlicense: apache-2.0\nbase_model: someone/base\n---\n# A family\n"


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A family in one folder, as `boomspec export --family` writes it."""
    folder = tmp_path_factory.mktemp("pushed")
    made = make_family(folder, "llama tied")
    (written(folder, made.lineage) / "README.md").write_text(CARD)
    return folder / "family"


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    with writable_hub(tmp_path / "hub") as hub:
        yield hub


def environment(hub: Hub, token: str | None) -> dict[str, str]:
    """Without hf_xet, whose own server is no HTTP that a test could speak."""
    home = {"HF_HOME": str(hub.folder / "home"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    inherited = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    offline = {"HF_HUB_OFFLINE": "0", "CUDA_VISIBLE_DEVICES": ""}
    return inherited | home | offline | ({} if token is None else {"HF_TOKEN": token})


def push(hub: Hub, *arguments: object, token: str | None = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boomspec.commands.cli", "export", *map(str, arguments)]
    own = environment(hub, hub.token if token == "" else token)
    done = subprocess.run(command, capture_output=True, text=True, env=own, stdin=subprocess.DEVNULL)
    assert hub.token not in done.stdout + done.stderr
    return done


def test_it_shows_first_and_uploads_when_it_is_told_to_and_goes_on_where_it_stopped(family, hub, tmp_path):
    shown = push(hub, family, "--push", "me/family")
    assert shown.returncode == 0, shown.stderr
    for text in ("me/family, private; it will be created", "apache-2.0 (of the base model someone/base)"):
        assert text in shown.stdout
    assert f"boomspec export {family} --push me/family --yes" in shown.stdout
    assert not hub.private  # nothing was done
    assert not hub.asked("POST")

    hub.refuse = 1  # of two shards
    cut_off = push(hub, family, "--push", "me/family", "--yes")
    assert cut_off.returncode == 2
    assert wording("export.upload_has_stopped") in cut_off.stderr
    assert f"boomspec export {family} --push me/family --yes" in cut_off.stderr
    assert "Traceback" not in cut_off.stderr
    hub.refuse = None
    sent = len(hub.asked("PUT"))
    done = push(hub, family, "--push", "me/family", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["uploaded"], answer["public"]) == (f"{hub.endpoint}/me/family", False)
    assert len(hub.asked("PUT")) == sent + 1  # the other shard alone
    assert hub.private == {"me/family": True}
    there = {path.relative_to(hub.folder / "me/family") for path in (hub.folder / "me/family").rglob("*")}
    assert there == {path.relative_to(family) for path in family.rglob("*")}
    assert sorted(file["path"] for file in answer["files"]) == sorted(str(p) for p in there if (family / p).is_file())

    # A machine that has nothing but the name of the repository; the student needs one of the two shards.
    hub.log.clear()
    program = "import boomspec, torch; m = boomspec.family('me/family').model('student')"
    program += f"; torch.save({{k: v.clone() for k, v in m.state_dict().items()}}, {str(tmp_path / 'student.pt')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment(hub, hub.token), capture_output=True)
    fetched = {line.rsplit("/", 1)[1] for line in hub.asked("GET") if "/shards/" in line}
    assert fetched == {"student-00001-of-00001.safetensors"}
    assert sum(".layers." in name for name in torch.load(tmp_path / "student.pt")) == 9 * len(KEPT)


@pytest.mark.parametrize(("answer", "uploaded"), [("n", False), ("y", True)])
def test_a_person_at_a_terminal_is_asked(family, hub, answer, uploaded):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "boomspec.commands.cli", "export", family, "--push", "lab/asked", "--public"]
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(command, capture_output=True, text=True, env=environment(hub, hub.token), stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Upload? [y/N]" in done.stdout
    assert hub.private == ({"lab/asked": False} if uploaded else {})


def test_what_is_wrong_is_said_in_one_line_before_anything_is_sent(family, hub):
    hub.private["me/open"] = False
    hub.private["me/closed"] = True
    refused = {
        "no name": (["--push", "family"], hub.token, wording("export.no_name_of_a_repository")),
        "no token": (["--push", "me/family"], None, wording("export.no_token")),
        "a wrong token": (["--push", "me/family"], "hf_wrong", wording("export.hub_does_not_accept")),
        "someone else's": (["--push", "google/family"], hub.token, wording("export.cannot_write_for")),
        "a public one": (["--push", "me/open", "--yes"], hub.token, wording("export.exists_and_is_public")),
        "another form": (["--push", "me/family", "--gguf", "q8_0"], hub.token, wording("export.uploaded_as_it_is")),
    }
    calls = [([str(family), *arguments], token) for arguments, token, _ in refused.values()]
    calls += [([str(family), "--push", "me/closed", "--public"], hub.token)]
    calls += [([str(family), "--push", "lab/new", "--public", "--json"], hub.token)]
    command = [sys.executable, "-c", SEVERAL, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(hub, None))
    assert hub.token not in done.stdout
    *answers, closed, new = json.loads(done.stdout)
    for (what, (_, _, message)), (code, _, stderr) in zip(refused.items(), answers, strict=True):
        assert code == 2, what
        error, hint = stderr.strip().splitlines()
        assert message in error, what
        assert hint.startswith("  hint: "), what
    assert not hub.asked("POST")
    assert (closed[0], new[0]) == (0, 0)
    assert wording("export.public_makes_none") in closed[1]
    assert (json.loads(new[1])["public"], json.loads(new[1])["uploaded"]) == (True, None)

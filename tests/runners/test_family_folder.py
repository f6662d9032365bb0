"""A family in one folder: each size is the model that its own folder would hold, and reads no more than it needs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.sizes import Lineage
from boomspec.models.checkpoint import read_header
from boomspec.models.family_file import FamilyFile, named_by, size_folders
from runners.assembly import family_folder
from runners.assembly.family_folder import write_family
from runners.modeling.family import Family
from runners.modeling.family_folder import open_family_folder
from tests.messages import wording
from tests.runners.test_family import KEPT, LAYERS, MIXED, logits, make_family

KINDS = ("llama tied", "gemma3", "gpt2")


def written(folder: Path, lineage: Lineage) -> Path:
    description = FamilyFile(
        name="grown", model_type="any", family=lineage.to_json(), counts={"t": LAYERS, "s": len(KEPT)}, sizes=()
    )
    sources = {"t": folder / "teacher", "s": folder / "student"}
    write_family(sources, size_folders(lineage), folder / "family", description, fitted={})
    return folder / "family"


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory) -> tuple[Path, Family]:
    """A folder, written in shards of a layer or two, and the family that it was made of."""
    folder = tmp_path_factory.mktemp("shared")
    made = make_family(folder, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_folder, "SHARD_BYTES", 20_000)
        written(folder, made.lineage)
    return folder / "family", made


def sizes(made: Family) -> list[str]:
    return [f"{member.layers} layers" for member in made.sizes]


def test_every_size_has_the_logits_of_the_family_in_memory_bit_for_bit(both):
    folder, made = both
    read = open_family_folder(folder)
    for size in (*sizes(made), "student", MIXED):  # MIXED is none of its sizes
        assert torch.equal(logits(read.model(size)), logits(made.model(size)))
    assert torch.equal(logits(read.teacher), logits(made.teacher))
    assert read.sizes == made.sizes
    assert read.model("5 layers").generation_config.to_dict() == made.model("5 layers").generation_config.to_dict()


def test_transformers_alone_loads_a_size_with_the_names_beside_it(both):
    folder, made = both
    for name, member in size_folders(made.lineage).items():
        names = json.loads((folder / name / "key_mapping.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(folder, subfolder=name, key_mapping=names)
        assert torch.equal(logits(model.eval()), logits(made.model(list(map(str, member.plan)))))


def test_a_size_opens_the_files_that_it_needs_and_shares_their_memory(both, tmp_path):
    folder, made = both
    shards = {size.folder: set(size.shards) for size in open_family_folder(folder).weights.file.sizes}
    assert len({shard for own in shards.values() for shard in own}) > 4
    copied = shutil.copytree(folder, tmp_path / "copied")
    for shard in (copied / "shards").iterdir():
        if f"shards/{shard.name}" not in shards["5-layers"]:
            shard.unlink()
    read = open_family_folder(copied)  # what other sizes need is gone
    assert torch.equal(logits(read.model("5 layers")), logits(made.model("5 layers")))
    with pytest.raises(BoomspecError, match=wording("export.shard_not_there")):
        read.model("teacher")
    one, other = (open_family_folder(folder) for _ in range(2))
    models = one.model("5 layers"), one.model("6 layers"), other.model("5 layers")
    first, second, third = ({p.data_ptr() for p in model.parameters()} for model in models)
    assert first & second
    assert not first & third
    with torch.no_grad():
        for parameter in models[0].parameters():  # the files stay as they are
            parameter.zero_()
    assert torch.equal(logits(open_family_folder(folder).model("5 layers")), logits(made.model("5 layers")))


def test_each_tensor_is_stored_once(both):
    folder, made = both
    stored = sum(entry.bytes for shard in (folder / "shards").iterdir() for entry in read_header(shard))
    models = {id(p): p.nbytes for model in (made.teacher, made.student) for p in model.parameters()}
    assert stored == sum(models.values())
    assert sum(member.bytes for member in made.sizes) > 0
    rules = json.loads((folder / "5-layers" / "key_mapping.json").read_text())
    index = json.loads((folder / "5-layers" / "model.safetensors.index.json").read_text())
    names = {named_by(rules, name) for name in index["weight_map"]}
    assert len(names) == len(index["weight_map"])
    assert len(rules) < len(names) / 2  # one for a layer
    assert set(made.model("5 layers").state_dict()) >= names


def test_a_folder_that_is_no_family_is_an_error_that_says_what_to_do(both, tmp_path):
    with pytest.raises(BoomspecError, match=wording("export.no_family_file")) as found:
        open_family_folder(tmp_path)
    assert "boomspec export" in str(found.value.hint)
    (tmp_path / "family.json").write_text('{"boomspec_family": 7}')
    with pytest.raises(BoomspecError, match="version 7"):
        open_family_folder(tmp_path)
    (tmp_path / "family.json").write_text('{"boomspec_family": 1}')
    with pytest.raises(BoomspecError, match=wording("export.not_a_family")):
        open_family_folder(tmp_path)
    assert open_family_folder(both[0], dtype="bfloat16").model("5 layers").dtype == torch.bfloat16


def test_a_model_with_code_of_its_own_is_refused(tmp_path):
    made = make_family(tmp_path, "llama")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BoomspecError, match=wording("export.code_of_its_own")):
        written(tmp_path, made.lineage)
    assert not (tmp_path / "family").exists()

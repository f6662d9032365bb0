"""Facts read from headers equal those of the real transformers model, for families that never heard of each other."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Architecture
from boomspec.models.checkpoint import read_checkpoint
from boomspec.models.facts import llama_facts, read_facts, total_bytes, total_parameters
from tests.messages import wording

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
    "olmo2": {},
    "smollm3": {},
    "granite": {},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3},
    "gpt_neox": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
}


def save(folder, family: str, **fields) -> torch.nn.Module:
    allowed = {k: v for k, v in COMMON.items() if not (family == "gpt2" and k in ("num_key_value_heads", "head_dim"))}
    config = AutoConfig.for_model(family, **{**allowed, **FAMILIES[family], **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_and_counts_are_those_of_the_real_model(tmp_path, family, tied):
    model = save(tmp_path, family, tie_word_embeddings=tied)
    facts = read_facts(tmp_path)
    assert facts.count == 3
    assert facts.tied is tied
    tensors = facts.tensors(range(3), tied=tied)
    assert total_parameters(tensors) == sum(p.numel() for p in model.parameters())
    assert total_bytes(tensors) == 4 * total_parameters(tensors)
    assert facts.token_embedding.shape == (96, 32)
    names = {name for name, parameter in model.named_parameters() if parameter.shape == (32,)}
    assert {tensor.name for tensor in facts.norm} <= names
    assert [tensor.name for tensor in facts.head] == ([] if tied else [facts.head[0].name])


def test_a_pretrained_architecture_has_the_tensors_of_the_real_one(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    for tied in (True, False):
        sizes = {"hidden_size": 24, "intermediate_size": 40}
        architecture = Architecture(
            layers=3,
            attention_heads=4,
            key_value_heads=2,
            vocabulary=300,
            context=32,
            tied=tied,
            initializer_range=0.02,
            **sizes,
        )
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 300}
        LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)).save_pretrained(tmp_path)
        real = {name: entry.shape for name, entry in read_checkpoint(tmp_path).items()}
        facts = llama_facts(architecture)
        assert {t.name: t.shape for t in facts.tensors(range(3), tied=tied)} == real


def test_an_untied_model_made_from_a_tied_one_counts_its_head(tmp_path):
    save(tmp_path, "llama", tie_word_embeddings=True)
    facts = read_facts(tmp_path)
    more = total_parameters(facts.tensors([0], tied=False)) - total_parameters(facts.tensors([0], tied=True))
    assert more == 96 * 32


@pytest.mark.parametrize(
    ("family", "buffer"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_masks_and_frequencies_that_old_checkpoints_store_are_no_parameters(tmp_path, family, buffer):
    model = save(tmp_path, family)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {buffer: torch.ones(8)}, tmp_path / "model.safetensors")
    facts = read_facts(tmp_path)
    assert total_parameters(facts.tensors(range(3), tied=facts.tied)) == sum(p.numel() for p in model.parameters())


def rewrite(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_a_decoder_says_what_was_looked_for(tmp_path):
    with pytest.raises(BoomspecError, match=r"is empty"):
        read_facts(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BoomspecError, match=wording("facts.no_model_safetensors_no")):
        read_facts(tmp_path)
    save(tmp_path, "llama")
    rewrite(tmp_path, num_hidden_layers=5)
    with pytest.raises(BoomspecError, match=wording("facts.says_layers_checkpoint_holds")):
        read_facts(tmp_path)


def rewrite_header(path, edit) -> None:
    """Change a safetensors file's header and leave the tensors' bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def shift(header, by: int) -> None:
    """Let one tensor begin `by` bytes later than it does."""
    entry = header["model.norm.weight"]
    entry["data_offsets"] = [n + by for n in entry["data_offsets"]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        (
            lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
            wording("facts.truncated_not_safetensors_file"),
        ),
        (lambda path: path.write_bytes(b""), wording("facts.truncated_not_safetensors_file")),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), wording("facts.bytes_belong_no_tensor")),
        (lambda path: path.write_bytes(path.read_bytes()[:8] + b"x" + path.read_bytes()[9:]), "not JSON"),
        (lambda path: rewrite_header(path, lambda h: h["model.norm.weight"].update(dtype="F99")), "unknown dtype F99"),
        (lambda path: rewrite_header(path, lambda h: h["model.norm.weight"].update(shape=[-32])), "negative length"),
        (lambda path: rewrite_header(path, lambda h: h["model.norm.weight"].update(shape=[31])), "its shape needs 124"),
        (lambda path: rewrite_header(path, lambda h: h["model.norm.weight"].pop("shape")), "malformed header entry"),
        (lambda path: rewrite_header(path, lambda h: shift(h, -8)), wording("facts.overlaps_one_before")),
        (lambda path: rewrite_header(path, lambda h: h.pop("model.norm.weight")), "corrupted"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage, message):
    save(tmp_path, "llama")
    damage(tmp_path / "model.safetensors")
    with pytest.raises(BoomspecError, match=rf"model\.safetensors.*{message}"):
        read_facts(tmp_path)


def test_shards_that_contradict_their_index_are_named(tmp_path):
    save(tmp_path, "llama").save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink()
    assert read_facts(tmp_path).count == 3
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())

    def refused(match: str, **changed: str) -> None:
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], **changed}}))
        with pytest.raises(BoomspecError, match=match):
            read_facts(tmp_path)

    first, *_, last = sorted(set(index["weight_map"].values()))
    misplaced = next(name for name, shard in index["weight_map"].items() if shard == first)
    refused(f"'{misplaced}' is not in the shard '{last}'", **{misplaced: last})
    refused("'model.more' is not in the shard", **{"model.more": first})
    refused("'../x' of the index is no file of this folder", **{"model.more": "../x"})
    refused("not a checkpoint index", **{"model.more": 3})
    path.write_text(json.dumps(index))
    (tmp_path / last).unlink()
    with pytest.raises(BoomspecError, match=wording("facts.shard_index_missing", last=last)):
        read_facts(tmp_path)
    (tmp_path / last).write_bytes((tmp_path / first).read_bytes())
    with pytest.raises(BoomspecError, match=wording("facts.two_shards")):
        read_facts(tmp_path)


def test_a_position_table_as_long_as_the_vocabulary_is_not_taken_for_the_embedding(tmp_path):
    save(tmp_path, "gpt2", max_position_embeddings=96, n_positions=96, tie_word_embeddings=True)
    assert read_facts(tmp_path).token_embedding.name == "transformer.wte.weight"

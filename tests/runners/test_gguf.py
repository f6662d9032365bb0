"""GGUF files: read back by transformers, the model has the same logits and the tokenizer the same tokens."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from boomspec.core.errors import BoomspecError
from boomspec.models.facts import read_config, read_facts
from runners.assembly.assemble import assemble
from runners.assembly.gguf_file import ARCHITECTURES, About, FileType, write_gguf
from runners.assembly.gguf_vocabulary import vocabulary_of
from runners.modeling.foreign_code import tokenizer_of
from tests.messages import wording
from tests.runners import tiny
from tests.runners.test_family import MIXED

VOCABULARY = 400
TEXTS = ["Hello world, it's 2024!", "  two  spaces\n\nand lines", "naïve café ½ 漢字 🙂", "let's we'Ve 12345 x_y"] * 5
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}"
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
# What transformers does not read from a GGUF file is what its config classes have by themselves.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 5e5}}),
    "llama with wide heads": ("llama", {**GROUPED, "head_dim": 24, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 128, "tie_word_embeddings": True}),
    "starcoder2": ("starcoder2", {**GROUPED, "tie_word_embeddings": True, "sliding_window": None}),
    "gpt2": ("gpt2", {"vocab_size": VOCABULARY, "n_embd": 64, "n_head": 4, "max_position_embeddings": 1024}),
}
SPLIT = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(kind: str = "gpt-2", *, bos: bool = False, **model: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = BYTES
    if kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])
    elif kind != "gpt-2":
        split = pre_tokenizers.Split(Regex(SPLIT.get(kind, kind)), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<think>"])
    if bos:
        pieces = {"single": "<|im_start|> $A", "special_tokens": [("<|im_start|>", 1)]}
        tokenizer.post_processor = processors.TemplateProcessing(**pieces)
    names = {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


def sentencepiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # As in SentencePiece every token is made by the merges whose two parts it has, in the order of the tokens.
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    made = sorted((i, token) for token, i in vocab.items() if len(token) > 1 and token not in special)
    content["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for _, token in made
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


def saved(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Path:
    name, fields = KINDS[kind]
    tiny.model(name, layers=4, **{**fields, **more}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def converted(folder: Path, kind: FileType = "f32") -> tuple[Path, list[str]]:
    facts, file = read_facts(folder), folder / f"model-{kind}.gguf"
    made = [(entry, entry) for entry in facts.tensors(range(facts.count), tied=facts.tied)]
    words, about = vocabulary_of(tokenizer_of(folder), folder), About("grown 4 layers", 123_456, "someone/base", "mit")
    return file, write_gguf(made, read_config(folder), words, file, about=about, kind=kind)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(2 * 33).reshape(2, 33) * 7 % VOCABULARY).logits


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_logits_back(kind, tokenizer, tmp_path):
    folder = saved(tmp_path, kind, tokenizer)
    file, notes = converted(folder)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(read), logits(model))
    assert read.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert [note for note in notes if "NFC" not in note] == []  # transformers gives Qwen2 a normaliser of its own
    assert fields(file)["general.base_model.0.organization"] == "someone"


def test_every_family_that_is_known_is_tried_here():
    assert {name for name, _ in KINDS.values()} == set(ARCHITECTURES)


def test_a_size_between_student_and_teacher_is_written_untied(tokenizer, tmp_path):
    saved(tmp_path / "teacher", "llama with wide heads", tokenizer)
    saved(tmp_path / "student", "llama with wide heads", tokenizer, seed=1)
    sources = {"t": tmp_path / "teacher", "s": tmp_path / "student"}
    assemble(sources, MIXED[:1] + MIXED[1:3], tmp_path / "size", tied=False)
    tokenizer.save_pretrained(tmp_path / "size")
    file, _ = converted(tmp_path / "size")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "size", gguf_file=file.name, dtype=torch.float32)
    assert torch.equal(logits(read), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "size")))
    assert "output.weight" in {tensor.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize(("kind", "error"), [("f16", 2e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_other_types_are_close_and_keep_vectors_whole(kind, error, tokenizer, tmp_path):
    folder = saved(tmp_path, "llama", tokenizer)
    file, _ = converted(folder, kind)
    reader = gguf.GGUFReader(file)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["output_norm.weight"] == types["blk.0.attn_norm.weight"] == "F32"
    assert types["token_embd.weight"] == types["blk.3.ffn_down.weight"] == kind.upper()
    weights = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    values = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    back = torch.from_numpy(gguf.quants.dequantize(values.data, values.tensor_type))
    expected = weights["model.layers.0.mlp.up_proj.weight"].detach()
    assert 0 < (back - expected).abs().max() <= error * expected.abs().max()
    assert fields(file)["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7}[kind]


def test_a_row_that_q8_0_cannot_hold_is_f16_and_a_weight_that_f16_cannot_hold_is_an_error(tokenizer, tmp_path):
    folder = saved(tmp_path, "llama", tokenizer, intermediate_size=80)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(converted(folder, "q8_0")[0]).tensors}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(folder)
    with pytest.raises(BoomspecError, match=wording("export.too_large_for_f16")):
        converted(folder, "f16")


def test_the_file_says_what_llama_cpp_needs(tokenizer, tmp_path):
    found = fields(converted(saved(tmp_path, "llama", tokenizer))[0])
    expected = {
        "general.architecture": "llama",
        "general.name": "grown 4 layers",
        "general.license": "mit",
        "general.size_label": "123K",
        "llama.block_count": 4,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 5e5,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    kinds, tokens = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.tokens"]
    assert len(kinds) == len(tokens) == VOCABULARY
    vocabulary = tokenizer.get_vocab()
    control, own, unused = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED
    assert [kinds[0], kinds[1], kinds[vocabulary["<think>"]], kinds[-1]] == [control, control, own, unused]
    assert all(tokens[i] == token for token, i in vocabulary.items())


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2", "sentencepiece"])
def test_transformers_reads_the_same_tokens_back(kind, tmp_path):
    bos = kind != "gpt-2"
    own = sentencepiece() if kind == "sentencepiece" else byte_level(kind, bos=bos, ignore_merges=kind == "llama-bpe")
    file, _ = converted(saved(tmp_path, "llama", own))
    (tmp_path / "alone").mkdir()
    file = file.rename(tmp_path / "alone" / file.name)
    read = AutoTokenizer.from_pretrained(tmp_path / "alone", gguf_file=file.name)
    texts = [*TEXTS[:4], "<think>a<|im_start|>b"]
    if kind == "sentencepiece":  # to a text that begins with a space transformers adds none when it reads GGUF
        texts = [text for text in TEXTS[:4] if not text.startswith(" ")]
    assert [read.encode(t, add_special_tokens=False) for t in texts] == [
        own.encode(t, add_special_tokens=False) for t in texts
    ]
    found = fields(file)
    assert found["tokenizer.ggml.pre"] == ("default" if kind == "sentencepiece" else kind)
    assert found["tokenizer.ggml.add_bos_token"] == bos
    assert (read.bos_token_id, read.eos_token_id) == (own.bos_token_id, own.eos_token_id)
    assert read.chat_template == own.chat_template


def test_how_text_is_split_is_recognised_by_its_rule_and_nothing_else_is_written(tmp_path):
    assert vocabulary_of(byte_level("smollm"), tmp_path).pre == "smollm"
    assert vocabulary_of(byte_level("llama-bpe", ignore_merges=False), tmp_path).pre == "dbrx"
    composed = byte_level("qwen2")
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    assert "NFC" in vocabulary_of(composed, tmp_path).notes[0]
    for wrong in (byte_level(r"\w+|\W"), byte_level("qwen2", ignore_merges=True)):
        with pytest.raises(BoomspecError, match=wording("export.unknown_split")):
            vocabulary_of(wrong, tmp_path)
    lower = byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(BoomspecError, match="Lowercase"):
        vocabulary_of(lower, tmp_path)
    with pytest.raises(BoomspecError, match="WordLevel"):
        vocabulary_of(AutoTokenizer.from_pretrained(tiny.token_artifact(tmp_path / "t") / "tokenizer"), tmp_path)


def test_scaled_rotary_embeddings_of_llama3_are_divided_as_transformers_divides_them(tokenizer, tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    folder = saved(tmp_path, "llama", tokenizer, rope_parameters=scaled)
    [factors] = [t.data for t in gguf.GGUFReader(converted(folder)[0]).tensors if t.name == "rope_freqs.weight"]
    config = AutoModelForCausalLM.from_pretrained(folder).config
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    torch.testing.assert_close(plain / torch.tensor(factors), frequencies.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "use_sliding_window is True",
        ),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
    ],
)
def test_what_llama_cpp_takes_for_granted_is_checked(kind, more, message, tokenizer, tmp_path):
    folder = saved(tmp_path, kind, tokenizer, **more)
    with pytest.raises(BoomspecError, match=message):
        converted(folder)
    assert not list(folder.glob("*.gguf"))


def test_a_sliding_window_limits_the_context_and_says_so(tokenizer, tmp_path):
    file, notes = converted(saved(tmp_path, "mistral", tokenizer, sliding_window=32))
    assert fields(file)["llama.context_length"] == 32
    assert wording("export.its_context") in notes[0]

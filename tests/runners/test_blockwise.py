"""Blockwise distillation of tiny models: states, each block against a plain loop, memory, resuming, joining."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from boomspec.core.losses import LOSSES, Losses
from boomspec.core.tasks import BlockStates, DistillBlock, JoinBlocks
from runners.blockwise import layer as lone
from runners.blockwise import states as stored
from runners.blockwise import streamed, train
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import EMBEDDING, capture, decoder_layers, trunk
from runners.runtime.context import Context
from runners.tasks import block_states, distill_block, join_blocks
from runners.training.loop import learning_rate
from tests.runners import tiny
from tests.runners.test_distill import teacher_artifact

KEPT = (0, 1, 3, 5)  # blocks 0 | 1 2 | 3 4 | 5
NMSE = Losses(hidden_nmse=LOSSES["hidden_nmse"](embedding=False, final_norm=False))
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "gpt2": {},
    # Layers of a sliding window among layers that see all; the window is shorter than the sequence.
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 3},
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.token_artifact(tmp_path_factory.mktemp("tokens") / "artifact")


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_artifact(tmp_path_factory.mktemp(request.param), family=request.param, **FAMILIES[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_artifact(tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def states_record(layer: int, begin: int | None = None, **fields: Any) -> BlockStates:
    plain = {"seed": 0, "sequences": 48, "sequence_length": 16, "precision": "fp32"}
    return BlockStates(layer=layer, begin=begin, **plain | fields)


def states(folder: Path, record: BlockStates, **inputs: Path) -> Path:
    """The artifact of `record`."""
    context = tiny.context(folder, record, **inputs)
    block_states.run(context)
    return context.path


def chain(folder: Path, teacher: Path, tokens: Path, *boundaries: int, **fields: Any) -> dict[int, Path]:
    """The artifacts of these boundaries, each computed from the one before it."""
    found: dict[int, Path] = {}
    begin = None
    for layer in boundaries:
        before = {} if begin is None else {"states": found[begin]}
        record = states_record(layer, begin, **fields)
        found[layer] = states(folder / str(layer), record, teacher=teacher, tokens=tokens, **before)
        begin = layer
    return found


def block_record(first: int, end: int, **fields: Any) -> DistillBlock:
    recipe = tiny.recipe(**fields.pop("recipe", {}))
    return DistillBlock(**{"first": first, "end": end, "stored": True, "losses": NMSE, "recipe": recipe} | fields)


def block(folder: Path, record: DistillBlock, *, resume: Path | None = None, **inputs: Path) -> Context[Any]:
    context = tiny.context(folder, record, resume=resume, **inputs)
    distill_block.run(context)
    return context


def trained(context: Context[Any]) -> dict[str, Tensor]:
    return decoder_layers(load(context.path / "model"))[0].state_dict()


@torch.no_grad()
def states_of(model: Any, tokens_BT: Tensor, layer: int) -> Tensor:
    """What layer `layer` reads, in the whole model; what the last layer gives, where there is none."""
    point = EMBEDDING if layer == 0 else layer - 1
    with capture(model, [point]) as found:
        trunk(model, tokens_BT)
    return found[point]


def windows(tokens: Path, count: int = 48) -> Tensor:
    batch = TokenStream(tokens).batch(0, sequences=count, sequence_length=16, seed=0)
    return torch.from_numpy(batch[:, :-1])


def test_stored_states_are_those_of_the_whole_teacher(tmp_path: Path, teacher: Path, tokens: Path) -> None:
    whole = load(teacher / "model")
    for layer, folder in chain(tmp_path, teacher, tokens, 0, 1, 3, 6).items():
        found = stored.StoredStates(folder).rows(range(48))
        torch.testing.assert_close(found, states_of(whole, windows(tokens), layer), rtol=0, atol=1e-5)


def assert_same_layer(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.isclose(found[name], value, rtol=0, atol=2e-5)
        if name.endswith("c_attn.bias"):  # that of keys has no effect: its gradient is rounding, scaled up by AdamW
            same[16:32] = True
        assert same.all(), name


def plain_loop(model: Any, tokens: Path, record: DistillBlock) -> dict[str, Tensor]:
    """The layer trained by a loop that is written out, in the whole model, from whole batches."""
    recipe, stream = record.recipe, TokenStream(tokens)
    layer = decoder_layers(model)[record.first]
    parameters = list(layer.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    teacher = load(Path(model.name_or_path))
    for step in range(recipe.steps):
        batch = stream.batch(step, sequences=recipe.sequences, sequence_length=16, seed=recipe.seed)
        inputs_BT = torch.from_numpy(batch[:, :-1])
        target_BTD = states_of(teacher, inputs_BT, record.end)
        optimizer.zero_grad()
        # The layers below are the teacher's, so the layer reads the teacher's state.
        with capture(model, [record.first]) as found:
            trunk(model, inputs_BT)
        difference_BTD = found[record.first] - target_BTD
        loss = (difference_BTD.square().sum(-1) / target_BTD.square().sum(-1)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
    return layer.state_dict()


@pytest.mark.parametrize(("first", "end"), [(0, 2), (1, 3), (3, 6)])
def test_a_block_is_what_a_plain_loop_over_the_whole_model_gives(
    tmp_path: Path, teacher: Path, tokens: Path, first: int, end: int
) -> None:
    around = chain(tmp_path, teacher, tokens, first, end)
    record = block_record(first, end)
    found = trained(block(tmp_path, record, teacher=teacher, tokens=tokens, states=around[first], targets=around[end]))
    whole = load(teacher / "model").requires_grad_(False)
    decoder_layers(whole)[first].requires_grad_(True)
    before = {name: value.clone() for name, value in decoder_layers(whole)[first].state_dict().items()}
    wanted = plain_loop(whole, tokens, record)
    assert_same_layer(found, wanted)
    assert any(not torch.equal(wanted[name], before[name]) for name in wanted)
    # The same, with no state stored.
    again = block(tmp_path / "streamed", block_record(first, end, stored=False), teacher=teacher, tokens=tokens)
    assert_same_layer(trained(again), wanted)


def test_text_that_is_read_again_has_its_states_stored_once(tmp_path: Path, llama: Path, tokens: Path) -> None:
    """124 windows; 24 steps of 8 read some of them twice, in another order."""
    length = {"recipe": {"steps": 24}}
    around = chain(tmp_path, llama, tokens, 1, 3, sequences=24 * 8)
    assert stored.StoredStates(around[1]).meta["rows"] == TokenStream(tokens).windows(16) < 24 * 8
    one = block(
        tmp_path, block_record(1, 3, **length), teacher=llama, tokens=tokens, states=around[1], targets=around[3]
    )
    other = block(tmp_path / "streamed", block_record(1, 3, stored=False, **length), teacher=llama, tokens=tokens)
    assert_same_layer(trained(one), trained(other))


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_block_that_is_killed_goes_on_to_the_same_bits(
    tmp_path: Path, llama: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    around = chain(tmp_path, llama, tokens, 1, 3)
    inputs = {"teacher": llama, "tokens": tokens}
    inputs |= {"states": around[1], "targets": around[3]} if is_stored else {}
    monkeypatch.setattr(streamed, "STREAMED_STATES", 1)  # each step by itself, so that a chunk begins in between
    record = block_record(1, 3, stored=is_stored)
    whole = block(tmp_path / "whole", record, **inputs)
    interrupted = tiny.context(tmp_path / "killed", record, resume=tmp_path / "resume", **inputs)
    update = interrupted.progress.update

    def stop(done: float, total: float, **more: Any) -> None:
        update(done, total, **more)
        if done >= total / 2:
            raise KeyboardInterrupt

    interrupted.progress.update = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        distill_block.run(interrupted)
    resumed = block(tmp_path / "resumed", record, resume=tmp_path / "resume", **inputs)
    assert any("continues after step" in note for note in tiny.notes(resumed))
    for file in ("model/model.safetensors", "metrics.jsonl"):
        assert (resumed.path / file).read_bytes() == (whole.path / file).read_bytes()


def stopping(save: Callable[[Any, Path], None], after: int) -> Callable[[Any, Path], None]:
    saved: list[Path] = []

    def stop(tensors: Any, path: Path) -> None:
        if len(saved) == after:
            raise KeyboardInterrupt
        save(tensors, path)
        saved.append(path)

    return stop


def counting(run: Callable[..., Tensor], computed: list[int]) -> Callable[..., Tensor]:
    def count(self: lone.LoneLayer, hidden_BTD: Tensor, *given: object) -> Tensor:
        computed.append(len(hidden_BTD))
        return run(self, hidden_BTD, *given)

    return count


def test_states_that_are_killed_go_on_to_the_same_bits(
    tmp_path: Path, llama: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "STATES_SHARD", 16 * 16 * 4 * 10)  # ten windows a file
    whole = states(tmp_path / "whole", states_record(3), teacher=llama, tokens=tokens)
    assert len(list(whole.glob("*.safetensors"))) == 5
    # Five files of embeddings, then of each layer: what is done is not done again.
    for after, left in {2: 3 * 48, 7: 3 * 48 - 20, 13: 2 * 48 - 30}.items():
        killed = tiny.context(
            tmp_path / f"killed {after}", states_record(3), resume=tmp_path / f"resume {after}",
            teacher=llama, tokens=tokens,
        )  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(stored, "save_file", stopping(stored.save_file, after))
            with pytest.raises(KeyboardInterrupt):
                block_states.run(killed)
        again = tiny.context(
            tmp_path / f"again {after}", states_record(3), resume=killed.resume, teacher=llama, tokens=tokens
        )
        computed: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(lone.LoneLayer, "__call__", counting(lone.LoneLayer.__call__, computed))
            block_states.run(again)
        assert sum(computed) == left
        for file in whole.glob("*.safetensors"):
            assert (again.path / file.name).read_bytes() == file.read_bytes()


def alive() -> int:
    """Elements of all parameters that are in memory."""
    gc.collect()
    return sum(o.numel() for o in gc.get_objects() if type(o) is nn.Parameter and o.device.type != "meta")


class Tensors:
    """How many elements of parameters there are at most, when a model has been loaded, and which layers were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.layers = 0, set[int]()
        write = lone.write_checkpoints

        def counting(load: Callable[..., Any]) -> Callable[..., Any]:
            def loaded(*arguments: Any, **named: Any) -> Any:
                model = load(*arguments, **named)
                self.most = max(self.most, alive() - before)
                return model

            return loaded

        def written(made: Any) -> None:
            names = [source.name for tensors in made.values() for _, source in tensors]
            self.layers |= {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}
            write(made)

        before = alive()
        monkeypatch.setattr(lone, "load_frozen", counting(lone.load_frozen))
        monkeypatch.setattr(train, "load", counting(train.load))
        monkeypatch.setattr(lone, "write_checkpoints", written)


def test_no_other_layer_and_no_head_is_ever_in_memory(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", vocab_size=5000, tie_word_embeddings=False)
    model = load(teacher / "model")
    layer = sum(p.numel() for p in decoder_layers(model)[0].parameters())
    rest = (8 + 8 + 1) * 16  # rows of embedding and head, the final norm
    embedding = model.get_input_embeddings().weight.numel()
    del model
    counted = Tensors(monkeypatch)
    around = chain(tmp_path, teacher, tokens, 1, 3)
    assert counted.layers == {0, 1, 2}
    assert counted.most <= embedding + layer + 16  # not the head, which is as large
    counted = Tensors(monkeypatch)
    chain_end = states(tmp_path / "on", states_record(5, 3), teacher=teacher, tokens=tokens, states=around[3])
    assert counted.layers == {3, 4}
    assert counted.most == layer + rest
    counted = Tensors(monkeypatch)
    block(tmp_path, block_record(3, 5), teacher=teacher, tokens=tokens, states=around[3], targets=chain_end)
    assert counted.layers == {3}
    assert counted.most == layer + rest
    counted = Tensors(monkeypatch)
    block(tmp_path / "streamed", block_record(1, 3, stored=False), teacher=teacher, tokens=tokens)
    assert counted.layers == {0, 1, 2}
    assert counted.most <= embedding + 2 * layer + rest + 16  # its own layer, and one of the teacher's or the embedding


def test_the_joined_student_is_the_trained_layers_and_the_teachers_rest(
    tmp_path: Path, teacher: Path, tokens: Path
) -> None:
    around = chain(tmp_path, teacher, tokens, 1, 3, 5)
    blocks = {
        first: block(
            tmp_path / f"block {first}", block_record(first, end),
            teacher=teacher, tokens=tokens, states=around[first], targets=around[end],
        )
        for first, end in ((1, 3), (3, 5))
    }  # fmt: skip
    inputs = {"block 1": blocks[1].path, "block 2": blocks[3].path}
    context = tiny.context(tmp_path / "joined", JoinBlocks(kept=KEPT), teacher=teacher, **inputs)
    join_blocks.run(context)
    student, whole = load(context.path / "model"), load(teacher / "model")
    expected = [decoder_layers(whole)[0], *(blocks[i] for i in (1, 3)), decoder_layers(whole)[5]]
    for own, wanted in zip(decoder_layers(student), expected, strict=True):
        values = wanted.state_dict() if isinstance(wanted, nn.Module) else trained(wanted)
        for name, value in own.state_dict().items():
            assert torch.equal(value, values[name]), name
    assert torch.equal(student.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    assert torch.equal(student.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    if hasattr(whole.config, "layer_types"):
        assert student.config.layer_types == [whole.config.layer_types[i] for i in KEPT]
    rows = [[json.loads(line) for line in (b.path / "metrics.jsonl").read_text().splitlines()] for b in blocks.values()]
    mean = [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in mean] == [(a["loss"] + b["loss"]) / 2 for a, b in zip(*rows, strict=True)]
    table = json.loads((context.path / "blocks.json").read_text())["blocks"]
    assert [entry["layers"] for entry in table] == [[1, 2], [3, 4]]
    assert all(entry["after"]["loss"] < entry["before"]["loss"] for entry in table)


def test_a_block_may_begin_at_random(tmp_path: Path, llama: Path, tokens: Path) -> None:
    record = block_record(1, 3, initial="random", stored=False, recipe={"steps": 1, "optimizer": {"lr": 1e-9}})
    one = trained(block(tmp_path, record, teacher=llama, tokens=tokens))
    own = decoder_layers(load(llama / "model"))[1].state_dict()
    matrices = [name for name, value in own.items() if value.ndim == 2]
    assert all((one[name] - own[name]).abs().max() > 1e-3 for name in matrices)

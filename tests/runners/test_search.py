"""Searches on tiny real models, against plain implementations that build and run every candidate."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import ORDERS, LayerPlan, plan_of, prefixes, read_layers, teacher_layers
from boomspec.core.tasks import Calibration, LayerChoice, PatchOrder, Search
from runners.assembly.assemble import assemble
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import LMHead, decoder_layers
from runners.modeling.layerwise import Batch, take_apart
from runners.modeling.models import load_frozen
from runners.modeling.shared_forward import SharedForward
from runners.search import patch_order
from runners.search.layer_choice import search_layer_choice
from runners.search.patch_order import Divergence, search_patch_order
from runners.tasks import search
from tests.messages import wording
from tests.runners import tiny

LAYERS, KEPT = 9, (0, 2, 4, 5, 7)  # blocks 0 1 | 2 3 | 4 | 5 6 | 7 8
PATCHABLE = (0, 1, 3, 4)
CALIBRATION = Calibration(sequences=5, sequence_length=12, seed=3)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama tied": {"family": "llama", "tie_word_embeddings": True},
    "llama untied": {"family": "llama", "tie_word_embeddings": False},
    "gemma3_text": {
        "family": "gemma3_text",
        "tie_word_embeddings": True,
        "sliding_window": 4,
        "layer_types": ["full_attention" if i % 3 == 1 else "sliding_attention" for i in range(LAYERS)],
    },
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.token_artifact(tmp_path_factory.mktemp("tokens") / "artifact")


@pytest.fixture(scope="module")
def batches(tokens: Path) -> list[Tensor]:
    c = CALIBRATION
    windows = TokenStream(tokens).batch(0, sequences=c.sequences, sequence_length=c.sequence_length, seed=c.seed)
    return list(torch.from_numpy(windows[:, :-1]).split(2))


def make_pair(folder: Path, **fields: Any) -> dict[str, Path]:
    """A random teacher, and a student assembled from it whose every weight is then moved."""
    tied = fields["tie_word_embeddings"]
    tiny.model(layers=LAYERS, seed=5, **fields).save_pretrained(folder / "teacher" / "model")
    sources = {"t": folder / "teacher" / "model", "s": folder / "student" / "model"}
    assemble({"t": sources["t"]}, teacher_layers(KEPT), sources["s"], tied=tied)
    student = AutoModelForCausalLM.from_pretrained(sources["s"])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    student.save_pretrained(sources["s"])
    return sources


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"), **FAMILIES["llama tied"])


def models(sources: dict[str, Path]) -> dict[str, PreTrainedModel]:
    names = {"t": "teacher", "s": "student"}
    return {names[owner]: load_frozen(folder, dtype=torch.float32) for owner, folder in sources.items()}


def choice(**fields: Any) -> PatchOrder:
    plain = {"method": "klpatch", "kept": KEPT, "direction": "teacher_to_candidate"}
    return PatchOrder(**plain | {"positions": "all", "reduction": "token_mean"} | fields)


def plain_values(sources: dict[str, Path], batches: list[Tensor], folder: Path) -> dict[tuple[int, ...], float]:
    """KL(teacher || candidate) of every set of blocks: each candidate is written to disk, loaded and run."""
    tokens_BT = torch.cat(batches)
    values = {}
    with torch.no_grad():
        teacher = AutoModelForCausalLM.from_pretrained(sources["t"])
        expected_BTV = teacher(tokens_BT).logits.double().log_softmax(-1)
        for size in range(len(PATCHABLE)):
            for blocks in combinations(PATCHABLE, size):
                plan = plan_of(KEPT, LAYERS, [i in blocks for i in range(len(KEPT))])
                tied = teacher.config.tie_word_embeddings and plan[0].owner == plan[-1].owner
                target = folder / "-".join(map(str, blocks))
                assemble(sources, plan, target, tied=tied)
                actual_BTV = AutoModelForCausalLM.from_pretrained(target)(tokens_BT).logits.double().log_softmax(-1)
                values[blocks] = float((expected_BTV.exp() * (expected_BTV - actual_BTV)).sum(-1).mean())
    return values | {PATCHABLE: 0.0}


def greedy(values: dict[tuple[int, ...], float]) -> list[list[int]]:
    sets: list[list[int]] = [[]]
    for _ in PATCHABLE:
        left = [b for b in PATCHABLE if b not in sets[-1]]
        sets.append([*sets[-1], min(left, key=lambda b: values[tuple(sorted([*sets[-1], b]))])])
    return sets


@pytest.mark.parametrize("family", FAMILIES)
def test_klpatch_and_exact_equal_building_every_candidate(tmp_path: Path, batches: list[Tensor], family: str) -> None:
    sources = make_pair(tmp_path, **FAMILIES[family])
    plain = plain_values(sources, batches, tmp_path / "candidates")
    found = search_patch_order(choice(), **models(sources), batches=batches)
    assert found["sets"] == greedy(plain)
    assert found["values"] == pytest.approx([plain[tuple(sorted(blocks))] for blocks in found["sets"]], abs=1e-5)
    assert len(found["candidates"]) == 1 + 4 * 5 // 2
    for candidate in found["candidates"]:
        assert candidate["value"] == pytest.approx(plain[tuple(candidate["patched"])], abs=1e-5)
    assert min(plain.values()) == 0.0
    assert sorted(plain.values())[1] > 1e-3  # far above the tolerance

    exact = search_patch_order(choice(method="exact"), **models(sources), batches=batches)
    assert len(exact["candidates"]) == 2 ** len(PATCHABLE)
    for size, (blocks, value) in enumerate(zip(exact["sets"], exact["values"], strict=True)):
        assert tuple(sorted(blocks)) == min(combinations(PATCHABLE, size), key=lambda b: plain[b])
        assert value == pytest.approx(plain[tuple(sorted(blocks))], abs=1e-5)
        assert value <= found["values"][size] + 1e-7


def test_a_beam_of_one_is_greedy_and_a_wide_one_is_exact(pair: dict[str, Path], batches: list[Tensor]) -> None:
    loaded = models(pair)
    found = {
        name: search_patch_order(choice(**fields), **loaded, batches=batches)
        for name, fields in {
            "greedy": {"method": "klpatch"},
            "one": {"method": "beam", "width": 1},
            "wide": {"method": "beam", "width": 6},  # as many sets as any size has
            "exact": {"method": "exact"},
        }.items()
    }
    assert found["one"] == found["greedy"]
    assert found["wide"]["sets"] == found["exact"]["sets"]
    assert found["wide"]["values"] == pytest.approx(found["exact"]["values"], abs=1e-7)


def test_the_batch_size_changes_neither_choice_nor_count(pair: dict[str, Path], batches: list[Tensor]) -> None:
    loaded = models(pair)
    small = search_patch_order(choice(), **loaded, batches=batches)
    large = search_patch_order(choice(), **loaded, batches=[torch.cat(batches)])
    assert large["values"] == pytest.approx(small["values"], abs=1e-6)
    for key in ("sets", "layer_forwards", "layer_forwards_unshared"):
        assert large[key] == small[key]


def test_layers_are_counted_as_the_tree_of_plans_has_them(pair: dict[str, Path], batches: list[Tensor]) -> None:
    found = search_patch_order(choice(method="exact"), **models(pair), batches=batches)
    subsets = [blocks for size in range(4) for blocks in combinations(PATCHABLE, size)]
    plans = [plan_of(KEPT, LAYERS, [i in blocks for i in range(len(KEPT))]) for blocks in subsets]
    tree = {plan[:length] for plan in plans for length in range(1, len(plan) + 1)}
    assert found["layer_forwards"] == LAYERS + len(tree)  # the teacher's own forward, then the tree
    assert found["layer_forwards_unshared"] == LAYERS + sum(map(len, plans)) + LAYERS
    assert found["layer_forwards"] < found["layer_forwards_unshared"] / 2


def test_candidates_begin_with_states_of_the_round_before(pair: dict[str, Path], batches: list[Tensor]) -> None:
    loaded = models(pair)
    found = search_patch_order(choice(), **loaded, batches=batches)
    # Each round anew, with nothing kept from the one before.
    alone, order = LAYERS, found["sets"][-1]
    for size in range(len(order) - 1):
        rounds = [[*order[:size], b] for b in PATCHABLE if b not in order[:size]] + ([[]] if size == 0 else [])
        plans = [plan_of(KEPT, LAYERS, [i in blocks for i in range(len(KEPT))]) for blocks in rounds]
        alone += len({plan[:length] for plan in plans for length in range(1, len(plan) + 1)})
    assert found["layer_forwards"] < alone < found["layer_forwards_unshared"]


@pytest.mark.parametrize("cache_bytes", [0, 3 * 5 * 12 * 16 * 4, 2**20], ids=["nothing", "three states", "all"])
def test_what_is_kept_between_runs_changes_the_work_but_no_state(
    monkeypatch: pytest.MonkeyPatch, pair: dict[str, Path], batches: list[Tensor], cache_bytes: int
) -> None:
    loaded = models(pair)
    monkeypatch.setattr("runners.modeling.shared_forward.HELD_STATES", cache_bytes)
    forward = SharedForward({"t": loaded["teacher"], "s": loaded["student"]}, batches)
    plans = [plan_of(KEPT, LAYERS, [bool(i & 1 << b) for b in range(5)]) for i in (0, 5, 20, 31)]
    longer = [(*plan[:4], *read_layers("s4 t8")) for plan in plans]

    def states(of: list[LayerPlan], **keep: Any) -> dict[tuple[int, LayerPlan], Tensor]:
        seen = {}
        forward.run(of, lambda number, plan, hidden_BTD: seen.update({(number, plan): hidden_BTD}), **keep)
        return seen

    states(plans, keep=[plan[:4] for plan in plans])
    before = forward.layer_forwards
    shared = states(longer)
    held = min(cache_bytes // (5 * 12 * 16 * 4), 4)
    assert forward.layer_forwards - before == len({p[:n] for p in longer for n in range(1, 7)}) - saved(longer, held)
    for plan in longer:
        anew = SharedForward({"t": loaded["teacher"], "s": loaded["student"]}, batches)
        anew.run([plan], lambda n, p, hidden_BTD: torch.testing.assert_close(hidden_BTD, shared[n, p]))
        assert anew.layer_forwards == anew.unshared == 6


def saved(plans: list[LayerPlan], held: int) -> int:
    """Layers in front of the first four that only plans with a kept state run through."""
    computed = {plan[:length] for plan in plans[held:] for length in range(1, 5)}
    return len({plan[:length] for plan in plans for length in range(1, 5)} - computed)


@pytest.mark.parametrize("direction", ["teacher_to_candidate", "candidate_to_teacher"])
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_max"])
def test_the_students_value_is_the_kl_by_definition(
    pair: dict[str, Path], batches: list[Tensor], direction: str, positions: str, reduction: str
) -> None:
    loaded = models(pair)
    asked = choice(direction=direction, positions=positions, reduction=reduction)
    found = search_patch_order(asked, **loaded, batches=batches)
    distributions = []
    for model in (loaded["teacher"], loaded["student"]):
        logits_BTV = model(torch.cat(batches)).logits.double()
        distributions.append((logits_BTV if positions == "all" else logits_BTV[:, -1:]).softmax(-1))
    p_BTV, q_BTV = distributions if direction == "teacher_to_candidate" else reversed(distributions)
    kl_BT = (p_BTV * (p_BTV / q_BTV).log()).sum(-1)
    expected = kl_BT.mean() if reduction == "token_mean" else kl_BT.amax(1).mean()
    assert found["values"][0] == pytest.approx(float(expected), abs=1e-6)
    assert found["values"][-1] == 0.0


def test_holding_the_teachers_states_gives_what_holding_its_distributions_gives(
    monkeypatch: pytest.MonkeyPatch, pair: dict[str, Path], batches: list[Tensor]
) -> None:
    head = LMHead(models(pair)["teacher"])
    hidden = [torch.randn(len(tokens_BT), 12, 16) for tokens_BT in batches]
    values = []
    for held_bytes in (0, 2**20):
        monkeypatch.setattr(patch_order, "HELD_LOGITS", held_bytes)
        monkeypatch.setattr(patch_order, "SEARCHED_LOGITS", 5 * tiny.VOCABULARY)  # chunks of five positions
        kl = Divergence(head, hidden, choice())
        values.append(kl.mean([kl.of_sequences(i, head, h + 0.1) for i, h in enumerate(hidden)]))
        assert kl.mean([kl.of_sequences(i, head, h) for i, h in enumerate(hidden)]) == pytest.approx(0.0, abs=1e-9)
    assert values[0] == values[1] > 1e-4


def test_equal_candidates_go_by_the_lower_block(tmp_path: Path, batches: list[Tensor]) -> None:
    sources = make_pair(tmp_path, **FAMILIES["llama tied"])
    loaded = models(sources)
    with torch.no_grad():  # layers that add nothing, one embedding: every candidate is the teacher
        for model in loaded.values():
            for layer in decoder_layers(model):
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.get_input_embeddings().weight.copy_(loaded["teacher"].get_input_embeddings().weight)
            model.model.norm.weight.fill_(1.0)
    for method in ("klpatch", "exact"):
        found = search_patch_order(choice(method=method), **loaded, batches=batches)
        assert found["sets"] == [[], [0], [0, 1], [0, 1, 3], [0, 1, 3, 4]]


def test_an_exact_search_over_thirteen_blocks_is_refused(batches: list[Tensor]) -> None:
    teacher, student = tiny.model(layers=26), tiny.model(layers=13)
    asked = choice(method="exact", kept=tuple(range(0, 26, 2)))
    with pytest.raises(BoomspecError, match=wording("search.blocks_candidates_up_blocks")):
        search_patch_order(asked, teacher=teacher, student=student, batches=batches)


def test_models_that_do_not_fit_are_refused(batches: list[Tensor]) -> None:
    teacher = tiny.model(layers=LAYERS)
    with pytest.raises(BoomspecError, match=wording("search.student_layers_but_kept")):
        search_patch_order(choice(), teacher=teacher, student=tiny.model(layers=4), batches=batches)
    with pytest.raises(BoomspecError, match=wording("search.llama_qwen_model")):
        search_patch_order(choice(), teacher=teacher, student=tiny.model("qwen3", layers=5), batches=batches)
    student = tiny.model(layers=5, vocab_size=80)
    with pytest.raises(BoomspecError, match=wording("existing_students.embeddings_differ_shape")):
        search_patch_order(choice(), teacher=teacher, student=student, batches=batches)


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gpt_neox", "opt", "gemma2", "qwen3", "mixtral", "smollm3", "phi3"]
)
def test_layers_run_one_by_one_are_the_model(family: str, batches: list[Tensor]) -> None:
    model = tiny.model(family)
    parts = take_apart(model, batches[0])
    with torch.no_grad():
        expected_BTV = model(batches[1]).logits
        batch = Batch(parts, batches[1])
        hidden_BTD = batch.embedding_BTD
        for i in range(4):
            hidden_BTD = batch.layer(i, hidden_BTD)
        torch.testing.assert_close(parts.head(batch.finish(hidden_BTD)), expected_BTV)
        torch.testing.assert_close(model(batches[1]).logits, expected_BTV)  # nothing hollow is left


def test_a_model_whose_layers_share_more_than_the_hidden_state_is_refused(batches: list[Tensor]) -> None:
    model = tiny.model()
    left: dict[str, Tensor] = {}
    first, second = decoder_layers(model)[:2]
    first.register_forward_hook(lambda _m, _i, output: left.update(state=output))
    second.register_forward_hook(lambda _m, _i, output: output + left["state"])
    with pytest.raises(BoomspecError, match=wording("search.llama_decoder_layers_run")):
        take_apart(model, batches[0])


def test_block_influence_is_one_minus_the_cosine_of_raw_input_and_output(batches: list[Tensor]) -> None:
    teacher = tiny.model(layers=6, seed=2).requires_grad_(False)
    raw: list[Tensor] = []
    decoder_layers(teacher)[-1].register_forward_hook(lambda _m, _i, output: raw.append(output))
    hidden = list(teacher(torch.cat(batches), output_hidden_states=True).hidden_states)
    assert not torch.allclose(hidden[-1], raw[-1])  # transformers' last state is after the final norm
    hidden[-1] = raw[-1]
    expected = [float(1 - torch.cosine_similarity(one, other, dim=-1).mean()) for one, other in pairwise(hidden)]
    found = search_layer_choice(LayerChoice(method="block_influence", count=3), teacher=teacher, batches=batches)
    assert found["scores"] == pytest.approx(expected, abs=1e-6)
    best = sorted(range(1, 6), key=lambda layer: -expected[layer])[:2]
    assert found["kept"] == sorted([0, *best])


def test_layer_0_is_kept_even_when_it_does_least(batches: list[Tensor]) -> None:
    teacher = tiny.model(layers=4)
    with torch.no_grad():
        decoder_layers(teacher)[0].self_attn.o_proj.weight.zero_()
        decoder_layers(teacher)[0].mlp.down_proj.weight.zero_()
    for method in ("block_influence", "cosine_greedy"):
        found = search_layer_choice(LayerChoice(method=method, count=2), teacher=teacher, batches=batches)
        assert found["kept"][0] == 0
        assert len(found["kept"]) == 2
    with pytest.raises(BoomspecError, match=wording("search.layers_cannot_kept_teacher")):
        search_layer_choice(LayerChoice(method="cosine_greedy", count=5), teacher=teacher, batches=batches)


def test_cosine_greedy_drops_what_plain_pruning_says(tmp_path: Path, batches: list[Tensor]) -> None:
    fields = FAMILIES["gemma3_text"]
    source = tmp_path / "teacher"
    tiny.model(layers=LAYERS, seed=5, **fields).save_pretrained(source)
    teacher = load_frozen(source, dtype=torch.float32)
    found = search_layer_choice(LayerChoice(method="cosine_greedy", count=6), teacher=teacher, batches=batches)

    tokens_BT = torch.cat(batches)
    whole_BTD = teacher.model(tokens_BT).last_hidden_state
    left, dropped = list(range(LAYERS)), []
    for _ in range(3):
        values = {}
        for layer in left[1:]:
            plan = teacher_layers(i for i in left if i != layer)
            target = tmp_path / "-".join(map(str, plan))
            assemble({"t": source}, plan, target, tied=True)
            hidden_BTD = load_frozen(target, dtype=torch.float32).model(tokens_BT).last_hidden_state
            values[layer] = float(torch.cosine_similarity(hidden_BTD, whole_BTD, dim=-1).mean())
        layer = max(values, key=lambda layer: values[layer])
        left.remove(layer)
        dropped.append({"layer": layer, "similarity": pytest.approx(values[layer], abs=1e-5)})
    assert found == {"kept": left, "dropped": dropped}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_task_writes_search_json_and_reports_candidates(
    tmp_path: Path, pair: dict[str, Path], tokens: Path, precision: str
) -> None:
    record = Search(choice=choice(), calibration=CALIBRATION, precision=precision)
    context = tiny.context(tmp_path, record, teacher=pair["t"].parent, student=pair["s"].parent, tokens=tokens)
    search.run(context)
    found = json.loads((context.path / "search.json").read_text())
    counts = ["layer_forwards", "layer_forwards_unshared"]
    assert list(found) == ["sets", "values", "candidates", *counts, "sequential"]
    for name, order in ORDERS.items():
        values = found["sequential"][name]
        assert len(values) == 5
        for k, blocks in enumerate(prefixes(order(list(PATCHABLE)))):
            same = [c["value"] for c in found["candidates"] if c["patched"] == sorted(blocks)]
            assert all(value == pytest.approx(values[k], abs=1e-6) for value in same)
    assert [len(blocks) for blocks in found["sets"]] == [0, 1, 2, 3, 4]
    updates = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert updates[-1]["done"] == updates[-1]["total"] == 11
    assert updates[0]["unit"] == "candidates"

    record = Search(choice=LayerChoice(method="block_influence", count=4), calibration=CALIBRATION, precision=precision)
    context = tiny.context(tmp_path / "layers", record, teacher=pair["t"].parent, tokens=tokens)
    search.run(context)
    found = json.loads((context.path / "search.json").read_text())
    assert len(found["kept"]) == 4
    assert len(found["scores"]) == LAYERS


def test_calibration_text_that_is_too_short_is_an_error(tmp_path: Path, pair: dict[str, Path]) -> None:
    tokens = tiny.token_artifact(tmp_path / "tokens", train=100)
    record = Search(choice=choice(), calibration=CALIBRATION.model_copy(update={"sequences": 9}), precision="fp32")
    context = tiny.context(tmp_path, record, teacher=pair["t"].parent, student=pair["s"].parent, tokens=tokens)
    with pytest.raises(BoomspecError, match=wording("search.calibration_sequences_tokens_asked")):
        search.run(context)

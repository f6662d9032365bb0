"""Answers of many models at once, against each model run by itself on one request after the other, and lm-eval's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, read_layers
from runners.assembly.assemble import assemble
from runners.evaluation.members import WHOLE, LayerPlans, WholeModel
from runners.evaluation.questions import Answer, Question, Request, Rows, answers_of, questions
from runners.modeling.models import load_frozen
from tests.runners import tiny

POSITIONS = 40
PLANS = tuple(map(read_layers, ("t0 t1 t2 t3", "s0 s1", "t0 t1 s1", "s0 t2 t3", "t0 t2 t3")))
SHARING: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neox": {},
    "opt": {},
}


def asked(vocabulary: int, *, seed: int = 0) -> list[Request]:
    """Four answers to each of six contexts, of 1 to 5 tokens each, and one request that is asked twice."""
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(draw.randint(least, most)))

    contexts = [tokens(2, 30) for _ in range(6)]
    requests = [Request(context, tokens(1, 5)) for context in contexts for _ in range(4)]
    return [*requests, requests[3]]


@torch.no_grad()
def plainly(model: PreTrainedModel, request: Request) -> Answer:
    ids = torch.tensor([*request.context, *request.answer])[-(POSITIONS + 1) :]
    labels = ids[-len(request.answer) :]
    log_p = model(input_ids=ids[None, :-1], use_cache=False).logits[0, -len(labels) :].log_softmax(-1)
    return Answer(float(log_p.gather(1, labels[:, None]).sum()), bool((log_p.argmax(-1) == labels).all()))


def pair(family: str, folder: Path, **fields: Any) -> dict[Any, Path]:
    """A random teacher of four layers and a student of two, as folders."""
    for owner, layers in ((TEACHER, 4), (STUDENT, 2)):
        kinds = {"layer_types": fields["layer_types"][:layers]} if "layer_types" in fields else {}
        model = tiny.model(family, layers=layers, seed=layers, **{**fields, **kinds})
        with torch.no_grad():  # so that no two tokens are equally likely
            for parameter in (parameter for parameter in model.parameters() if parameter.dim() > 1):
                parameter.normal_(std=0.2)
        model.save_pretrained(folder / owner)
    return {owner: folder / owner for owner in (TEACHER, STUDENT)}


def close(found: list[Answer], expected: list[Answer]) -> None:
    assert [one.greedy for one in found] == [one.greedy for one in expected]
    assert [one.log_likelihood for one in found] == pytest.approx([one.log_likelihood for one in expected], abs=1e-4)


@pytest.mark.parametrize("family", SHARING)
def test_every_member_answers_as_its_folder_does(family: str, tmp_path: Path) -> None:
    folders = pair(family, tmp_path, **SHARING[family])
    members = LayerPlans({owner: load_frozen(path, dtype=torch.float32) for owner, path in folders.items()}, PLANS)
    requests = asked(tiny.VOCABULARY)
    found = answers_of(members, requests, positions=POSITIONS, tokens_at_once=100)
    for number, plan in enumerate(PLANS):
        assemble(folders, plan, tmp_path / str(number), tied=False)
        model = load_frozen(tmp_path / str(number), dtype=torch.float32)
        close(found[plan], [plainly(model, request) for request in requests])


def test_a_members_answers_do_not_depend_on_the_others(tmp_path: Path) -> None:
    folders = pair("llama", tmp_path)
    models = {owner: load_frozen(path, dtype=torch.float32) for owner, path in folders.items()}
    requests = asked(tiny.VOCABULARY)

    def measured(*plans: LayerPlan) -> dict[LayerPlan, list[Answer]]:
        return answers_of(LayerPlans(models, plans), requests, positions=POSITIONS, tokens_at_once=100)

    together = measured(*PLANS)
    assert together == {plan: measured(plan)[plan] for plan in PLANS}
    alone = answers_of(WholeModel(models[TEACHER]), requests, positions=POSITIONS, tokens_at_once=100)
    assert alone[WHOLE] == together[PLANS[0]]


def test_a_model_that_takes_no_mask_answers_one_by_one(tmp_path: Path) -> None:
    model = tiny.model("bloom").eval()
    requests = asked(tiny.VOCABULARY)
    found = answers_of(WholeModel(model), requests, positions=POSITIONS, tokens_at_once=100)[WHOLE]
    close(found, [plainly(model, request) for request in requests])


def test_the_answers_are_those_of_lm_evals_own_model(tmp_path: Path) -> None:
    model = tiny.model("llama").eval()
    requests = asked(tiny.VOCABULARY)
    tokenizer = tiny.token_artifact(tmp_path / "tokens") / "tokenizer"
    lm = HFLM(pretrained=model, tokenizer=str(tokenizer), batch_size=4, max_length=POSITIONS)
    found = answers_of(WholeModel(model), requests, positions=POSITIONS, tokens_at_once=100)[WHOLE]
    theirs = lm._loglikelihood_tokens(
        [(None, list(context), list(answer)) for context, answer in requests], disable_tqdm=True
    )
    close(found, [Answer(*answer) for answer in theirs])


def test_answers_to_one_context_share_its_row() -> None:
    requests = [Request((1, 2, 3), (4, 5)), Request((1, 2, 3), (6,)), Request((7,), (8,)), Request((1, 2, 3), (4, 5))]
    together = questions(requests, positions=POSITIONS, share=True)
    assert together == [
        Question((1, 2, 3), ((4, 5), (6,)), ((0, 3), (1,))),
        Question((7,), ((8,),), ((2,),)),
    ]
    rows = Rows.of(together, share=True)
    assert rows.tokens_BT.tolist() == [[1, 2, 3, 4], [7, 0, 0, 0]]
    assert rows.positions_BT.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert rows.columns_N.tolist() == [2, 3, 2, 0]
    assert rows.labels_N.tolist() == [4, 5, 6, 8]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    context, answer = tuple(range(50)), (50, 51)
    (cut,) = questions([Request(context, answer)], positions=10, share=True)
    assert cut.context == tuple(range(41, 50))
    assert cut.length(True) == 10


def test_no_row_is_longer_than_what_a_model_reads() -> None:
    requests = [Request((1, 2, 3), (number, 4, 5, 6)) for number in range(30)]
    made = questions(requests, positions=POSITIONS, share=True)
    assert max(question.length(True) for question in made) <= POSITIONS
    assert sorted(number for question in made for (number,) in question.requests) == list(range(30))
    assert len(made) == 3  # of twelve answers each, of which three tokens are read, and the rest

"""Text that one model writes behind prompts: against plain decoding, token by token, whatever rows are beside it."""

import copy
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer

from boomspec.core.tasks import Generation, Thinking
from runners.api.writing import tokens_of
from runners.modeling.generation import PresencePenalty, RepetitionPenalty, numbers_of, padded, seed_of, write
from runners.modeling.sampling import draw
from tests.runners import tiny

PROMPTS = [[5, 6, 7], [9], [5, 6, 7, 8, 9, 10, 11], [40, 41]]
PLACES = [("quiz", number, 0) for number in range(len(PROMPTS))]
SAMPLED = Generation(temperature=0.8, top_p=0.9, top_k=20, min_p=0.01, max_tokens=12)


@pytest.fixture(scope="module")
def model():
    return tiny.model(layers=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder: Path = tiny.token_artifact(tmp_path_factory.mktemp("tokens") / "t", train=8, held_out=8)
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def one_by_one(model, prompt: list[int], settings: Generation, place: tuple) -> list[int]:
    """The plain loop: no padding, no cache, no processors of transformers."""
    numbers_1N, tokens = numbers_of(settings, 0, [place]), list(prompt)
    for step in range(settings.max_tokens):
        logits_V = model(torch.tensor([tokens])).logits[0, -1].float()
        known, new = set(tokens), set(tokens[len(prompt) :])
        for v in range(len(logits_V)):
            if v in known and (penalty := settings.repetition_penalty):
                logits_V[v] = logits_V[v] / penalty if logits_V[v] > 0 else logits_V[v] * penalty
            logits_V[v] -= (settings.presence_penalty or 0) * (v in new)
        token = int(logits_V.argmax()) if numbers_1N is None else drawn(logits_V, settings, numbers_1N[:, step])
        if token == 0:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def drawn(logits_V: Tensor, settings: Generation, number_1: Tensor) -> int:
    order = logits_V.argsort(descending=True)
    p = (logits_V / settings.temperature).softmax(-1)[order]
    kept = torch.arange(len(p)) < (settings.top_k or len(p))
    p = p * kept / (p * kept).sum()
    kept &= p.cumsum(0) - p < (settings.top_p or 1)
    p = p * kept / (p * kept).sum()
    kept &= p >= (settings.min_p or 0) * p.max()
    p = torch.where(kept, p, 0.0) / torch.where(kept, p, 0.0).sum()
    return int(draw(torch.zeros_like(p).scatter(0, order, p)[None], number_1)[0])


@pytest.mark.parametrize(
    "settings",
    [
        Generation(max_tokens=12),
        SAMPLED,
        Generation(temperature=1.3, presence_penalty=1.5, repetition_penalty=1.2, max_tokens=12),
        Generation(presence_penalty=2.0, max_tokens=12),
    ],
    ids=["greedy", "cut", "penalties", "greedy with a penalty"],
)
@torch.no_grad()
def test_a_text_is_that_of_the_plain_loop_whatever_rows_are_beside_it(model, tokenizer, settings: Generation) -> None:
    expected = [one_by_one(model, prompt, settings, place) for prompt, place in zip(PROMPTS, PLACES, strict=True)]
    together = write(model, tokenizer, PROMPTS, settings=settings, seed=0, places=PLACES)
    assert [list(one.tokens) for one in together] == expected
    assert [one.cut for one in together] == [len(tokens) == 12 for tokens in expected]
    last = write(model, tokenizer, PROMPTS[2:3], settings=settings, seed=0, places=PLACES[2:3])
    assert last == together[2:3]


@torch.no_grad()
def test_a_penalty_of_the_model_itself_is_none_of_a_text(model, tokenizer, monkeypatch) -> None:
    settings = Generation(max_tokens=12)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    found = write(model, tokenizer, PROMPTS, settings=settings, seed=0, places=PLACES)
    expected = [one_by_one(model, prompt, settings, place) for prompt, place in zip(PROMPTS, PLACES, strict=True)]
    assert [list(one.tokens) for one in found] == expected


def test_a_seed_and_a_place_make_other_texts(model, tokenizer) -> None:
    prompts = [PROMPTS[0]] * 3
    places = [("quiz", 0, 0), ("quiz", 0, 1), ("other", 0, 0)]
    found = {seed: write(model, tokenizer, prompts, settings=SAMPLED, seed=seed, places=places) for seed in (0, 1)}
    assert len({one.tokens for texts in found.values() for one in texts}) == 6
    assert len({seed_of(seed, place) for seed in (0, 1) for place in places}) == 6


def test_a_stop_ends_a_row_and_is_no_part_of_its_text(model, tokenizer) -> None:
    (whole,) = write(model, tokenizer, [PROMPTS[0]], settings=Generation(max_tokens=12), seed=0, places=[("q",)])
    words = whole.text.split()
    settings = Generation(max_tokens=12, stop=(f" {words[3]}",))
    stopped, other = write(model, tokenizer, PROMPTS[:2], settings=settings, seed=0, places=PLACES[:2])
    assert stopped.text.split() == words[: words.index(words[3])]
    assert not stopped.cut
    assert other.tokens != stopped.tokens


def test_frequencies_of_drawn_tokens_are_the_probabilities() -> None:
    settings = Generation(temperature=0.7, max_tokens=4000)
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0])
    numbers_N = numbers_of(settings, 3, [("quiz", 0)])[0]
    tokens_N = draw((logits_V / 0.7).softmax(-1).expand(4000, -1), numbers_N)
    shares_V = torch.bincount(tokens_N, minlength=4) / 4000
    assert torch.allclose(shares_V, (logits_V / 0.7).softmax(-1), atol=0.03)


def test_penalties_are_those_of_their_formulas() -> None:
    """Presence: OpenAI's, new tokens only. Repetition: CTRL's, of the prompt too, but not of the padding."""
    tokens_BT, mask_BP = padded([[1, 2], [3]], padding=0)
    tokens_BT = torch.cat([tokens_BT, torch.tensor([[4, 4], [5, 6]])], dim=1)
    scores_BV = torch.tensor([[1.0, -1.0, 2.0, 0.5, -0.5, 3.0, 1.0]] * 2)
    assert torch.equal(
        PresencePenalty(0.5, 2)(tokens_BT, scores_BV) - scores_BV,
        torch.tensor([[0, 0, 0, 0, -0.5, 0, 0], [0, 0, 0, 0, 0, -0.5, -0.5]]),
    )
    assert torch.equal(
        RepetitionPenalty(2.0, mask_BP)(tokens_BT, scores_BV),
        torch.tensor([[1.0, -2.0, 1.0, 0.5, -1.0, 3.0, 1.0], [1.0, -1.0, 2.0, 0.25, -0.5, 1.5, 0.5]]),
    )


def test_settings_are_merged_over_those_of_a_task() -> None:
    own = {"until": ["Q:"], "do_sample": False, "temperature": 0.0, "max_new_tokens": 100, "top_p": 0.5}
    found = Generation(temperature=0.7, max_tokens=64, stop=("A:",), top_k=20).over(own)
    assert found == {
        "until": ["A:"], "do_sample": True, "temperature": 0.7, "max_gen_toks": 64, "top_p": 0.5, "top_k": 20
    }  # fmt: skip
    greedy = Generation(temperature=0).over({**own, "do_sample": True, "temperature": 1.0})
    assert greedy == {"until": ["Q:"], "do_sample": False, "temperature": 0, "max_new_tokens": 100}
    assert Generation.of(found) == Generation(temperature=0.7, top_p=0.5, top_k=20, max_tokens=64, stop=("A:",))
    assert Generation.of({"do_sample": True, "top_k": -1}) == Generation(temperature=1.0, max_tokens=256)
    assert Generation.of(own) == Generation(temperature=0, top_p=0.5, max_tokens=100, stop=("Q:",))


@pytest.mark.parametrize(
    ("text", "prompt", "answer"),
    [
        ("<think>a</think>\n\n42", "", "42"),
        ("<think>a</think>b</think> 42", "", "42"),
        ("a</think>42", "...<think>\n", "42"),
        ("<think>a", "", None),
        ("a", "...<think>\n", None),
        ("42", "...<think>\n\n</think>\n\n", "42"),
        ("42", "", "42"),
    ],
)
def test_an_answer_is_what_follows_the_thought(text: str, prompt: str, answer: str | None) -> None:
    rule = Thinking(start="<think>", end="</think>")
    assert rule.answer(text, prompt=prompt) == answer
    assert Thinking(end="</think>").answer("42") is None


def test_a_text_goes_on_where_its_tokenizer_would_end_it(tokenizer) -> None:
    ending = copy.deepcopy(tokenizer)
    eos = tokenizer.eos_token
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    text = tokenizer.decode([9])
    assert ending(text)["input_ids"][-1] == tokenizer.eos_token_id
    assert tokens_of(ending, text, chat=None, system=None, template={}) == tokenizer(text)["input_ids"] == [9]

"""Every causal language model of the installed transformers that can be built tiny: right, or refused and why.

python -m tests.sweeps.families                        all, as a table
python -m tests.sweeps.families --only llama,qwen3     some
python -m tests.sweeps.families --golden               ... written into tests/golden/families.json, docs/models.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan, read_layers, student_layers, teacher_layers
from boomspec.core.tasks import BuiltSize
from boomspec.models.facts import LAYER_COUNTS, read_facts
from boomspec.models.fit import plan_entries
from boomspec.models.plan_config import plan_config
from runners.checking.family import try_sizes
from runners.checking.tiny import random_model, tiny

LAYERS = 8
KEPT = (0, 2, 4, 5, 7)  # blocks 0 1 | 2 3 | 4 | 5 6 | 7
PLANS = (
    "s0 s1 s2 t5 t6 s4",
    "s0 t2 t3 s2 t5 t6 t7",
    "t0 t1 t2 t3 s2 s3 s4",
    "t0 t1 t2 t3 t4",
)
SECONDS = 300  # for one family
ROOT = Path(__file__).parents[2]
GOLDEN, PAGE = ROOT / "tests" / "golden" / "families.json", ROOT / "docs" / "models.md"
START = "- Of the "  # of the paragraph that is written here

# What makes the eight layers of a family's tiny teacher those that its published models have.
FIELDS: dict[str, dict[str, object]] = {
    "afmoe": {"num_dense_layers": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 4]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 2},
    "ministral": {"head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"] * 2},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 4, "hybrid_layer_ids": [1, 3, 5, 7]},
}
LEFT_OUT = ("id2label", "label2id", "per_layer_config", "hybrid_layer_ids", "transformers_version", "model_type")


def teacher_config(model_type: str):
    """The tiny config of a family, made from its class's defaults."""
    kind = CONFIG_MAPPING[model_type]
    full = kind().to_dict()
    inner = full.get("text_config") if isinstance(full.get("text_config"), dict) else full
    count = next((key for key in (*LAYER_COUNTS, "decoder_layers", "num_decoder_layers") if key in inner), None)
    old = inner.get(count, 0) if count else 0

    def of_class(fields: dict) -> dict:
        """Without what the class makes of the number of layers."""
        kept = {k: v for k, v in fields.items() if not (isinstance(v, list) and old > 2 and len(v) == old)}
        kept = {key: value for key, value in kept.items() if key not in LEFT_OUT}
        if count in kept:
            kept[count] = LAYERS
        return kept

    fields = of_class(full)
    if inner is not full:
        fields["text_config"] = of_class(inner)
    small = {k: v for k, v in tiny({**fields, "model_type": model_type}).items() if k not in LEFT_OUT}
    return kind(**{**small, **FIELDS.get(model_type, {})})


@contextmanager
def limited(seconds: int):
    def stop(*_):
        raise TimeoutError(f"takes more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def verdict(model_type: str, folder: Path) -> dict[str, object]:
    """{"verdict": right | refused at plan | refused by the check | not built, "why": message}."""
    started = time.time()

    def result(verdict: str, why: object = "") -> dict[str, object]:
        return {"verdict": verdict, "why": str(why), "seconds": round(time.time() - started, 1)}

    try:
        with limited(SECONDS):
            random_model(teacher_config(model_type), seed=1).save_pretrained(folder / "teacher")
    except Exception as error:
        return result("not built", f"{type(error).__name__}: {one_line(error)}")
    try:
        with limited(SECONDS):
            facts = read_facts(folder / "teacher")
            sizes = [BuiltSize(plan=p, tied=is_tied(facts.tied, p)) for p in map(read_layers, PLANS)]
            plan_entries(facts, facts, student_layers(facts.count), tied=facts.tied)
            config = plan_config({"t": facts}, teacher_layers(KEPT), tied=facts.tied, base="t")
            student = replace(facts, layers=tuple(facts.layers[i] for i in KEPT), config=config)
            for size in sizes:
                plan_config({"t": facts, "s": student}, size.plan, tied=size.tied, base="t")
    except BoomspecError as error:
        return result("refused at plan", one_line(error).replace(str(folder / "teacher"), "the teacher"))
    try:
        with limited(SECONDS):
            try_sizes(folder / "teacher", KEPT, sizes, folder)
    except BoomspecError as error:
        return result("refused by the check", one_line(error).replace(str(folder), "..."))
    except Exception as error:
        if "--trace" in sys.argv:
            traceback.print_exc()
        return result("broken", f"{type(error).__name__}: {one_line(error)}")
    return result("right")


def said(found: dict[str, object]) -> str:
    """A verdict as the golden file has it: no seconds, no number that another machine would have otherwise."""
    why = re.sub(r"its logits are \S+ off", "its logits are off", str(found["why"]))
    return f"{found['verdict']}: {why}" if why else str(found["verdict"])


def paragraph(golden: dict[str, str]) -> str:
    """The families by name, as docs/models.md has them."""
    named: dict[str, list[str]] = {}
    for model_type, verdict in golden.items():
        named.setdefault(verdict.partition(":")[0], []).append(model_type)
    refused = named.get("refused at plan", []) + named.get("refused by the check", [])
    text = (
        f"- Of the {len(golden)} types of causal language models in transformers {transformers.__version__}, each "
        f"built tiny from its class's defaults with {LAYERS} layers (`make sweep`; why: `tests/golden/families.json`), "
        f"{len(named.get('right', []))} are right in every size: {_listed(named.get('right', []))}. "
        f"{len(refused)} are refused at `plan`, all sizes or those that were tried: {_listed(refused)}. "
        f"{len(named.get('not built', []))} could not be built so: {_listed(named.get('not built', []))}."
    )
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def write_golden(found: dict[str, dict[str, object]]) -> None:
    golden = {model_type: said(one) for model_type, one in found.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(START)
    PAGE.write_text(f"{text[:start]}{paragraph(golden)}\n", encoding="utf-8")  # it ends the page


def is_tied(tied: bool, plan: LayerPlan) -> bool:
    return tied and plan[0].owner == plan[-1].owner


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--golden", action="store_true", help="write what is held by tests")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    quiet()
    found: dict[str, dict[str, object]] = {}
    for model_type in options.only.split(",") if options.only else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found[model_type] = verdict(model_type, Path(folder))
        one = found[model_type]
        print(f"{model_type:28} {one['verdict']:22} {one['seconds']:5} {one['why']}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    counts: dict[str, int] = {}
    for one in found.values():
        counts[str(one["verdict"])] = counts.get(str(one["verdict"]), 0) + 1
    print(counts)
    if options.golden:
        write_golden(found)
    return 0


def quiet() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())

"""Speed and memory of assembly against `cp`: one size, and all sizes of a family at once.

    python tests/benchmarks/assembly.py [folder]

A synthetic Llama of 36 layers, bf16, 1.07 GB (random bytes), and a student of 19 layers with nine patchable blocks, so
ten sizes. Everything happens in a temporary folder inside `folder` (default: the system's), which must have 12 GB
free; sources and targets are on one file system. Both ways start with their sources in the page cache and nothing
waiting to be written, take turns, and write without fsync; `cp` copies one model of middle size, once or ten times.
Assembly runs in this process, as in a worker that has imported transformers before; how far it raises the peak of
resident memory is shown. Processor time (user and system) is shown beside wall-clock time because the latter is at the
mercy of whatever else writes to the disk.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS, KEPT = 36, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 17, 20, 23, 26, 29, 32, 35)
HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 1024, 3072, 256, 50_000
RUNS = {"one size": 7, "all sizes": 3}


def write_model(folder: Path, *, layers: int) -> None:
    """A Llama checkpoint of random bytes, in transformers' order."""
    from boomspec.models.checkpoint import encode_header

    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
    }
    shapes = {"lm_head.weight": (VOCABULARY, HIDDEN), "model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = ("BF16", shape, start, end)
    folder.mkdir()
    config = {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": VOCABULARY, "hidden_size": HIDDEN}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    noise = os.urandom(2**22 + 1)  # of odd length, so that layers differ
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(header))
        for at in range(0, end, len(noise)):
            file.write(noise[: end - at])


def assembly(folder: Path, what: str) -> dict[str, float]:
    """Assemble in this process. Returns {"seconds", "cpu", "megabytes"}."""
    from boomspec.core.layers import family_of_sets, patchable, prefixes
    from runners.assembly.assemble import assemble_family

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plans = family_of_sets(KEPT, LAYERS, prefixes(tuple(reversed(patchable(KEPT, LAYERS)))))
    chosen = plans if what == "all sizes" else [plans[len(plans) // 2]]
    sources = {"t": folder / "teacher", "s": folder / "student"}
    started, cpu = time.perf_counter(), time.process_time()
    assemble_family(sources, {folder / "out" / str(len(plan)): (plan, False) for plan in chosen})
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)  # Linux counts in KiB
    return {"seconds": seconds, "cpu": cpu, "megabytes": more / 1e6}


def copied(folder: Path, what: str) -> dict[str, float]:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for i in range(10 if what == "all sizes" else 1):
        subprocess.run(["cp", "-r", folder / "middle", folder / "out" / str(i)], check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def timed(run: Callable[[Path, str], dict[str, float]], folder: Path, what: str) -> dict[str, float]:
    out = folder / "out"
    out.mkdir()
    os.sync()
    result = run(folder, what)
    result["bytes"] = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return result | {"rate": result["bytes"] / result["seconds"]}


def compare(folder: Path, what: str) -> None:
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "cp": []}
    for _ in range(RUNS[what]):
        runs["ours"].append(timed(assembly, folder, what))
        runs["cp"].append(timed(copied, folder, what))
    rows = {
        way: {key: statistics.median(run[key] for run in of_way) for key in of_way[0]} for way, of_way in runs.items()
    }
    for way, row in rows.items():
        seconds = sorted(run["seconds"] for run in runs[way])
        print(f"  {what:9}  {way:4}  {row['bytes'] / 1e9:5.2f} GB  {row['seconds']:6.2f} s", end="")
        print(f" ({seconds[0]:.2f} to {seconds[-1]:.2f})  {row['rate'] / 1e9:5.2f} GB/s  CPU {row['cpu']:5.2f} s")
    ours, cp = rows["ours"], rows["cp"]
    by_cpu = cp["cpu"] / cp["bytes"] * ours["bytes"] / ours["cpu"]
    print(f"  {what:9}  speed {ours['rate'] / cp['rate']:.2f} of cp's ({by_cpu:.2f} by processor time)", end=", ")
    print(f"memory {max(run['megabytes'] for run in runs['ours']):.0f} MB")


def main(parent: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="boomspec-assembly-", dir=parent) as name:
        folder = Path(name)
        write_model(folder / "teacher", layers=LAYERS)
        write_model(folder / "student", layers=len(KEPT))
        (folder / "out").mkdir()
        assembly(folder, "one size")  # which imports transformers
        next((folder / "out").iterdir()).rename(folder / "middle")
        (folder / "out").rmdir()
        print(f"assembly of models of {LAYERS} and {len(KEPT)} layers, medians of", end=" ")
        print(" and ".join(f"{runs} runs ({what})" for what, runs in RUNS.items()))
        for what in RUNS:
            compare(folder, what)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1] if len(sys.argv) > 1 else None)

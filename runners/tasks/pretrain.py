"""Train a small Llama from scratch: the teacher of a spec that brings no model of its own.

Writes `model/` (fp32, with the tokenizer) and `metrics.jsonl`.
"""

import shutil
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.tasks import Architecture, Pretrain
from boomspec.models.facts import llama_config
from runners.data.tokens import TOKENIZER, TokenStream
from runners.modeling.hidden_states import LMHead, check_apart, check_head, trunk
from runners.modeling.models import MODEL, save_weights
from runners.runtime.context import Context
from runners.runtime.device import MASTER_DTYPE, deterministic_mode, device
from runners.training.compiling import check_compiler
from runners.training.head import head_loss
from runners.training.loop import train
from runners.training.losses import weights
from runners.training.moment import Moment
from runners.training.parallel import ParallelModel, is_sharded
from runners.training.process_group import process_group


def run(context: Context[Pretrain]) -> None:
    with deterministic_mode(context.record.determinism, context.progress.note):
        _pretrain(context)


def _pretrain(context: Context[Pretrain]) -> None:
    options, workers = context.training, process_group(context.resume, local_leader=context.local_leader)
    if options.compile:
        check_compiler()
    architecture, recipe = context.record.architecture, context.record.recipe
    tokens = context.inputs["tokens"].folder
    stream = TokenStream(tokens, apart=bool(recipe.isolate))
    if stream.vocabulary != architecture.vocabulary:
        message = f"the model has a vocabulary of {architecture.vocabulary}, but its tokens have {stream.vocabulary}"
        hint = "a tokenizer learned from little text can be smaller than asked for: lower the vocabulary"
        raise BoomspecError(message, hint=hint)
    model = llama(architecture, eos=stream.eos, seed=recipe.seed)
    if not is_sharded(workers, options.parallel):
        model = model.to(device())
    parallel = ParallelModel(model, workers, parallel=options.parallel)
    parallel.call(check_head, model)
    if recipe.isolate:
        parallel.call(check_apart, model)
    head, losses = LMHead(model), Losses(cross_entropy=CrossEntropy())

    def loss(inputs_BT: Tensor, labels_BT: Tensor, count: int, _moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        return head_loss(trunk(model, inputs_BT), labels_BT, head=head, losses=losses, count=count)

    batch = partial(stream.batch, sequences=recipe.sequences, sequence_length=recipe.sequence_length, seed=recipe.seed)
    train(
        model,
        recipe=recipe,
        batch=batch,
        loss=loss,
        weights=weights(losses),
        context=context,
        parallel=parallel,
        unlabelled=stream.unlabelled,
    )
    trained = parallel.gathered(lambda: llama(architecture, eos=stream.eos, seed=recipe.seed))
    if trained is not None:
        shutil.copytree(tokens / TOKENIZER, context.path / MODEL)
        save_weights(trained, context.path / MODEL, dtype=MASTER_DTYPE)


def llama(architecture: Architecture, *, eos: int, seed: int) -> LlamaForCausalLM:
    """A Llama in fp32 on the CPU whose initial weights are a function of `seed` alone."""
    # Every document of the stream begins behind an EOS.
    config = LlamaConfig(**llama_config(architecture), bos_token_id=eos, eos_token_id=eos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)

"""What each task of a graph costs, from its record and the shapes of its models.

`priced` walks the nodes in their order and knows each one's model from those before it: a student is some of its
teacher's layers, a size is layers of both. What is known of a task only after others have run, its cost says in
`unknown`; `boomspec.plan.rates` fills in what the store has by then. What does not follow from shapes is never
guessed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from boomspec.compile.cost import memory
from boomspec.compile.cost.pair_costs import pair_costs
from boomspec.compile.cost.shapes import UnknownCostError, assembled, model_of
from boomspec.core.execution import TrainingOptions
from boomspec.core.graph import Node, Source
from boomspec.core.losses import Loss, Losses
from boomspec.core.model_costs import LayerCosts, ModelCosts
from boomspec.core.tasks import Record
from boomspec.core.tasks.record import MADE, Architecture, Cost, Faithful, LayerPlanShape, Prices, Recipe
from boomspec.core.tasks.tokenize import token_bytes
from boomspec.core.work_sizes import (
    BATCH_SIZE,
    KEPT_CHECKPOINTS,
    SIMILARITY_WINDOWS,
    STATES_SHARD,
    STREAMED_STATES,
)
from boomspec.models.facts import ModelFacts, llama_facts, total_bytes
from boomspec.models.fit import other_tensors
from boomspec.spec.spec_file import Memo


def priced(nodes: dict[str, Node], sources: dict[str, Source], facts: dict[str, ModelFacts]) -> dict[str, Node]:
    """The nodes, each with its cost. `facts` are those of the sources that are models, by id."""
    models: dict[str, ModelCosts | UnknownCostError] = {}
    for source_id, of_source in facts.items():
        try:
            models[source_id] = model_of(of_source)
        except UnknownCostError as error:
            models[source_id] = error
    vocabularies = [model.vocabulary for model in models.values() if isinstance(model, ModelCosts)]
    trained = [
        learns.vocabulary for node in nodes.values() if (learns := getattr(node.task.record, "train_tokenizer", None))
    ]
    width = max(map(token_bytes, vocabularies or trained), default=4)
    rest = max((total_bytes(other_tensors(of_source)) for of_source in facts.values()), default=0)
    once = Memo()  # experiments of a sweep have many tasks that cost the same

    def cost(node: Node, known: dict[str, ModelCosts]) -> Cost:
        text = sources.get(node.task.inputs.get("text", ""))
        files = text.identity.get("files", ()) if text is not None else ()
        prices = _Prices(
            models=known,
            options=node.execution.training or TrainingOptions(),
            batch_size=node.execution.batch_size or BATCH_SIZE,
            on_gpu=node.execution.gpus > 0,
            text_bytes=sum(file["bytes"] for file in files),
            token_bytes=width,
            rest_bytes=rest,
        )
        return node.task.record.cost(prices)

    found = {}
    for task_id, node in nodes.items():
        record, inputs = node.task.record, node.task.inputs
        owned = {role: models[i] for role, i in inputs.items() if i in models}
        known = {role: model for role, model in owned.items() if isinstance(model, ModelCosts)}
        try:
            if unknown := next((model for model in owned.values() if isinstance(model, UnknownCostError)), None):
                models[task_id] = unknown
                raise unknown
            if (made := _made(record, known, once)) is not None:
                models[task_id] = known[MADE] = made
            key = "cost", inputs.get("text"), *known
            price = once(key, partial(cost, node, known), record, node.execution, *known.values())
        except UnknownCostError as error:
            price = Cost(unknown=str(error))
        found[task_id] = replace(node, cost=price)
    return found


def _made(record: Record, models: Mapping[str, ModelCosts], once: Memo) -> ModelCosts | None:
    match record.model():
        case str(role):
            return models[role]
        case Architecture() as architecture:
            return model_of(llama_facts(architecture))
        case LayerPlanShape(plan=plan, tied=tied, teacher=role):
            teacher, student = models[role], models.get("student")
            tied = teacher.tied if tied is None else tied
            return once(("made", plan, tied), partial(assembled, plan, teacher, student, tied=tied), teacher, student)
    return None


@dataclass(frozen=True)
class _Prices(Prices):
    models: dict[str, ModelCosts]

    def training(
        self,
        recipe: Recipe,
        losses: Losses,
        faithful: Faithful | None = None,
        *,
        frozen: bool = False,
        balanced: bool = False,
        teachers: Sequence[str] = ("teacher",),
    ) -> Cost:
        model, teacher, options = self.models[MADE], self.models.get("teacher"), self.options
        run = tuple(self.models[role] for role in teachers if role in self.models)
        terms, of_logits, of_labels = losses.terms().values(), losses.reading("logits"), losses.reading("labels")
        of_pairs = pair_costs(losses, model, recipe.sequence_length, on_gpu=self.on_gpu)
        teacher_logits = bool(losses.reading("teacher_logits"))
        padding = faithful is not None and faithful.padding  # how many tokens are real is known after tokenize
        # KL then takes a pass of its own through the head.
        apart = faithful is not None and faithful.kl_on_padding and of_logits.keys() != of_labels.keys()
        length, workers, again = recipe.sequence_length, options.workers, options.activation_checkpointing
        cut = options.parallel == "fsdp"
        rows = -(-recipe.sequences // workers)  # of a step on one worker
        micro_batch = min(options.micro_batch, rows)
        forward = model.forward(length)
        # Forward, backward (which computes the scores of attention again), and with checkpointing forward once more.
        each = forward + 4 * model.matrices + 10 * length * model.queries + (forward if again else 0)
        each += sum(term.flops(model.hidden) for term in terms) + of_pairs.flops
        once = (4 if model.tied and frozen else 6) * model.projection  # the head and its gradients
        labelled = once if of_labels or (of_logits and not apart) else 0  # for each token that has a label
        compared, needed = 0, model.training(length, head=bool(of_logits), frozen=frozen)
        each += once if apart and teacher is not None else 0
        of_heads = forwards = 0
        if run:
            of_heads = sum(one.head() for one in run) if teacher_logits else 0
            each += of_heads if apart else 0
            labelled += 0 if apart else of_heads
            forwards = sum(one.forward(length) for one in (run if teacher_logits else run[:1]))
            forwards = forwards if losses.reads_teacher else 0
            each += forwards
            needed += of_heads + forwards
            compared = 2 * SIMILARITY_WINDOWS * length * (forward + run[0].forward(length))  # before and after
        if balanced:  # one batch, forward
            heads = (model.head() if of_logits else 0) + (model.head() if apart and of_labels else 0) + of_heads
            compared += recipe.sequences * length * (forward + heads + forwards)
        step = memory.TrainingStep(
            tokens=micro_batch * length,
            micro_batches=-(-rows // micro_batch),
            bf16=recipe.precision == "bf16",
            on_gpu=self.on_gpu,
            frozen_embedding=frozen,
            working=_tensors_of_a_tile(of_logits.values()) + 2 * max(0, len(run) - 1) * teacher_logits,
            teacher_logits=len(run) if teacher_logits else 0,
            held=of_pairs.teacher,
            compared=of_pairs.kept,
            block=of_pairs.block,
            beside=of_pairs.parameters,
            passes=2 if apart and of_labels else 1,
            checkpointing=again,
            ddp=workers > 1 and not cut,
            shards=workers if cut else 1,
            teacher_shards=workers if options.teacher == "sharded" else 1,
        )
        parameters = model.parameters - (model.embedding if frozen else 0) + of_pairs.parameters
        # Of weights and moments in the host's memory, while a checkpoint is written. Of copies one worker writes it.
        copies = 12 * parameters // (workers if cut else 1)
        beside = {} if self.on_gpu else {"checkpoint": copies}
        if recipe.isolate:  # of which token sees which: one for all layers
            beside["attention mask"] = micro_batch * length**2 * (2 if recipe.precision == "bf16" else 4)
        return Cost(
            flops=recipe.tokens * (each + labelled) + compared,
            memory=memory.training(model, step, run) | beside,
            disk=4 * model.parameters if teacher is None else model.bytes,
            read=sum(self.models[role].bytes for role in {"teacher", "start", *teachers} if role in self.models),
            tokens=recipe.tokens,
            real_tokens=None if padding else recipe.tokens,
            flops_per_real_token=labelled if padding else 0,
            scratch=(KEPT_CHECKPOINTS + 1) * 12 * parameters,  # one more is being written
            host_memory=copies if self.on_gpu else 0,
            model_flops_per_token=needed,
        )

    def layer_training(self, recipe: Recipe, losses: Losses, *, block: range, stored: bool) -> Cost:
        teacher, length = self.models["teacher"], recipe.sequence_length
        trained, bf16 = _alone(teacher, teacher.layers[block.start]), recipe.precision == "bf16"
        width = 2 if bf16 else 4
        alone = losses.each(
            lambda term: term.model_copy(update={"embedding": False})
        )  # a block has one pair, its output
        of_pairs = pair_costs(alone, trained, length, on_gpu=self.on_gpu)
        step = memory.TrainingStep(
            tokens=(rows := min(self.options.micro_batch, recipe.sequences)) * length,
            micro_batches=-(-recipe.sequences // rows),
            bf16=bf16,
            on_gpu=self.on_gpu,
            frozen_embedding=True,
            working=0,
            held=2 * teacher.hidden,  # what it reads, and what it is to give
            compared=of_pairs.kept,
            block=of_pairs.block,
        )
        each = trained.forward(length) + 4 * trained.matrices + 10 * length * trained.queries
        each += of_pairs.flops
        held = memory.training(trained, step)
        states = recipe.tokens * teacher.hidden * width  # of one boundary
        copies, read = 12 * trained.parameters, trained.bytes + 2 * states
        if not stored:
            below = teacher.layers[: block.stop]
            each += sum(_alone(teacher, layer).forward(length) for layer in below)
            held["teacher"] = width * max(teacher.embedding, *(layer.parameters for layer in below))
            held["states"] = min(STREAMED_STATES, 2 * states)
            read = sum(layer.bytes for layer in below)
        return Cost(
            flops=recipe.tokens * each,
            memory=held | ({} if self.on_gpu else {"checkpoint": copies}),
            disk=trained.bytes,
            read=read,
            tokens=recipe.tokens,
            real_tokens=recipe.tokens,
            scratch=(KEPT_CHECKPOINTS + 1) * copies,
            host_memory=copies if self.on_gpu else 0,
        )

    def layerwise(self, layers: range, *, tokens: int, length: int, bf16: bool, from_tokens: bool) -> Cost:
        teacher, width = self.models["teacher"], 2 if bf16 else 4
        run = [_alone(teacher, teacher.layers[i]) for i in layers]
        states = tokens * teacher.hidden * width
        largest = max([layer.parameters for layer in run], default=0)
        widest = max([3 * layer.layers[0].inner for layer in run], default=0) + 2 * teacher.hidden
        return Cost(
            flops=tokens * sum(layer.forward(length) for layer in run),
            memory={
                "weights": width * max(largest, teacher.embedding if from_tokens else 0),
                "activations": min(tokens, self.batch_size * length) * widest * width,
                "states": 2 * min(states, STATES_SHARD),
            },
            disk=states,
            read=sum(layer.bytes for layer in run) + (0 if from_tokens else states),
            tokens=tokens,
            real_tokens=tokens,
            scratch=min(states, STATES_SHARD),
        )


def _alone(model: ModelCosts, layer: LayerCosts) -> ModelCosts:
    """One layer without embedding, norm and head."""
    return replace(model, layers=(layer,), embedding=0, norm=0, own_head=0, rest_bytes=0)


def _tensors_of_a_tile(terms: Collection[Loss]) -> int:
    """As large as its logits, at the largest moment. What a closed form works on stays until all gradients are added.

    Of a term whose gradient autograd takes, that gradient stays; and while it is taken, three beside what is kept.
    """
    tensors = [term.tensors() for term in terms]
    stays = sum(1 if kept else working for working, kept in tensors)
    return stays + max((max(working, kept + 3) - 1 for working, kept in tensors if kept), default=0)

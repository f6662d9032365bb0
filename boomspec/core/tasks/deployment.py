"""The kinds `texts` and `speed`: what a model writes, and how fast it is on the machine at hand."""

from boomspec.core.tasks.asking import Generation
from boomspec.core.tasks.generate import SAMPLED_BYTES
from boomspec.core.tasks.record import Cost, Determinism, Precision, Prices, Record


class Texts(Record):
    """Texts that a model writes behind prompts. Inputs: `model`, and `tokenizer` where it is not the model's own."""

    kind, version = "texts", 1
    usual_work = 5

    prompts: tuple[str, ...]
    chat: bool | None = None  # whether the tokenizer's chat template is used; None: where it has one
    system: str | None = None  # in the template, as `template` is, its variables
    template: dict[str, bool | int | float | str] | None = None
    settings: Generation
    samples: int | None = None  # for each prompt; None: one
    seed: int | None = None  # None: nothing is drawn
    precision: Precision
    determinism: Determinism | None = None

    def cost(self, prices: Prices) -> Cost:
        """At most: texts end sooner. Prompts are not counted: how many tokens they have, no tokenizer has said."""
        model, width = prices.models["model"], 2 if self.precision == "bf16" else 4
        longest = self.settings.max_tokens or 0
        written = len(self.prompts) * (self.samples or 1) * longest
        memory = {
            "weights": model.parameters * width,
            "cache": longest * model.cache_elements * width,
            "head": SAMPLED_BYTES * model.vocabulary,
        }
        flops = written * (model.forward(longest) + model.head())
        return Cost(flops=flops, memory=memory, read=model.bytes, tokens=written, real_tokens=written)

    def pace(self) -> tuple[str, ...]:
        return (self.precision,)


class Speed(Record):
    """How fast a model reads and writes, and the memory that it takes. Inputs: `model`."""

    kind, version = "speed", 1
    usual_work = 5
    repeatable = False
    exclusive = True

    prompt_tokens: int
    new_tokens: int
    batch: int
    repeats: int
    precision: Precision
    device: str | None = None  # None: whichever it runs on

    def cost(self, prices: Prices) -> Cost:
        model, width = prices.models["model"], 2 if self.precision == "bf16" else 4
        length = self.prompt_tokens + self.new_tokens
        read, runs = self.batch * length, 1 + self.repeats
        memory = model.measuring(bf16=self.precision == "bf16", tokens=self.batch * self.prompt_tokens)
        memory["cache"] = read * model.cache_elements * width
        flops = runs * (read * model.forward(length) + self.batch * self.new_tokens * model.head())
        return Cost(flops=flops, memory=memory, read=model.bytes, tokens=runs * read, real_tokens=runs * read)

    def pace(self) -> tuple[str, ...]:
        return self.precision, str(self.batch)

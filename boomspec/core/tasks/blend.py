"""The kind `blend`: several token artifacts become one of the same format."""

from boomspec.core.tasks.record import AFTER_TOKENIZE, Cost, Prices, Record


class Blend(Record):
    """Inputs: `source_0`, `source_1`, ..., of one tokenizer. Exactly one of the fields is given, in their order."""

    kind, version = "blend", 1
    reads_models = False
    usual_work = 5

    weights: tuple[int, ...] | None = None  # shares of the tokens, as the smallest whole numbers
    budgets: tuple[int, ...] | None = None  # training tokens

    def cost(self, prices: Prices) -> Cost:
        if self.budgets is None:
            return Cost(unknown=AFTER_TOKENIZE)
        size = prices.token_bytes * sum(self.budgets)
        return Cost(disk=size, read=size)

"""Render the turns that lm-eval makes of a document by the tokenizer's chat template, as lm-eval's own models do.

A template may refuse a system prompt, or leave it out. lm-eval takes it out and goes on. Here that is an error where
the spec asks for one, and a note where it is a task's own description.
"""

from typing import Any

from jinja2.exceptions import TemplateError

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import LmEval
from runners.runtime.context import Progress

_HINT = "leave evaluate.chat.system out"


class ChatPrompts:
    """For a class of lm-eval's models: its method that renders, with the variables of `measure.chat.template`."""

    measure: LmEval
    progress: Progress
    tokenizer: Any
    _told = False

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of these turns, which ends where the model's turn begins, or inside of it."""
        chat = self.measure.chat
        assert chat is not None
        if self.tokenizer.chat_template is None:
            hint = "leave evaluate.chat out, or give the tokenizer of a model that was trained on chats"
            raise BoomspecError("the tokenizer has no chat template", hint=hint)

        def rendered(turns: list[dict[str, str]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **(chat.template or {}),
            )
            return text

        try:
            text = rendered(chat_history)
        except TemplateError as error:
            described = [turn for turn in chat_history if turn["role"] == "system"]
            if chat.system is not None or not described:
                raise BoomspecError(f"the chat template refuses the turns: {error}", hint=_HINT) from error
            text = rendered([turn for turn in chat_history if turn["role"] != "system"])
            if not self._told:
                self._told = True
                self.progress.note(f"warning: the chat template refuses what the task describes: left out ({error})")
        if chat.system is not None and chat.system.strip() not in text:
            raise BoomspecError("the chat template leaves the system prompt out", hint=_HINT)
        return text

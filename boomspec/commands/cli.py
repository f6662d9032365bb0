"""The command line: a table of commands, which are imported when they are called; errors and exit codes.

Exit codes: 0 fine, 1 the run failed, 2 the spec or the call is wrong, 130 interrupted. Commands that compare (`diff`,
`verify`, `lock --check`) exit as diff(1) does: 1 where there is a difference. `plan --detailed-exitcode` has its own.
"""

import importlib
from typing import Any

import click

import boomspec
from boomspec.core.errors import EXIT_INTERRUPTED, BoomspecError, did_you_mean, print_error

_GROUPS = {  # as `boomspec --help` shows them, which loads none
    "Write a spec": {
        "init": "Write a first spec from a template.",
        "validate": "Check a spec, and show every problem at its line.",
        "show": "Show the resolved spec: every default, layers as integers.",
        "explain": "Explain a field of the spec language.",
        "graph": "Print the compiled task graph.",
        "schema": "Print the JSON Schema of the spec language.",
    },
    "Run it": {
        "plan": "Show which tasks would run, why, and what they take.",
        "lock": "Pin the commits, files and versions that a spec names.",
        "run": "Run a spec; artifacts in the store are reused.",
        "report": "Write the report of the results in the store.",
        "export": "Write sizes as Hugging Face or GGUF models; upload them.",
    },
    "On a cluster": {
        "submit": "Run a spec on a cluster: as a Ray job, by KubeRay or Slurm.",
        "status": "List the jobs on a cluster.",
        "logs": "Print the output of a job; --follow it.",
        "stop": "Stop a job.",
    },
    "Compare": {
        "diff": "Show how two experiments differ, and which tasks that changes.",
        "verify": "Run the tasks of a run again and compare the results.",
    },
    "Look after a store": {
        "runs": "List the runs of a store.",
        "gc": "Show or delete what no run needs.",
        "completion": "Print the completion script of a shell.",
    },
}
_COMMANDS = tuple(name for names in _GROUPS.values() for name in names)
_MODULES = {  # of commands that share one, where they are called by their names
    **dict.fromkeys(("init", "graph", "schema"), "spec"),
    **dict.fromkeys(("report", "diff", "verify"), "results"),
    **dict.fromkeys(("submit", "status", "logs", "stop"), "submit"),
    **dict.fromkeys(("plan", "lock"), "plan"),
    **dict.fromkeys(("runs", "gc"), "stores"),
}


class _Commands(click.Group):
    """Loads a command when it is called; prints what a user can act on without a traceback, as JSON for --json."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"boomspec.commands.{_MODULES.get(name, name)}")
        command = getattr(module, name if name in _MODULES else "command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        hint = did_you_mean(args[0], list(_COMMANDS)) if args and args[0] not in _COMMANDS else None
        if hint is not None and not ctx.resilient_parsing:  # which is how a shell completes
            ctx.fail(f"No such command '{args[0]}'. {hint.capitalize()}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", line) for name, line in commands.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except click.UsageError as error:
            if not ctx.meta["json"]:
                raise
            hint = None if error.ctx is None else f"{error.ctx.command_path} --help"
            ctx.exit(print_error(BoomspecError(error.format_message(), hint=hint), as_json=True))
        except BrokenPipeError:
            raise  # who reads has seen enough: click ends in silence
        except (BoomspecError, OSError) as error:
            ctx.exit(print_error(error, as_json=ctx.meta["json"]))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(boomspec.__version__, prog_name="boomspec")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Boomerang distillation as a declarative experiment: distil one student, get every size."""
    if ctx.invoked_subcommand != "run":  # which waits for its store
        from boomspec.store.opening import answering_at_once  # here: what asks no store needs none of it

        ctx.with_resource(answering_at_once())


if __name__ == "__main__":
    main()

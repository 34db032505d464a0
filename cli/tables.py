"""Tables of commands: typer's, with the flags that all commands share and with examples.

The section Examples of a command's docstring ends its ``--help``, one example a line and as
written.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from localv4.cli.log_file import Invocation

__all__ = ["Table"]

_HEADING = "\n\nExamples\n--------\n"
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Plainer:
    """Ends the help with the examples of the docstring, and names arguments as manuals do."""

    examples: str
    params: list[Any]

    def get_help(self, ctx: Any) -> str:  # noqa: ANN401 (typer's, by a private name)
        """Return the help."""
        text: str = super().get_help(ctx)  # type: ignore[misc]  # of the command
        rows = "\n".join(f"  {line}" for line in self.examples.splitlines())
        return f"{text}\n\nExamples:\n{rows}" if rows else text

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 (the same)
        """Return all parameters; for a completion, with values as they were typed."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command
        if ctx.resilient_parsing:
            for parameter in parameters:
                # Else typer imports pydantic to parse them, which takes longer than all the rest.
                parameter.process_value = lambda ctx, value: value
        return parameters

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 (the same)
        """Return what follows the name of the command, without typer's braces."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]  # of the command
        return [piece.replace("{", "").replace("}", "") for piece in pieces]

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first line of the text, whole: the list of commands wraps it."""
        text: str = self.help  # type: ignore[attr-defined]  # of the command
        return text.partition("\n")[0].rstrip(".")

    def finish(self) -> None:
        """Leave out types and ranges where names and errors tell them; add the shared flags."""
        for parameter in self.params:
            if parameter.param_type_name == "argument" and parameter.metavar is not None:
                parameter.display_type_rich = lambda ctx: None
            parameter._get_number_range_help_str = lambda: None
        self.params += _shared_parameters()


class _Command(_Plainer, TyperCommand):
    def __init__(self, *arguments: Any, help: str | None = None, **rest: Any) -> None:  # noqa: ANN401
        text, _, self.examples = (help or "").partition(_HEADING)
        super().__init__(*arguments, help=text, **rest)
        self.finish()


class _Group(_Plainer, TyperGroup):
    def __init__(self, *arguments: Any, help: str | None = None, **rest: Any) -> None:  # noqa: ANN401
        text, _, self.examples = (help or "").partition(_HEADING)
        super().__init__(*arguments, help=text, **rest)
        self.finish()


class Table(typer.Typer):
    """An empty table of commands."""

    def __init__(self) -> None:
        # Without rich: its help would cost another 0.1 s.
        super().__init__(
            cls=_Group,
            rich_markup_mode=None,
            add_completion=False,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )

    def command(  # type: ignore[override]  # fewer ways to call it
        self, name: str | None = None, *, help: str | None = None
    ) -> Callable[[_Function], _Function]:
        """Return a decorator that adds a function under a name, its own if none is given."""
        return super().command(name, cls=_Command, help=help)


def _keep_log_file(ctx: typer.Context, path: str | None) -> str | None:
    # A command below a table of its own has the flag, and so has the table.
    if path is not None:
        ctx.ensure_object(Invocation).log_file = path
    return path


def _shared(
    log_file: Annotated[
        str | None,
        typer.Option(
            "--log-file",
            metavar="FILE",
            help="Append a log to this file; no prompts in it.",
            callback=_keep_log_file,
            expose_value=False,
        ),
    ] = None,
) -> None:
    """Bear the flags that every command has, and none of their functions."""


def _shared_parameters() -> list[Any]:
    """Return the flags that every command has, as typer makes them of a function."""
    bearer = typer.Typer(add_completion=False)
    bearer.command()(_shared)
    return list(get_command(bearer).params)

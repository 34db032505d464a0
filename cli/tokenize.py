"""``localv4 tokenize``: the token ids of a text."""

import json
from pathlib import Path
from typing import Annotated

import typer

from localv4.cli import options
from localv4.cli.opening import no_tokenizer
from localv4.cli.prompt import read_prompt
from localv4.models import resolve

__all__ = ["tokenize"]


def tokenize(
    ctx: typer.Context,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The text; - is standard input.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the text from a file.")
    ] = None,
    model: options.Model = None,
    control: Annotated[
        bool, typer.Option("--control", help="Recognise control tokens inside the text.")
    ] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Print the token ids of a text, as the model's tokenizer gives them.

    Without a model, the tokenizer of the DeepSeek-V4 releases, which comes with localv4.

    Examples
    --------
    localv4 tokenize "Why is the sky blue?"
    localv4 tokenize --json < letter.txt
    localv4 tokenize -m flash --prompt-file letter.txt
    """
    settings, output = options.start(ctx, {"model": model}, quiet, verbose)
    text = read_prompt(text, prompt_file, 'localv4 tokenize "Hello"')

    from localv4.tokenizer import Tokenizer, bundled_tokenizer_json

    if settings.model is None:
        tokenizer = Tokenizer.from_json(bundled_tokenizer_json())
    else:
        folder = resolve(settings.model)
        found = Tokenizer.from_folder(folder)
        if found is None:
            raise no_tokenizer(folder)
        tokenizer = found
    ids = tokenizer.encode(text, control=control)
    if as_json:
        tokens = [
            tokenizer.token_bytes(token_id).decode("utf-8", errors="replace") for token_id in ids
        ]
        output.line(json.dumps({"ids": ids, "count": len(ids), "tokens": tokens}))
    else:
        output.line(" ".join(map(str, ids)))

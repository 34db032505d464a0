"""``localv4 completion``: what a shell needs so that its Tab key completes localv4's words."""

from typing import Annotated, Literal

import typer

from localv4.cli import options

__all__ = ["completion"]

# The variables are those that typer's completion reads. Whatever goes wrong stays off the screen,
# even when localv4 is no longer installed.
_BASH = """\
_localv4_completion() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        _LOCALV4_COMPLETE=complete_bash "$1" 2>/dev/null)
}
complete -o default -F _localv4_completion localv4"""

_ZSH = """\
_localv4_completion() {
    eval "$(_TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" \\
        _LOCALV4_COMPLETE=complete_zsh localv4 2>/dev/null)"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _localv4_completion localv4"""

_FISH = """\
function __localv4_complete
    _LOCALV4_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=$argv[1] \\
        _TYPER_COMPLETE_ARGS=(commandline -cp) localv4 2>/dev/null
end
complete --command localv4 --no-files \\
    --arguments '(__localv4_complete get-args)' --condition '__localv4_complete is-args'"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(
    ctx: typer.Context,
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Your shell.")],
) -> None:
    """Print what makes a shell's Tab key complete localv4's words.

    These are commands, flags and their values, and the names of models and saved sessions. Let
    your shell read it at its start, as below, and open a new terminal.

    Examples
    --------
    localv4 completion bash >> ~/.bashrc
    localv4 completion zsh >> ~/.zshrc
    localv4 completion fish > ~/.config/fish/completions/localv4.fish
    """
    _, output = options.start(ctx, {})
    output.line(_SCRIPTS[shell])

"""What is typed in docs/bad-inputs.md: lines of a shell, and lines of chats."""

from dataclasses import dataclass

__all__ = ["CHATS", "GROUPS", "UNPRIVILEGED", "Case", "Chat", "Group", "Line"]

UNPRIVILEGED = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Keeps root from what others could not open either."""


@dataclass(frozen=True)
class Case:
    """A line typed in a shell.

    Attributes
    ----------
    line
        As typed.
    about
        What is wrong, where the line does not show it.
    has_answer
        Whether standard output has a part of an answer, or all of it.
    goes_on
        Whether that ends nothing.
    n_before
        How many lines are said before the sentence, such as that something takes long.
    """

    line: str
    about: str = ""
    has_answer: bool = False
    goes_on: bool = False
    n_before: int = 0


@dataclass(frozen=True)
class Group:
    """Lines of a shell under one title.

    Attributes
    ----------
    is_unprivileged
        Whether they are typed by somebody who may not do everything.
    is_quick
        Whether they need no home folder, nor a process of their own.
    """

    title: str
    cases: tuple[Case, ...]
    is_unprivileged: bool = False
    is_quick: bool = False


@dataclass(frozen=True)
class Line:
    """A line typed in a chat.

    Attributes
    ----------
    text
        What goes to the terminal.
    shown
        How it is written down; it may hold control characters.
    expects
        Shown once it is done.
    is_bad
        Whether something is wrong with it; else it only makes way for the next one.
    """

    text: str
    shown: str
    expects: str = "localv4: "
    is_bad: bool = True


@dataclass(frozen=True)
class Chat:
    """A chat in a terminal.

    Attributes
    ----------
    line
        How it is begun.
    code
        With what it is to end.
    leaves
        Whether Ctrl-D is needed to end it.
    """

    title: str
    line: str
    lines: tuple[Line, ...]
    code: int = 0
    leaves: bool = True


def _all(*lines: str) -> tuple[Case, ...]:
    return tuple(map(Case, lines))


def _typed(*lines: str) -> tuple[Line, ...]:
    return tuple(Line(f"{line}\r", line) for line in lines)


_ANSWERED = "as max_tokens says"
_HELLO = Line("hello\r", "hello", _ANSWERED, is_bad=False)
_RUN = "localv4 run -m ./model --max-tokens 2"

GROUPS = (
    Group(
        "Words that are no command",
        _all(
            "localv4 rnu Hi",
            'localv4 "What is 1 + 1?"',
            "localv4 -m flash",
            "localv4 config get memory",
            "localv4 help nothing",
        ),
        is_quick=True,
    ),
    Group(
        "Flags of run",
        (
            Case("localv4 run", "nothing to read, and no prompt"),
            *_all(
                "localv4 run Why is the sky blue",
                "localv4 run --Max-tokens 3 Hi",
                "localv4 run --max-tokens",
                "localv4 run --max-tokens 1e3 Hi",
                "localv4 run --max-tokens 0 Hi",
                "localv4 run --temperature nan Hi",
                "localv4 run --temperature -1 Hi",
                "localv4 run --top-p 2 Hi",
                "localv4 run --top-k -3 Hi",
                "localv4 run --min-p 1.5 Hi",
                "localv4 run --seed 99999999999999999999 Hi",
                "localv4 run --timeout 0 Hi",
                'localv4 run --stop "" Hi',
                "localv4 run --think hard Hi",
                "localv4 run --format xml Hi",
                "localv4 run -q -v Hi",
                "localv4 run --raw --system x Hi",
                "localv4 run --logprobs 3 Hi",
                "localv4 run --logprobs 21 --format json Hi",
                "localv4 run --output answers.jsonl Hi",
                "localv4 run --dry-run --prompts two.jsonl",
                "localv4 run --prompt-file file Hi",
                "localv4 run --memory lots Hi",
                "localv4 run --memory 0 Hi",
                "localv4 run --threads 0 Hi",
                "localv4 run --context -1 Hi",
            ),
        ),
        is_quick=True,
    ),
    Group(
        "Prompts",
        _all(
            'localv4 run ""',
            "localv4 run < bytes",
            "localv4 run < nothing",
            "localv4 run < /dev/zero",
            "localv4 run $'\\xff'",
            "localv4 run --prompt-file nowhere.txt",
            "localv4 run --prompt-file empty",
            "localv4 run -m ./model --context 3 Hello",
            "localv4 run -m ./model --context 3 --dry-run Hello",
            "localv4 run --prompts nowhere.jsonl",
            "localv4 run --prompts bad.jsonl",
            "localv4 run --prompts half.jsonl",
            "localv4 run --prompts slip.jsonl",
            "localv4 run --prompts king.jsonl",
            "localv4 run --prompts twice.jsonl",
            "localv4 run --prompts nan.jsonl",
            "localv4 run --prompts - < bytes",
            "localv4 run --prompts two.jsonl --format text",
            "localv4 run --prompts two.jsonl --output others.jsonl",
            "localv4 run --prompts two.jsonl --output /dev/full",
            "localv4 run --tools empty Hi",
            "localv4 run --tools object.json Hi",
            "localv4 run --tools spaced.json Hi",
            "localv4 run --tools same.json Hi",
        ),
        is_quick=True,
    ),
    Group(
        "Many prompts, one of them bad",
        (
            Case(
                "localv4 run -m ./model --max-tokens 2 --prompts long.jsonl --context 40",
                "one prompt is too long: its line says so",
                has_answer=True,
            ),
        ),
    ),
    Group(
        "Models",
        _all(
            "localv4 run -m nowhere Hi",
            "localv4 run -m ./nowhere Hi",
            'localv4 run -m "" Hi',
            "localv4 run -m some/repo Hi",
            "localv4 run -m file Hi",
            "localv4 run -m ./empty Hi",
            "localv4 run -m $'\\e[31mred\\n' Hi",
            "localv4 run -m ./base Hi",
            "localv4 run -m ./model --threads 100000 Hi",
            "localv4 run -m ./model --context 9999999 Hi",
            "localv4 run -m ./model --memory 1MiB Hi",
            "localv4 run -m ./model --think low Hi",
            "LOCALV4_TIER=avx9000 localv4 run -m ./model Hi",
        ),
        is_quick=True,
    ),
    Group(
        "Damaged models",
        (
            Case("localv4 run -m ./cut Hi", "a shard without its end"),
            Case("localv4 run -m ./zeros Hi", "a shard of no bytes"),
            Case("localv4 run -m ./boasting Hi", "a shard with a header of 2**63 bytes"),
            Case("localv4 run -m ./gap Hi", "a shard that is not there"),
            Case("localv4 run -m ./no-index Hi", "nothing that lists the tensors"),
            Case("localv4 run -m ./outside Hi", "an index that leads out of the folder"),
            Case("localv4 run -m ./nan Hi", "a scale that is no number"),
            Case("localv4 run -m ./dtype Hi", "a tensor of another dtype"),
            Case("localv4 run -m ./llama Hi", "another architecture"),
            Case("localv4 run -m ./wide Hi", "a config of another model's sizes"),
            Case("localv4 run -m ./ratios Hi", "a config with ratios that nobody knows"),
            Case("localv4 run -m ./greedy Hi", "a config with more experts a token than experts"),
            Case("localv4 run -m ./huge Hi", "a config with 10**15 tokens"),
            Case("localv4 run -m ./half-config Hi", "half a config"),
            Case("localv4 run -m ./list-config Hi", "a config that is a list"),
            Case("localv4 run -m ./no-tokenizer Hi", "no tokenizer"),
            Case("localv4 run -m ./deep-tokenizer Hi", "a tokenizer of 100,000 brackets"),
            Case("localv4 run -m ./other-tokenizer Hi", "a tokenizer of another kind"),
            Case("localv4 run -m ./far-tokenizer Hi", "a tokenizer with a token of id 10**9"),
            Case("localv4 run -m ./nonsense Hi", "a generation_config.json that is no JSON"),
            Case("localv4 run -m ./furious Hi", "a thinking level that there is not"),
        ),
        is_quick=True,
    ),
    Group(
        "Full disks and closed streams",
        (
            Case(f"{_RUN} Hi > /dev/full"),
            Case(f"{_RUN} --prompts two.jsonl > /dev/full"),
            Case(f"ulimit -f 0; {_RUN} Hi > answer"),
            Case(f"ulimit -f 0; {_RUN} --prompts two.jsonl --output answers"),
            Case(f"{_RUN} --log-file /dev/full Hi", "the answer comes all the same", True, True),
            Case(
                "ulimit -f 0; LOCALV4_CACHE_DIR=cache localv4 run Hi -m ./model",
                "no room for compiled kernels",
                n_before=1,
            ),
            Case("ulimit -f 0; localv4 config set memory 24GiB"),
            Case("ulimit -f 0; localv4 synth new"),
            Case("localv4 config > /dev/full"),
            Case("localv4 run <&-", "standard input is closed"),
        ),
    ),
    Group(
        "No permission",
        _all(
            "localv4 run -m ./secret Hi",
            "localv4 run --prompts secret.txt",
            "localv4 run --prompts two.jsonl --output readonly/answers",
            "localv4 run --log-file readonly/log Hi",
            "localv4 synth readonly/new",
            "LOCALV4_CONFIG=readonly/config.toml localv4 config set think off",
            "LOCALV4_CONFIG=secret.txt localv4 config",
            "LOCALV4_SESSIONS_DIR=secret localv4 sessions",
        ),
        is_unprivileged=True,
    ),
    Group(
        "Settings",
        _all(
            "localv4 config set memroy 24GiB",
            "localv4 config set memory lots",
            "localv4 config set threads 1.5",
            "localv4 config set think hard",
            "localv4 config set history maybe",
            'localv4 config set model ""',
            "LOCALV4_THREADS=x localv4 config",
            "LOCALV4_CONFIG=slip.toml localv4 config",
            "LOCALV4_CONFIG=lots.toml localv4 config",
            "LOCALV4_CONFIG=half.toml localv4 config",
            "LOCALV4_CONFIG=bytes localv4 config",
            "LOCALV4_CONFIG=empty localv4 config",
            "HOME=/dev/null localv4 sessions",
            "HOME=/dev/null localv4 pull flash",
        ),
    ),
    Group(
        "The other commands",
        _all(
            "localv4 tokenize --prompt-file bytes",
            "localv4 tokenize -m ./far-tokenizer Hi",
            "localv4 pull ../x",
            "localv4 pull ./model",
            "localv4 pull flash",
            "localv4 pull https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash",
            "localv4 show ./gap",
            "localv4 show file",
            "localv4 verify nowhere",
            "localv4 rm ./model",
            "localv4 sessions verify torn",
            "localv4 sessions rm ../x",
            "localv4 sessions rm nowhere",
            "localv4 synth model",
            "localv4 synth new --layers -1",
            "localv4 doctor --memory lots",
            "localv4 completion tcsh",
            "localv4 chat --session ../x",
            "localv4 chat --session $'a\\e[31m'",
            "localv4 chat --session torn",
            "localv4 chat --thoughts sideways",
            "localv4 chat -m ./cut",
            "localv4 chat Hi",
        ),
    ),
    Group(
        "A chat that nobody sits at",
        (
            Case(r"printf '\377\n' | localv4 chat -m ./model", goes_on=True),
            Case("echo /nothing | localv4 chat -m ./model", goes_on=True),
            Case("printf '%01000d' 0 | localv4 chat -m ./model --context 99", goes_on=True),
        ),
    ),
)

CHATS = (
    Chat(
        "A chat",
        "localv4 chat -m ./model --context 300 --max-tokens 2",
        (
            *_typed(
                "/hlep",
                "/nothing",
                "/help nothing",
                "/quit now",
                "/load",
                "/load nowhere",
                "/load ../x",
                "/load torn",
                "/save",
                "/save a/b",
                "/undo",
                "/retry",
                "/edit",
                "/more",
                "/set tempo 3",
                "/set temperature hot",
                "/set top_p 2",
                "/set seed",
                "/set max_tokens 0",
                "/think hard",
                "/thoughts sideways",
                "/read nowhere.txt",
                "/read empty",
                "/read bytes",
                "/read ~nobodyatall/x",
            ),
            Line("/save a\x1b[200~\x1b[2J\x07\x1b[201~*\r", r"/save a\e[2J\a* (pasted)"),
            Line(f"\x1b[200~{'word ' * 4000}\x1b[201~\r", "word word ... (20,000 pasted)"),
            Line("\x03hello\r", "hello", _ANSWERED, is_bad=False),  # Ctrl-C: the text came back
            *_typed("/undo 9", "/undo x", "/save nul"),
        ),
    ),
    Chat(
        "A chat on a full disk",
        "ulimit -f 0; localv4 chat -m ./model --session garden --max-tokens 2",
        (
            Line("hello\r", "hello", _ANSWERED),
            *_typed("/save shed", "/quit"),
        ),
        code=4,
    ),
    Chat(
        "A chat without a place for sessions",
        "LOCALV4_SESSIONS_DIR=file localv4 chat -m ./model --max-tokens 2",
        (*_typed("/sessions"), _HELLO, *_typed("/save shed")),
    ),
    Chat(
        "A chat in a terminal that knows lines only",
        "TERM=dumb localv4 chat -m ./model --max-tokens 2",
        _typed("/nothing", "/save"),
    ),
    Chat(
        "A chat with a Base checkpoint",
        "localv4 chat -m ./base",
        (),
        code=2,
        leaves=False,
    ),
)

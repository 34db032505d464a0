"""From turns to the prompt: text in which every control token is told apart from ordinary text.

What a caller wrote is ordinary wherever it lands, also when it spells a control token, so a user
cannot forge a turn. Source: section 4 of the chat encoding specification.
"""

from collections.abc import Iterable, Sequence

from localv4.encoding.literals import (
    ASSISTANT,
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    ENDTHINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_END,
    PARAMETER_OPEN,
    REMINDER,
    RESPONSE_FORMAT,
    TASKS,
    THINK,
    TOOLS_AFTER_SCHEMAS,
    TOOLS_BEFORE_SCHEMAS,
    USER,
)
from localv4.encoding.messages import Message, ToolCall, Turn, read_turns
from localv4.encoding.pieces import Piece, PieceWriter
from localv4.encoding.preprocess import (
    drop_old_developers,
    last_question,
    merge_user_turns,
    sort_tool_results,
)
from localv4.encoding.profile import ThinkingMode, effort_prefix
from localv4.errors import FormatError


def encode(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | None = None,
    profile: str = "preview",
) -> str:
    """Render a conversation as one string: the joined pieces of :func:`render`.

    In the string, a control token and the same characters written by a user look alike; feed a
    model from :func:`render` instead.
    """
    pieces = render(
        messages,
        thinking_mode,
        context,
        drop_thinking,
        add_default_bos_token,
        reasoning_effort,
        profile,
    )
    return "".join(piece.text for piece in pieces)


def render(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | None = None,
    profile: str = "preview",
) -> list[Piece]:
    """Render a conversation as the prompt for its next answer.

    Parameters
    ----------
    messages
        Messages as OpenAI's API takes them (``role``, ``content``, ``tools``, ``tool_calls``, ...),
        plus the format's own ``reasoning_content``, ``task`` and ``wo_eos``. Never changed. An
        empty list renders as BOS alone, with nothing checked.
    thinking_mode
        ``"thinking"`` or ``"chat"``.
    context
        Messages that the model has already read: only what follows them is rendered, without BOS.
        The result continues the earlier prompt in chat mode, with ``drop_thinking=False`` or with
        tools; otherwise a new question changes how earlier answers are written.
    drop_thinking
        Leave out the reasoning of answers before the last question; tools switch this off.
    add_default_bos_token
        Start with BOS where there is no context.
    reasoning_effort
        One of the profile's efforts or None; only written in thinking mode.
    profile
        ``"preview"`` or ``"official"``, see :func:`localv4.encoding.detect_profile`.

    Returns
    -------
    list of Piece
        Adjacent ordinary pieces are merged, and none is empty.

    Raises
    ------
    FormatError
        For a malformed message, mode, effort or profile, naming it.
    """
    past = merge_user_turns(read_turns([] if context is None else context, "context message"))
    if any(turn.role == "developer" for turn in past):
        raise FormatError(
            "the context holds a developer message, which a later question would remove from the "
            "prompt; render the whole conversation without context"
        )
    turns = past + merge_user_turns(read_turns(messages, "message"))
    writer = PieceWriter()
    if add_default_bos_token and not past:
        writer.template(BOS)
    if messages:
        prefix = effort_prefix(reasoning_effort, profile)
        drops = drop_thinking and not any(turn.schemas for turn in turns)
        conversation = _Conversation(sort_tool_results(turns), thinking_mode, drops)
        if not past and conversation.thinks:
            writer.template(prefix)
        for index in range(len(past), len(conversation.turns)):
            conversation.write(index, writer)
    return writer.pieces()


def generation_mode(pieces: Sequence[Piece]) -> ThinkingMode:
    """Tell what an answer to this prompt starts with: reasoning ("thinking") or text ("chat").

    The mode to give :class:`localv4.encoding.StreamParser`. It differs from the prompt's own mode
    after a prefill (``wo_eos``) and after a task token.
    """
    return "thinking" if pieces and pieces[-1] == Piece(THINK, True) else "chat"


class _Conversation:
    """The turns being rendered and what their rendering depends on."""

    def __init__(self, turns: Sequence[Turn], thinking_mode: str, drops_thinking: bool) -> None:
        if thinking_mode not in ("chat", "thinking"):
            raise FormatError(f"unknown thinking_mode {thinking_mode!r}; use 'chat' or 'thinking'")
        self.thinks = thinking_mode == "thinking"
        self.drops = drops_thinking
        self.turns = drop_old_developers(turns) if self.thinks and drops_thinking else turns
        self.question = last_question(self.turns)

    def write(self, index: int, writer: PieceWriter) -> None:
        turn = self.turns[index]
        if turn.role == "assistant":
            self._write_answer(index, writer)
        elif turn.role == "user":
            writer.template(USER)
            _write_blocks(turn, writer)
        elif turn.role == "latest_reminder":
            writer.template(REMINDER)
            writer.text(turn.content)
        else:
            _write_instructions(turn, writer)
        self._write_transition(index, writer)

    def _write_answer(self, index: int, writer: PieceWriter) -> None:
        turn = self.turns[index]
        follows_task = index > 0 and self.turns[index - 1].task is not None
        if self.thinks and not follows_task and (not self.drops or index > self.question):
            writer.text(turn.reasoning)
            writer.template(ENDTHINK)
        writer.text(turn.content)
        if turn.calls:
            _write_calls(turn.calls, writer)
        if not turn.is_prefill:
            writer.template(EOS)

    def _write_transition(self, index: int, writer: PieceWriter) -> None:
        """Write what hands over to the answer, unless another question comes first."""
        turn = self.turns[index]
        follower = self.turns[index + 1].role if index + 1 < len(self.turns) else None
        if follower not in (None, "assistant", "latest_reminder"):
            return
        if turn.task is not None:
            if turn.task not in TASKS:
                raise FormatError(f"unknown task {turn.task!r}; use one of {', '.join(TASKS)}")
            if turn.task == "action":
                writer.template(ASSISTANT + (THINK if self.thinks else ENDTHINK))
            writer.template(TASKS[turn.task])
        elif turn.role in ("user", "developer"):
            thinks_here = self.thinks and (not self.drops or index >= self.question)
            writer.template(ASSISTANT + (THINK if thinks_here else ENDTHINK))


def _write_instructions(turn: Turn, writer: PieceWriter) -> None:
    """Write a system or developer message with its tools and response format."""
    if turn.role == "developer":
        if not turn.content:
            raise FormatError("a developer message is empty; give it content or leave it out")
        writer.template(USER)
    writer.text(turn.content)
    if turn.schemas:
        writer.template("\n\n" + TOOLS_BEFORE_SCHEMAS)
        writer.text("\n".join(turn.schemas))
        writer.template(TOOLS_AFTER_SCHEMAS)
    if turn.response_format:
        writer.template("\n\n" + RESPONSE_FORMAT)
        writer.text(turn.response_format)


def _write_blocks(turn: Turn, writer: PieceWriter) -> None:
    for index, block in enumerate(turn.blocks):
        writer.text("\n\n" if index else "")
        # <tool_result> is no control token: it is ordinary text like the result itself.
        writer.text(
            f"<tool_result>{block.text}</tool_result>" if block.is_tool_result else block.text
        )


def _write_calls(calls: Iterable[ToolCall], writer: PieceWriter) -> None:
    writer.template(f"\n\n{CALLS_OPEN}>\n")
    for call in calls:
        writer.template(f'{INVOKE_OPEN} name="')
        writer.text(call.name)
        writer.text('">\n')
        for parameter in call.parameters:
            writer.template(f'{PARAMETER_OPEN} name="')
            writer.text(parameter.key)
            writer.text(f'" string="{"true" if parameter.is_string else "false"}">')
            writer.text(parameter.value)
            writer.template(f"<{PARAMETER_END}>\n")
        if not call.parameters:
            writer.text("\n")
        writer.template(f"{INVOKE_CLOSE}>\n")
    writer.template(CALLS_CLOSE)

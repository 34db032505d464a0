"""The DeepSeek-V4 chat format: messages to prompts, completions to messages.

Text only: nothing here knows of token ids, tensors or the engine, and importing it costs nothing
but the standard library.

======================  =======================================================================
``literals``            the format's fixed strings
``messages``            caller's dicts -> checked, immutable turns
``preprocess``          merge, sort, drop
``pieces``, ``render``  turns -> a prompt whose control tokens are told apart
``profile``             the two ways of asking for reasoning effort; which one a checkpoint wants
``parse``               a finished completion -> message, strict
``marks``, ``stream``   a completion as it arrives -> events, tolerant
``arguments``           what both parsers share about tool call arguments
======================  =======================================================================
"""

from localv4.encoding.parse import ParsedMessage, parse
from localv4.encoding.pieces import Piece
from localv4.encoding.profile import (
    Profile,
    ThinkingMode,
    detect_profile,
    thinking_arguments,
    thinking_levels,
)
from localv4.encoding.render import encode, generation_mode, render
from localv4.encoding.stream import ParseEvent, StreamParser, collect, parse_tolerant

__all__ = [
    "ParseEvent",
    "ParsedMessage",
    "Piece",
    "Profile",
    "StreamParser",
    "ThinkingMode",
    "collect",
    "detect_profile",
    "encode",
    "generation_mode",
    "parse",
    "parse_tolerant",
    "render",
    "thinking_arguments",
    "thinking_levels",
]

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.byte_tokenizer import byte_level_tokenizer_json
from localv4.encoding import parse_tolerant
from localv4.encoding.literals import DSML, ENDTHINK, EOS, THINK, USER
from localv4.errors import ContextOverflow, InvalidInput, LocalV4Error
from localv4.events import Usage
from localv4.generate import default_stop_ids, generate
from localv4.sampling import Sampler, SamplingParams
from localv4.tokenizer import Tokenizer

VOCAB = 300
BYTES = Tokenizer.from_json(byte_level_tokenizer_json(VOCAB))
GREEDY = SamplingParams(temperature=0)
PROMPT = [0, 5, 6]
CALL = (
    f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="look">\n'
    f'<{DSML}parameter name="x" string="true">a</{DSML}parameter>\n'
    f"</{DSML}invoke>\n</{DSML}tool_calls>"
)


class ScriptedSession:
    """Its logits make a greedy sampler say `script` behind the prompt, then byte 0 for ever."""

    def __init__(self, script, context=10_000, held=()):
        self.script = list(script)
        self.held = list(held)
        self.context = context
        self.said = 0
        self.prefills = []
        self.kept = []

    @property
    def position(self):
        return len(self.held)

    chunk_tokens = 1024

    def keep(self):
        self.kept.append(len(self.held))

    def prefill(self, ids, logits="last", progress=None):
        if len(self.held) + len(ids) > self.context:
            raise ContextOverflow("full")
        self.prefills.append(list(ids))
        self.held += ids
        if progress is not None:
            progress(len(ids))
        return self._logits() if logits == "last" else np.empty(0, np.float32)

    def decode(self, token_id):
        assert token_id == self.said_id, "decoded something that was not sampled last"
        if len(self.held) + 1 > self.context:
            raise ContextOverflow("full")
        self.held.append(token_id)
        return self._logits()

    def _logits(self):
        self.said_id = self.script[self.said] if self.said < len(self.script) else 2
        self.said += 1
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[self.said_id] = 10
        return logits


def start(script, *, session=None, tokenizer=BYTES, **options):
    ids = BYTES.encode(script, control=True) if isinstance(script, str) else script
    session = session or ScriptedSession(ids)
    options = {"max_tokens": 1000, **options}
    return generate(session, tokenizer, PROMPT, sampler=Sampler(GREEDY), **options), session


def answer(script, **options):
    generation, session = start(script, **options)
    events = list(generation)
    check_contract(events, generation, session)
    return events


def check_contract(events, generation, session):
    """Check what holds for every complete answer."""
    assert [event.kind for event in events].count("prefill") == 1
    assert events[0].kind == "prefill"
    assert [event.kind for event in events].count("done") == 1
    done = events[-1]
    assert done.kind == "done"
    assert sum((event.ids for event in events), ()) == generation.ids
    assert done.usage.completion_tokens == len(generation.ids)
    assert (*session.held, *generation.pending_ids) == (*PROMPT, *generation.ids)
    assert generation.pending_ids == generation.ids[-1:]
    assert all((event.finish_reason is None) == (event is not done) for event in events)


def said(events, kind="text"):
    return "".join(event.text for event in events if event.kind == kind)


def test_plain_text_to_the_end_token():
    events = answer(f"Hello{EOS}rest")
    assert said(events) == "Hello"
    assert events[-1].finish_reason == "stop"
    assert events[0].usage == Usage(prompt_tokens=3, completion_tokens=0, reasoning_tokens=0)
    assert events[-1].usage == Usage(prompt_tokens=3, completion_tokens=6, reasoning_tokens=0)
    assert events[-1].timings.prefill_s > 0
    assert events[-1].timings.decode_s > 0
    assert [event.ids for event in events] == [(), *[(2 + b,) for b in b"Hello"], (1,)]


def test_the_users_turn_ends_an_answer():
    events = answer(f"Hi{USER}more", thinking_mode="chat")
    assert said(events) == "Hi"
    assert events[-1].finish_reason == "stop"


def test_default_stop_ids():
    assert default_stop_ids(BYTES) == {1, BYTES.control_id(USER)}
    assert default_stop_ids(None) == {1}
    assert default_stop_ids(None, eos_token_id=7) == {7}


def test_stop_ids_of_the_caller_replace_the_default():
    events = answer(f"a{EOS}bcd", stop_ids=[2 + ord("c")])
    assert said(events) == f"a{EOS}b"
    assert events[-1].finish_reason == "stop"


def test_max_tokens():
    events = answer("Hello", max_tokens=3)
    assert said(events) == "Hel"
    assert events[-1].finish_reason == "length"


def test_max_tokens_zero_only_prefills():
    events = answer("Hello", max_tokens=0)
    assert [event.kind for event in events] == ["prefill", "done"]
    assert events[-1].finish_reason == "length"
    assert events[-1].usage.completion_tokens == 0


def test_a_full_session_ends_the_answer():
    session = ScriptedSession(BYTES.encode("Hello"), context=5)
    events = answer("", session=session, max_tokens=None)
    # Two tokens fit behind the prompt, and the last logits give a third.
    assert said(events) == "Hel"
    assert events[-1].finish_reason == "length"
    assert session.position == 5


def test_a_prompt_that_does_not_fit_is_an_error():
    generation, session = start("x", session=ScriptedSession([], context=2))
    with pytest.raises(ContextOverflow):
        next(generation)
    assert session.position == 0
    assert generation.pending_ids == tuple(PROMPT)


def test_an_answer_can_be_continued_with_what_is_pending():
    generation, session = start("Hello", max_tokens=3)
    list(generation)
    more = generate(
        session, BYTES, [*generation.pending_ids], sampler=Sampler(GREEDY), max_tokens=2
    )
    assert said(more) == "lo"
    assert session.prefills == [PROMPT, [2 + ord("l")]]
    assert more.pending_ids == (2 + ord("o"),)


def test_a_character_split_over_tokens_comes_whole():
    events = answer(f"\u00e9\U0001f600{EOS}")
    texts = [(event.text, event.ids) for event in events if event.kind == "text"]
    assert texts == [
        ("\u00e9", tuple(2 + b for b in "\u00e9".encode())),
        ("\U0001f600", tuple(2 + b for b in "\U0001f600".encode())),
    ]


@pytest.mark.parametrize("thinking_mode", [None, "chat"])
def test_an_unfinished_character_is_flushed(thinking_mode):
    events = answer("ab\U0001f600", max_tokens=5, thinking_mode=thinking_mode)
    assert said(events) == "ab\ufffd"


@pytest.mark.parametrize("thinking_mode", [None, "chat"])
@pytest.mark.parametrize(
    ("text", "stops", "before"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("STOP", ["STOP"], ""),
        ("one STO two", ["STOP"], "one STO two"),
        ("SSTOP", ["STOP"], "S"),
        ("aab aaab x", ["aaab"], "aab "),
        ("xabcd", ["abcd", "bc"], "xa"),
        ("xabcd", ["abc", "bc"], "x"),
        ("caf\u00e9 noir", ["\u00e9"], "caf"),
        ("a\U0001f600\U0001f601b", ["\U0001f601"], "a\U0001f600"),
        ("one\n\ntwo", ["\n\n"], "one"),
    ],
)
def test_stop_strings(text, stops, before, thinking_mode):
    events = answer(text + EOS, stop=stops, thinking_mode=thinking_mode)
    assert said(events) == before
    assert events[-1].finish_reason == "stop"


def test_a_stop_string_as_a_bare_str_is_one_string():
    assert said(answer(f"STxOP STOP{EOS}", stop="STOP")) == "STxOP "


def test_a_stop_string_ends_sampling_at_once():
    events = answer("one STOP two", stop=["STOP"])
    assert events[-1].usage.completion_tokens == len("one STOP")


def test_text_held_for_a_stop_string_comes_with_the_end():
    for script, reason in (("ab ST", "length"), (f"ab ST{EOS}", "stop")):
        events = answer(script, stop=["STOP"], max_tokens=5 + script.count(EOS))
        assert said(events) == "ab ST"
        assert events[-1].finish_reason == reason


def test_a_stop_string_completed_only_by_the_end_counts():
    # The parser holds a line end back, since it may lead to a tool call.
    events = answer("ab\n", stop=["\n"], max_tokens=3, thinking_mode="chat")
    assert said(events) == "ab"
    assert events[-1].finish_reason == "stop"


def test_stop_strings_are_not_looked_for_in_reasoning():
    events = answer(
        f"I STOP here{ENDTHINK}and STOP there{EOS}", stop=["STOP"], thinking_mode="thinking"
    )
    assert said(events, "reasoning") == "I STOP here"
    assert said(events) == "and "
    assert events[-1].usage.reasoning_tokens == len("I STOP here") + 1


def test_stop_strings_are_not_looked_for_in_tool_calls():
    events = answer(f"ok{CALL}{EOS}", stop=["look", '"a"'], thinking_mode="chat")
    assert [event.kind for event in events].count("tool_call") == 1


def test_reasoning_without_an_end_is_all_reasoning():
    events = answer("hmm", max_tokens=3, thinking_mode="thinking")
    assert said(events, "reasoning") == "hmm"
    assert said(events) == ""
    assert events[-1].usage.reasoning_tokens == 3


def test_a_tool_call():
    events = answer(f"why{ENDTHINK}Let me look.{CALL}{EOS}", thinking_mode="thinking")
    assert said(events, "reasoning") == "why"
    assert said(events) == "Let me look."
    (call,) = [event.tool_call for event in events if event.kind == "tool_call"]
    assert call.name == "look"
    assert json.loads(call.arguments) == {"x": "a"}
    assert call.id
    assert events[-1].finish_reason == "stop"
    assert not events[-1].dropped_call


def test_a_tool_call_that_is_cut_off_is_dropped_and_told():
    events = answer(f"ok{CALL}", max_tokens=40, thinking_mode="chat")
    assert said(events) == "ok"
    assert "tool_call" not in [event.kind for event in events]
    assert events[-1].dropped_call
    assert events[-1].finish_reason == "length"


def test_spelled_out_control_text_is_ordinary():
    ids = [*BYTES.encode(f"a{ENDTHINK}b"), BYTES.control_id(ENDTHINK), *BYTES.encode("c"), 1]
    events = answer(ids, thinking_mode="thinking")
    assert said(events, "reasoning") == f"a{ENDTHINK}b"
    assert said(events) == "c"


def test_plain_text_keeps_control_tokens_as_literals():
    assert said(answer(f"{THINK}a{ENDTHINK}{EOS}")) == f"{THINK}a{ENDTHINK}"


def test_the_end_token_ends_a_parsed_answer_even_if_it_is_no_stop_id():
    events = answer(f"ab{EOS}cd", thinking_mode="chat", stop_ids=())
    assert said(events) == "ab"
    assert events[-1].finish_reason == "stop"


def test_without_a_tokenizer_there_are_ids_only():
    events = answer([7, 8, 9, 1, 5], tokenizer=None)
    assert [event.ids for event in events] == [(), (7,), (8,), (9,), (1,)]
    assert said(events) == ""
    assert events[-1].finish_reason == "stop"


def test_logprobs_come_with_their_ids():
    events = answer(f"a\u00e9{EOS}", logprobs=2)
    assert [event.kind for event in events] == ["prefill", "text", "text", "done"]
    for event in events[1:]:
        assert tuple(entry.id for entry in event.logprobs) == event.ids
        for entry in event.logprobs:
            assert entry.top[0] == (entry.id, entry.logprob)
            assert len(entry.top) == 2
    assert all(event.logprobs is None for event in answer("a", max_tokens=1))
    assert answer("a", max_tokens=1, logprobs=0)[1].logprobs[0].top == ()


def test_interrupting_lets_out_what_was_held_back():
    session = ScriptedSession(BYTES.encode("Hello lord"))
    generation, _ = start("", session=session, stop=["lord"])
    sample = generation._sampler.sample

    def interrupt_behind_the_space(logits):
        token_id = sample(logits)
        if len(generation.ids) == len("Hello l"):
            generation.interrupt()
        return token_id

    generation._sampler.sample = interrupt_behind_the_space
    events = list(generation)
    check_contract(events, generation, session)
    assert said(events) == "Hello lo"
    assert events[-2].text == "lo"
    assert events[-1].finish_reason == "interrupted"


def test_abandoning_between_events_leaves_the_session_consistent():
    for count in range(1, 5):
        generation, session = start("Hello")
        for _ in range(count):
            next(generation)
        generation.close()
        assert (*session.held, *generation.pending_ids) == (*PROMPT, *generation.ids)
        assert len(generation.pending_ids) <= 1
        with pytest.raises(StopIteration):
            next(generation)


def test_an_interrupt_while_decoding_loses_no_token():
    class Interrupting(ScriptedSession):
        def decode(self, token_id):
            if len(self.held) == 5:
                raise KeyboardInterrupt
            return super().decode(token_id)

    generation, session = start("", session=Interrupting(BYTES.encode("Hello")))
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert BYTES.decode(generation.ids) == "Hel"
    assert (*session.held, *generation.pending_ids) == (*PROMPT, *generation.ids)


def test_nothing_is_computed_before_the_first_event():
    generation, session = start("Hello")
    assert session.prefills == []
    assert generation.pending_ids == tuple(PROMPT)


def test_tokens_that_the_session_held_before_are_left_alone():
    session = ScriptedSession(BYTES.encode("Hi"), held=[9, 9, 9])
    generation, _ = start("", session=session, max_tokens=2)
    list(generation)
    assert session.held == [9, 9, 9, *PROMPT, 2 + ord("H")]
    assert generation.pending_ids == (2 + ord("i"),)


def test_logits_that_are_not_finite_are_an_error():
    class Broken(ScriptedSession):
        def _logits(self):
            return np.full(VOCAB, np.nan, dtype=np.float32)

    generation, _ = start("", session=Broken([]))
    assert next(generation).kind == "prefill"
    with pytest.raises(LocalV4Error, match="300 of 300 logits"):
        next(generation)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt has no tokens"),
        (np.zeros(0, np.int64), {}, "prompt has no tokens"),
        ([1.5], {}, "not a whole number"),
        (["a"], {}, "not a whole number"),
        ([1], {"max_tokens": -1}, "max_tokens is -1"),
        ([1], {"logprobs": -1}, "logprobs is -1"),
        ([1], {"stop": [""]}, "stop string is ''"),
        ([1], {"thinking_mode": "high"}, "thinking_mode is 'high'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_computed(prompt, options, message):
    session = ScriptedSession([])
    with pytest.raises(InvalidInput, match=message):
        generate(session, BYTES, prompt, sampler=Sampler(GREEDY), **{"max_tokens": 5, **options})
    assert session.prefills == []


def test_a_prompt_may_be_an_array():
    session = ScriptedSession([1])
    list(generate(session, BYTES, np.array(PROMPT), sampler=Sampler(GREEDY), max_tokens=5))
    assert session.prefills == [PROMPT]
    assert all(type(token_id) is int for token_id in session.prefills[0])


@given(
    st.lists(
        st.sampled_from([ENDTHINK, EOS, DSML, CALL, "<", "\n\n", "text", "\u00e9", "STOP", "ST"]),
        max_size=8,
    ),
    st.sampled_from(["chat", "thinking"]),
)
@settings(deadline=None, max_examples=100)
def test_events_add_up_to_the_parse_of_the_whole(parts, thinking_mode):
    text = "".join(parts)
    events = answer(text + EOS, thinking_mode=thinking_mode)
    whole = parse_tolerant(text + EOS, thinking_mode)
    assert said(events) == whole["content"]
    assert said(events, "reasoning") == whole["reasoning_content"]
    calls = [event.tool_call for event in events if event.kind == "tool_call"]
    assert [(call.name, call.arguments) for call in calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in whole["tool_calls"]
    ]


SPOKEN = (
    f"one \u00e9\U0001f600\n\ntwo{EOS}",
    f"why\u00e9{ENDTHINK}Let me\n\nlook \U0001f600 S.{CALL}{EOS}",
)


@pytest.mark.parametrize("script", SPOKEN)
@pytest.mark.parametrize("stop", [(), ("STOP",)])
def test_an_answer_that_ended_anywhere_goes_on_as_if_it_had_not(script, stop):
    mode = "thinking" if ENDTHINK in script else "chat"
    options = {"thinking_mode": mode, "stop": stop}
    whole = answer(script, **options)
    ids = sum((event.ids for event in whole), ())
    for length in range(1, len(ids)):
        first, session = start(script, max_tokens=length, **options)
        begun = list(first)
        rest = generate(
            session,
            BYTES,
            [*first.pending_ids],
            sampler=Sampler(GREEDY),
            max_tokens=1000,
            begun=first.ids,
            **options,
        )
        after = list(rest)
        assert (*first.ids, *rest.ids) == ids
        assert after[-1].finish_reason == whole[-1].finish_reason
        for kind in ("reasoning", "text"):
            both = said(begun, kind) + said(after, kind)
            # half a character, or what then led to a call, was shown already
            assert both.replace("\ufffd", "").rstrip("\n<") == said(whole, kind), length
        calls = [event.tool_call.arguments for event in begun + after if event.tool_call]
        assert calls == [event.tool_call.arguments for event in whole if event.tool_call]


def test_an_answer_goes_on_and_ends_again_at_once():
    first, session = start("ab STOx", max_tokens=6, stop=["STOP"])
    assert said(first) == "ab STO"
    again = generate(
        session,
        BYTES,
        [*first.pending_ids],
        sampler=Sampler(GREEDY),
        max_tokens=0,
        stop=["STOP"],
        begun=first.ids,
    )
    assert said(again) == ""


@pytest.mark.parametrize("mode", [None, "chat"])
def test_a_complete_answer_cannot_go_on(mode):
    first, session = start(f"ab{EOS}")
    list(first)
    with pytest.raises(InvalidInput, match="complete"):
        generate(
            session,
            BYTES,
            [5],
            sampler=Sampler(GREEDY),
            max_tokens=1,
            begun=first.ids,
            thinking_mode=mode,
        )
    with pytest.raises(InvalidInput, match="complete"):
        generate(
            session,
            BYTES,
            [5],
            sampler=Sampler(GREEDY),
            max_tokens=1,
            begun=BYTES.encode("a STOP"),
            stop=["STOP"],
        )

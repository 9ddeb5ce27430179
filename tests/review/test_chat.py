"""A chat model over HTTP: what it is asked, what it answers, and servers that mean no good."""

import json
import time

import pytest
from chat_server import completion, replying, serving

from forkpoint.errors import ForkpointError
from forkpoint.records import Problem
from forkpoint.review.chat import ChatSettings, chat_models, chat_proposer, unfenced
from forkpoint.review.repair import ProposalError

PROBLEM = Problem(task="arithmetic", key="0", prompt="3+4*2=?\n", answer="1414")
FEEDBACK = "The step was '3+4=8;'."


def ask(url, **changes):
    settings = ChatSettings(**({"url": url, "model": "m", "timeout": 5.0} | changes))
    return chat_proposer(settings)(PROBLEM, "3+4=7;", FEEDBACK)


def test_what_is_asked_and_answered():
    with serving(replying(completion("7*2=14;"))) as (url, seen):
        assert ask(f"{url}/", api_key="secret") == "7*2=14;"
    path, headers, body = seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["stream"]) == ("m", False)
    system, user = body["messages"]
    assert system["role"] == "system"
    told = json.loads(user["content"])
    assert told == {"problem": "3+4*2=?\n", "solution_so_far": "3+4=7;", "failed_step": FEEDBACK}
    assert "1414" not in json.dumps(body)


def test_no_key_is_sent_where_there_is_none():
    with serving(replying(completion("x"))) as (url, seen):
        ask(url)
    assert "Authorization" not in seen[0][1]


def test_messages_are_sent_as_they_are():
    chat = Problem(task="t", key="0", prompt=({"role": "user", "content": "hi"},), answer="1")
    with serving(replying(completion("x"))) as (url, seen):
        chat_proposer(ChatSettings(url=url, model="m"))(chat, "", "")
    assert json.loads(seen[0][2]["messages"][1]["content"])["problem"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("```\n7*2=14;\n```", "7*2=14;"),
        ("Here:\n```text\na\nb\n```\nmore", "a\nb"),
        ("``` x ```", "x"),
        ("a ``` b", "a ``` b"),
    ],
)
def test_a_fenced_block(text, kept):
    assert unfenced(text) == kept
    with serving(replying(completion(text))) as (url, _):
        assert ask(url) == kept


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"oops", 500, "status 500"),
        (completion("x"), 429, "status 429"),
        (b"", 302, "status 302"),
        (b"", 204, "status 204"),
        (b"<html>no</html>", 200, "not a chat completion"),
        (b"", 200, "not a chat completion"),
        (b"\xff\xfe\x00", 200, "not a chat completion"),
        (b"[" * 50000, 200, "not a chat completion"),
        (b"1" * 50000, 200, "not a chat completion"),
        ([], 200, "not a chat completion"),
        ({"choices": []}, 200, "not a chat completion"),
        ({"choices": {"0": 1}}, 200, "not a chat completion"),
        ({"choices": [{"message": None}]}, 200, "not a chat completion"),
        (completion(None), 200, "content is no text"),
        (completion(["x"]), 200, "content is no text"),
        (completion("x" * 70000), 200, "longer than 65536 bytes"),
    ],
)
def test_answers_that_are_none(body, status, reason):
    with serving(replying(body, status)) as (url, _), pytest.raises(ProposalError, match=reason) as caught:
        ask(url, api_key="secret")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_body_that_is_cut_off():
    with (
        serving(replying(completion("x"), length=9999)) as (url, _),
        pytest.raises(ProposalError, match="not be asked"),
    ):
        ask(url)


def silent(handler, over):
    over.wait(10)


def dripping_head(handler, over):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not over.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def dripping_body(handler, over):
    handler.send_response(200)
    handler.end_headers()
    while not over.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def dripping_chunks(handler, over):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not over.wait(0.02):
        handler.wfile.write(b"1\r\nx\r\n")
        handler.wfile.flush()


@pytest.mark.parametrize("answer", [silent, dripping_head, dripping_body, dripping_chunks])
def test_a_server_that_never_ends_is_left_in_time(answer):
    with serving(answer) as (url, _):
        begun = time.monotonic()
        with pytest.raises(ProposalError, match=r"no whole answer within 0\.3 seconds"):
            ask(url, timeout=0.3)
        assert time.monotonic() - begun < 3


def flooding(handler, over):
    handler.send_response(200)
    handler.end_headers()
    while not over.is_set():
        handler.wfile.write(b"x" * 65536)


def garbage(handler, over):
    handler.wfile.write(b"\x00\x01 not http at all\r\n\r\n")


def endless_headers(handler, over):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (flooding, "longer than 65536 bytes"),
        (garbage, "could not be asked: BadStatusLine"),
        (endless_headers, "could not be asked: HTTPException"),
        (lambda handler, over: None, "could not be asked: RemoteDisconnected"),
    ],
)
def test_servers_that_talk_nonsense(answer, reason):
    with serving(answer) as (url, _), pytest.raises(ProposalError, match=reason):
        ask(url)


def test_nobody_is_there():
    with serving(silent) as (url, _):
        pass
    with pytest.raises(ProposalError, match="could not be asked: ConnectionRefusedError"):
        ask(url)


@pytest.mark.parametrize(
    "changes",
    [
        *({"url": url} for url in ("localhost:8000", "file:///etc/passwd", "http://", "http://[::1/v1", "http://:80")),
        *({"url": url} for url in ("http://h:abc/v1", "http://h:99999", "http://u:p@h/v1", "http://h/v1?key=1")),
        {"timeout": 0},
        {"max_bytes": 0},
    ],
)
def test_settings_that_cannot_work(changes):
    with pytest.raises(ForkpointError, match="chat: "):
        chat_proposer(ChatSettings(**({"url": "http://h/v1", "model": "m"} | changes)))


@pytest.mark.parametrize("text", ["localhost", "http://h/v1", "#m", "http://h/v1#", "http://h/v1#policy", "ftp://h#m"])
def test_a_name_of_a_model_that_is_none(text):
    with pytest.raises(ForkpointError, match=r"--chat = '|chat: url = '"):
        chat_models(text, where="--chat")


def test_the_key_of_the_environment_is_sent(monkeypatch):
    monkeypatch.setenv("FORKPOINT_CHAT_KEY", "secret")
    assert chat_models("", where="--chat") == {}
    with serving(replying(completion("7;"))) as (url, seen):
        ((name, proposer),) = chat_models(f"{url}#wise", where="--chat").items()
        assert (name, proposer(PROBLEM, "", FEEDBACK)) == ("wise", "7;")
    assert seen[0][1]["Authorization"] == "Bearer secret"

"""Fixes from any model behind an OpenAI-compatible chat address, such as a local vLLM or SGLang server.

Whatever the server does, slow, broken or hostile, comes back as one `ProposalError`.  Its words are text and nothing
more: they are bounded in length here, and read by the policy's tokenizer later.
"""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from forkpoint.errors import ForkpointError
from forkpoint.records import Problem
from forkpoint.review.repair import POLICY, SIBLING, SOLVER, ProposalError, Proposer

INSTRUCTIONS = (
    "You repair one step of a written solution. You get a problem, the solution as far as it is right, and what is "
    "known of the step that failed. Answer with the one next step alone, in exactly the notation of the solution: no "
    "explanation, no quotation marks, nothing after the step, and never the final answer unless the step is the last."
)
KEY = "FORKPOINT_CHAT_KEY"
"""The environment variable that holds the key of a server that asks for one."""
CHUNK = 8192
"""Bytes read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """Where a chat model is, and how long it may take."""

    url: str
    """Base address such as `http://localhost:8000/v1`; `/chat/completions` is added."""
    model: str
    api_key: str = ""
    """Sent as a bearer token; never shown."""
    timeout: float = 30.0
    """Seconds from the request to the last byte of the answer."""
    max_bytes: int = 65536
    """Of the answer; a longer one is refused unread."""
    max_tokens: int = 256
    """Asked of the model."""
    temperature: float = 0.7


def chat_models(text: str, *, where: str) -> dict[str, Proposer]:
    """The proposer of `URL#MODEL` under the model's name, with the key of the environment; empty for an empty text.

    Raises:
        ForkpointError: a text that is none; names `where` it stands.
    """
    if not text:
        return {}
    url, _, model = text.partition("#")
    if not url or not model or model in (POLICY, SIBLING, SOLVER):
        raise ForkpointError(f"{where} = '{text}' must be URL#MODEL, such as http://localhost:8000/v1#qwen.")
    return {model: chat_proposer(ChatSettings(url=url, model=model, api_key=os.environ.get(KEY, "")))}


def chat_proposer(settings: ChatSettings) -> Proposer:
    """A proposer that asks the model for one step.

    Raises:
        ForkpointError: an address that is none, or bounds that leave no time or no room.
    """
    if not _is_address(settings.url):
        raise ForkpointError(
            f"chat: url = '{settings.url}' must begin with http:// or https:// and name a host, without user, password "
            f"or query; a key is read from {KEY}."
        )
    if settings.timeout <= 0 or settings.max_bytes < 1:
        raise ForkpointError(
            f"chat: timeout = {settings.timeout} and max_bytes = {settings.max_bytes} must be above 0."
        )

    def propose(problem: Problem, prefix: str, feedback: str) -> str:
        return _content(_post(settings, _question(settings, problem, prefix, feedback)))

    return propose


def _is_address(url: str) -> bool:
    try:
        place = urlsplit(url)
        named = bool(place.hostname) and place.port != 0
    except ValueError:
        return False
    return named and place.scheme in ("http", "https") and not (place.query or place.fragment or place.username)


def _question(settings: ChatSettings, problem: Problem, prefix: str, feedback: str) -> bytes:
    """The request's body; the reference answer is not in it."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    told = json.dumps({"problem": prompt, "solution_so_far": prefix, "failed_step": feedback})
    body: Mapping[str, Any] = {
        "model": settings.model,
        "messages": [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": told}],
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "stream": False,
    }
    return json.dumps(body).encode()


def _post(settings: ChatSettings, body: bytes) -> bytes:
    """The answer's body.  Raises ProposalError for anything but a whole answer of status 200 in time."""
    place = urlsplit(settings.url)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=settings.timeout)
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    deadline = time.monotonic() + settings.timeout
    watch: threading.Timer | None = None
    try:
        connection.connect()
        # A socket's own timeout begins anew with every byte, so a server that drips would never meet it.
        watch = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, [connection.sock])
        watch.daemon = True
        watch.start()
        connection.request("POST", f"{place.path.rstrip('/')}/chat/completions", body=body, headers=headers)
        with connection.getresponse() as response:
            found = _read(response, settings.max_bytes)
        reason = ""
    except TimeoutError:
        raise ProposalError(_late(settings)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        found, reason = b"", f"the server could not be asked: {type(error).__name__}"
    finally:
        if watch is not None:
            watch.cancel()
        connection.close()
    # Hanging up looks like an end, or like an error, of the server's.
    if time.monotonic() >= deadline:
        raise ProposalError(_late(settings))
    if reason:
        raise ProposalError(reason)
    return found


def _late(settings: ChatSettings) -> str:
    return f"no whole answer within {settings.timeout:g} seconds"


def _hang_up(sock: socket.socket) -> None:
    try:
        # Below TLS, whose own farewell would wait for the server.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    if response.status != http.client.OK:
        raise ProposalError(f"the server answered with status {response.status}")
    pieces, size = [], 0
    while piece := response.read1(CHUNK):
        size += len(piece)
        if size > most:
            raise ProposalError(f"the answer is longer than {most} bytes")
        pieces.append(piece)
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _content(body: bytes) -> str:
    """The text of the first choice.  Raises ProposalError for a body of another form."""
    try:
        found = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ProposalError("the answer is not a chat completion") from None
    if not isinstance(found, str):
        raise ProposalError("the answer's content is no text")
    return unfenced(found)


def unfenced(text: str) -> str:
    r"""What stands in the first fenced block of a text, or all of it.

    >>> unfenced("Sure: ```text\n3+4=7;\n``` done"), unfenced("3+4=7;")
    ('3+4=7;', '3+4=7;')
    """
    parts = text.split("```")
    if len(parts) < 3:
        return text
    head, newline, rest = parts[1].partition("\n")
    return (rest if newline else head).strip()

"""What a mail says, from the text of the mail: subject and readable body, and the thread that it belongs to."""

from __future__ import annotations

import email
import html
import re
from email.header import decode_header, make_header
from email.message import Message

_UNREAD = re.compile(r"(?is)<!--.*?-->|<(script|style)\b.*?</\1\s*>")
_TAG = re.compile(r"(?s)<[a-zA-Z/!?][^>]*>")
_REPLY = re.compile(r"(?i)^\s*((re|fwd?|aw)\s*(\[\d+\])?\s*:|\[[^\]]{1,40}\])\s*")


def read_mail(source: str) -> tuple[str, str]:
    r"""Return what a mail says and the name of its thread.

    Headers but for the subject are left out: they tell where a mail was collected, which is not what it says.

    Args:
        source: The whole mail, with its headers.

    Returns:
        Subject and body, markup taken off, blanks made single; and the subject without answers' marks, list names,
        digits and case, or the start of the body where there is no subject.

    Example:
        >>> read_mail("Subject: Re: [list] Offer 12\nContent-Type: text/html\n\n<p>Buy&nbsp;now</p>")
        ('Re: [list] Offer 12 Buy now', 'offer')
    """
    message = email.message_from_bytes(source.encode("utf-8", errors="replace"))
    subject = _subject(message)
    body = " ".join(_body(message).split())
    return " ".join(f"{subject} {body}".split()), _thread(subject) or _thread(body[:80])


def _subject(message: Message) -> str:
    raw = message.get("Subject", "")
    try:
        return str(make_header(decode_header(raw)))
    except (LookupError, ValueError):  # a charset or an encoded word that does not exist
        return str(raw)


def _body(message: Message) -> str:
    texts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in texts if part.get_content_subtype() != "html"]
    # A mail in both forms says the same twice.
    return "\n".join(_content(part) for part in plain or texts)


def _content(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = _decoded(content, part.get_content_charset())
    if part.get_content_subtype() == "html" or "<html" in text[:2000].lower():
        text = html.unescape(_TAG.sub(" ", _UNREAD.sub(" ", text)))
    return text


def _decoded(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset or "latin-1", errors="replace")
    except LookupError:
        return content.decode("latin-1")


def _thread(subject: str) -> str:
    before = None
    while subject != before:
        before, subject = subject, _REPLY.sub("", subject)
    return " ".join(re.sub(r"[\W\d_]+", " ", subject.lower()).split())

from __future__ import annotations

import pytest

from asymlora.tasks.mails import read_mail


def _mail(*headers: str, body: str) -> str:
    return "\n".join([*headers, "", body])


PARTS = """Subject: Both
Content-Type: multipart/alternative; boundary="edge"

--edge
Content-Type: text/plain; charset="us-ascii"

Plain words.
--edge
Content-Type: text/html

<p>Marked words.</p>
--edge
Content-Type: image/png

picture
--edge--
"""


def test_plain_form_is_taken_where_a_mail_has_both() -> None:
    assert read_mail(PARTS)[0] == "Both Plain words."


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<p>Buy&nbsp;now &amp; save</p>", "Buy now & save"),
        ("<style>p {color: red}</style><SCRIPT>run()</SCRIPT >Seen", "Seen"),
        ("<!-- hidden <b>words</b> -->Seen", "Seen"),
        ('<a href="x"\n title="y">Go</a>', "Go"),
        ("2 < 3 and 4 > 3", "2 < 3 and 4 > 3"),
    ],
)
def test_markup_is_taken_off(body: str, words: str) -> None:
    assert read_mail(_mail("Content-Type: text/html", body=body))[0] == words


def test_headers_other_than_the_subject_are_left_out() -> None:
    mail = _mail("Delivered-To: someone@spam.example", "Subject: Hello", "X-Spam: yes", body="there")
    assert read_mail(mail)[0] == "Hello there"


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        (("Content-Transfer-Encoding: quoted-printable",), "caf=C3=A9 =\nopen", "caf\u00e9 open"),
        (
            ("Content-Type: text/plain; charset=iso-8859-1", "Content-Transfer-Encoding: quoted-printable"),
            "caf=E9",
            "caf\u00e9",
        ),
        (("Content-Transfer-Encoding: base64",), "d29yZHM=", "words"),
        (("Content-Type: text/plain; charset=no-such-set",), "caf\ufffd", "caf\ufffd"),
        (
            ("Content-Type: text/plain; charset=no-such-set", "Content-Transfer-Encoding: quoted-printable"),
            "caf=E9",
            "caf\u00e9",
        ),
    ],
)
def test_encodings_are_undone_and_unknown_ones_do_no_harm(headers: tuple[str, ...], body: str, words: str) -> None:
    assert read_mail(_mail(*headers, body=body))[0] == words


@pytest.mark.parametrize(
    ("subject", "shown"),
    [("=?iso-8859-1?q?caf=E9?=", "caf\u00e9"), ("=?no-such-set?q?word?=", "=?no-such-set?q?word?="), ("", "")],
)
def test_encoded_subject_is_read(subject: str, shown: str) -> None:
    assert read_mail(_mail(f"Subject: {subject}", body=""))[0] == shown


@pytest.mark.parametrize(
    "subject", ["Lunch at 12", "Re: lunch at 13", "FWD: [list] Re[2]: Lunch, at!", "  re: RE: lunch at", "AW: Lunch at"]
)
def test_answers_and_copies_are_of_one_thread(subject: str) -> None:
    assert read_mail(_mail(f"Subject: {subject}", body="any"))[1] == "lunch at"


def test_mail_without_a_subject_goes_by_how_it_begins() -> None:
    assert read_mail(_mail("X: y", body="Dear friend, 7"))[1] == "dear friend"


def test_mail_without_words_has_none() -> None:
    assert read_mail(_mail("X: y", body=" ")) == ("", "")

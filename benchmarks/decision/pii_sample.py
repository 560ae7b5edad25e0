"""A small synthetic sample of personal data in the forms that people write it in, and of sentences
that have none but look as if. All of it is made up here; numbers are those reserved for examples
where there are such."""

from __future__ import annotations

from typing import Final

MARKED: Final = {
    "EMAIL_ADDRESS": (
        "Please write to [ann.lee@example.com] before noon.",
        "My address is [j+news@mail.example.co.uk], not the old one.",
        "Send it to: [o'brien@example.org].",
        "cc [m.müller@example.de], thanks",
        "<[first_last99@example.io]>",
        "mailto:[support@xn--bcher-kva.example.com]",
        "[A.B@EXAMPLE.COM] bounced twice.",
        "Reach me at ann dot lee at example dot com? No: [al@example.net]!",
    ),
    "PHONE_NUMBER": (
        "Call [+44 20 7946 0958] after six.",
        "Ring [(415) 555-2671] and ask for Jo.",
        "mobile: [415-555-2671]",
        "Tel. [+49 30 901820]",
        "My number is [07700 900123].",
        "+1-[415-555-2671] or nothing".replace("+1-[", "[+1-"),
        "Fax [+33 1 42 68 53 00] works.",
        "whatsapp [+91 98765 43210] please",
        "text me on [4155552671]",
        "[030 901820] is the Berlin office",
    ),
    "CREDIT_CARD": (
        "The card is [4111 1111 1111 1111], valid till May.",
        "amex [3782 822463 10005]",
        "[5555-5555-5555-4444] was charged twice",
        "number:[4012888888881881]",
        "Discover [6011 1111 1111 1117].",
    ),
    "IBAN_CODE": (
        "IBAN [DE89 3704 0044 0532 0130 00] please.",
        "to [GB29NWBK60161331926819]",
        "Konto [FR14 2004 1010 0505 0001 3M02 606].",
        "[NL91ABNA0417164300] is mine",
        "iban: [CH9300762011623852957]",
    ),
    "IP_ADDRESS": (
        "The camera is at [192.168.1.24].",
        "ssh [203.0.113.7] -l root",
        "Blocked [2001:db8::8a2e:370:7334] yesterday.",
        "http://[198.51.100.9]:8080/login",
    ),
    "MAC_ADDRESS": ("Its MAC is [00:1A:2B:3C:4D:5E].", "wifi [00-1a-2b-3c-4d-5e] again"),
    "US_SSN": (
        "My social is [536-22-1234].",
        "SSN [219-09-9998], born in May",
        "social security number [536 22 1234]",
        "ssn: [536221234]",
    ),
    "UK_NINO": ("NI number [AB 12 34 56 C].", "nino [AB123456C] on the form"),
    "PERSON": (
        "[Ann Lee] will call you back.",
        "Tell [Mr Okafor] that I am late.",
        "I am [Jo], by the way.",
        "[Maria García] lives next door.",
    ),
    "ADDRESS": (
        "We moved to [12 Baker Street, London].",
        "Send it to [1600 Pine Ave, Apt 4, Springfield].",
        "I live in [Hauptstraße 5, 10827 Berlin].",
    ),
}
"""Texts by kind; what is personal stands in brackets, which are not part of the text."""

PLAIN: Final = (
    "The battery lasted 10 hours and 45 minutes.",
    "I paid 1299.99 for it in 2024, and 12 % tax.",
    "Order 4815162342 has not arrived.",
    "Version 3.11.4 fixes bug 20817.",
    "On 2024-05-17 at 12:30 it stopped.",
    "The model A1234-B is better than the C5678.",
    "It weighs 3,450 g and is 20 x 30 x 45 cm.",
    "Chapter 12, pages 345-367.",
    "The score was 6-3, 7-5, 6-4.",
    "Temperature fell from 38.5 to 36.6.",
    "Ref. 2023/11/0042-X",
    "ISBN 978-3-16-148410-0",
    "Turn left after 400 m, then 1.2 km straight.",
    "What a lovely day.",
    "The screen is too dark @ night.",
    "1 2 3 4 5 6 7 8 9 10",
    "Ratio 16:9, 60 Hz, 3840x2160.",
    "My flight is LH 1234 on the 5th.",
    "Room 101, floor 3.",
    "e = 2.718281828459045",
)


def marked(text: str) -> tuple[str, int, int]:
    """The text without its brackets, and where what stood between them begins and ends."""
    start = text.index("[")
    end = text.index("]") - 1
    return text.replace("[", "", 1).replace("]", "", 1), start, end

"""Figures as people read them: percentages, intervals, durations, money. Shared by all reports."""

from __future__ import annotations

from html import escape


def percent(rate: float, digits: int = 1) -> str:
    """A rate as a percentage."""
    return f"{100 * rate:.{digits}f} %"


def signed(number: float) -> str:
    """With its sign and one digit after the point."""
    return f"{number:+.1f}".replace("-", "−")


def interval(ends: tuple[float, float]) -> str:
    """An interval of rates as percentages."""
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f} %"


def threshold(score: float) -> str:
    """A threshold; one close to 1 by what is missing, so that it is not rounded to 1."""
    return f"1 − {1 - score:.2g}" if 0.999 < score < 1 else f"{score:.4f}"


def duration(milliseconds: float) -> str:
    """Milliseconds, or seconds from ten of them."""
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:,.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def money(usd: float) -> str:
    """Dollars with as many digits as it takes to see something."""
    return f"${usd:.2f}" if usd >= 1 or usd == 0 else f"${usd:.2g}"


def printable(text: str) -> str:
    """Without control characters: a terminal would act on them."""
    return "".join(character if character.isprintable() else " " for character in text)


def html(text: str) -> str:
    """Escaped for HTML, and with no line break between a number and its unit."""
    return escape(text).replace(" %", "&nbsp;%").replace("n = ", "n&nbsp;=&nbsp;")

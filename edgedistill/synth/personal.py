"""Patterns of personal data in text: e-mail and IP addresses, phone, card and social security numbers, IBANs.

Numbers with a check sum must keep it (Luhn, ISO 13616). A pattern is a hint to look, no proof that a person is meant.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

Check = Callable[[str], bool]
_DIGIT = re.compile(r"\d")


def personal_data(text: str) -> list[tuple[str, str]]:
    """(what, where it stands, masked but for its first two characters) of each pattern, in order of kinds.

    What was found as one kind is not told again as another.
    """
    found = []
    for name in _possible(text):
        pattern, check = PATTERNS[name]
        known = len(found)
        found += [(name, _masked(match[0])) for match in pattern.finditer(text) if check(match[0])]
        if len(found) > known:
            text = pattern.sub(lambda match, check=check: " " if check(match[0]) else match[0], text)
    return found


def masked(text: str) -> str:
    """`text` with each of its patterns masked but for two characters, fit to be shown."""
    for name in _possible(text):
        pattern, check = PATTERNS[name]
        text = pattern.sub(lambda match, check=check: _masked(match[0]) if check(match[0]) else match[0], text)
    return text


def _possible(text: str) -> list[str]:
    """The kinds whose marks the text has: most texts have none, and looking for marks is far quicker than for kinds."""
    digits = _DIGIT.search(text) is not None
    return [name for name in PATTERNS if ("@" in text if name == "email" else digits)]


def _masked(text: str) -> str:
    return text[:2] + re.sub(r"\w", "*", text[2:])


def _always(text: str) -> bool:
    return True


def _is_card(text: str) -> bool:
    """Thirteen to nineteen digits that keep Luhn's check sum (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """The remainder of an IBAN's rearranged digits by 97 is 1 (ISO 13616)."""
    plain = re.sub(r"\s", "", text).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15


PATTERNS: dict[str, tuple[re.Pattern[str], Check]] = {
    "email": (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), _always),
    "iban": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    "card": (re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), _is_card),
    "ip-address": (re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"), _is_address),
    "us-ssn": (re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"), _always),
    "phone": (
        re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
                   r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})\b"),
        _is_phone,
    ),
}  # fmt: skip

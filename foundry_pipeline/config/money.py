"""Amounts of money as a person writes them: a plain number, or a number with its currency.

A currency is a word to be shown and compared, nothing is converted: dollars, euros, credits, tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from foundry_pipeline.config.fields import Block, Reader, number, refuse, text
from foundry_pipeline.config.yaml_source import Findings, Item

LEAST = 1e-9
"""Amounts are counted in billionths: a smaller one would count as nothing."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount from 0. `currency` is empty where nobody named it."""

    amount: Decimal
    currency: str = ""

    @property
    def billionths(self) -> int:
        """The amount as a whole number, to be added up exactly."""
        return int((self.amount * 10**9).to_integral_value())

    @classmethod
    def of_billionths(cls, billionths: int, currency: str = "") -> Money:
        """The inverse of `billionths`."""
        return cls(Decimal(billionths) / 10**9, currency)

    def __str__(self) -> str:
        plain = f"{self.amount.normalize():,f}"
        return f"{plain} {self.currency}".strip()


def money(most: float) -> Reader[Money]:
    """`0.002`, or `{amount: 0.002, currency: USD}`: from 0 to `most`, and not between 0 and a billionth."""
    read_amount = _amount(most)

    def read(item: Item, found: Findings) -> Money | None:
        if not isinstance(item.value, Mapping):
            amount = read_amount(item, found)
            return None if amount is None else Money(amount)
        block = Block(item.value, item, found)
        amount = block.read("amount", read_amount, required=True)
        currency = block.read("currency", text(20))
        block.close()
        return None if amount is None else Money(amount, (currency or "").strip())

    return read


def _amount(most: float) -> Reader[Decimal]:
    read_number = number(least=0, most=most)

    def read(item: Item, found: Findings) -> Decimal | None:
        value = read_number(item, found)
        if value is None:
            return None
        if 0 < value < LEAST:
            refuse(item, found, f"expected 0, or a number from 0.000000001; got {item.text}")
            return None
        return Decimal(str(value))

    return read

"""`python -m benchmarks [--quick] [NAME ...]`: run the benchmarks and print one table of ratios.

`--quick` measures calls, rates and memory for a look only: fewer rows and rounds, shorter rates.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks import Ratio

MODULES = ("calls", "rates", "memory", "decode", "exports")
LONG = ("calls", "rates", "memory")
QUICK = "--quick"


def main() -> None:
    """Run the named modules, all when none is named."""
    rows = []
    for name in [name for name in sys.argv[1:] if name != QUICK] or MODULES:
        print(f"measuring {name} ...", file=sys.stderr)
        options = {"quick": True} if QUICK in sys.argv and name in LONG else {}
        rows += importlib.import_module(f"benchmarks.{name}").run(**options)
    print(f"{'what':<38} {'ratio':>8} {'from':>8} {'to':>8}  {'goal':<22} numerator / denominator")
    for row in rows:
        print(_line(row))


def _line(row: Ratio) -> str:
    least, most = row.spread
    return (
        f"{row.name:<38} {row.value:>8.3f} {least:>8.3f} {most:>8.3f}  {row.goal:<22} "
        f"{row.numerator} / {row.denominator}"
    )


if __name__ == "__main__":
    main()

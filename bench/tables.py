"""tables.py - docs/figures.md from build/bench/report.json: the bars, the peers, and what was noted, as last measured by `make bench`.

It says on what machine and under what load: figures of a busy machine are not to be taken for those of an idle one.
"""

import os

from plots import of

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "docs", "figures.md")
PEER_COLUMNS = ("freeze, ms", "silence, ms", "own clock, ms", "work", "took, ms", "MB")


def row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def head(cells):
    return row(cells) + row("---" for _ in cells)


def bars_table(bars):
    lines = [row((b["bar"], b["name"], f"{b['value']:.2f} {b['unit']}", f"{b['limit']:.2f}", "yes" if b["holds"] else "**no**")) for b in bars]
    return head(("bar", "what", "value", "limit", "holds")) + "".join(lines)


def peers_table(report):
    lines = [row((p["load"], p["way"], f"{p['freeze_us'] / 1e3:.2f}", f"{p['silence_us'] / 1e3:.2f}", f"{p['own_gap_us'] / 1e3:.2f}", f"{p['work']:.2f}",
                  f"{p['took_ms']:.0f}", f"{p['bytes'] / 1e6:.2f}")) for p in of(report, "peer")]
    lines += [row((c["load"], "COLO", ", ".join(f"{s / 1e3:.1f}" for s in c["stops_us"]), "", "", "", "", c["end"])) for c in of(report, "colo")]
    return head(("dirtying", "way", *PEER_COLUMNS)) + "".join(lines)


def write(report):
    parts = "".join(f"- {p['name']}: {p['at']}, {p['seconds']:.0f} s, load of the machine {p['load_before']:.1f} before, {p['load_after']:.1f} after, "
                    f"{p['processors']} processors\n" for p in report["parts"])
    notes = "".join(f"- {note}\n" for note in report["notes"])
    text = (f"# Figures\nMade by `make bench`; what they mean stands in [evaluation.md](evaluation.md).\n\n{parts}\n## Bars\n{bars_table(report['bars'])}"
            f"\n## Peers\n{peers_table(report)}\n## Noted\n{notes}")
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(text)
    print(os.path.relpath(PATH), flush=True)

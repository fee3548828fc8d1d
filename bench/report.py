"""report.py - figures, bars and the one report of the bench.

A part is a module with measure(out) -> Part; what it found is kept in build/bench/parts/NAME.json, so that a run can go on where another one ended.
build/bench/report.json is made of all of them: bars [{bar, name, value, limit, unit, holds}], raw (one object a measurement), parts [{name, at,
seconds, load_before, load_after, processors}]: figures are compared only within a part, so that both sides of every ratio were measured in one run.
"""

import contextlib
import json
import os
import statistics
import time
import traceback

median = statistics.median
PART_KEYS = ("name", "at", "seconds", "load_before", "load_after", "processors")


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


class Part:
    """What one part of the bench found."""

    def __init__(self, name):
        self.name, self.bars, self.raw, self.notes = name, [], [], []
        self.started, self.load_before = time.monotonic(), os.getloadavg()[0]

    def bar(self, number, name, value, limit, unit, at_least=False):
        holds = value >= limit if at_least else value <= limit
        self.bars.append({"bar": number, "name": name, "value": round(value, 3), "limit": round(limit, 3), "unit": unit, "holds": holds})
        self.say(f"{number} {name}: {value:.2f} {unit} (bar: {'at least ' if at_least else ''}{limit:g}) {'holds' if holds else 'DOES NOT HOLD'}")

    def note(self, text):
        """A figure without a limit, or why there is none."""
        self.notes.append(text)
        self.say(text)

    @contextlib.contextmanager
    def attempt(self, what):
        """A case that fails is a note; the cases after it are measured."""
        try:
            yield
        except Exception as error:      # noqa: BLE001 - whatever it was
            traceback.print_exc()
            self.note(f"{what}: NOT MEASURED: {(str(error).strip() or type(error).__name__).splitlines()[0]}")

    def keep(self, what, **values):
        self.raw.append({"what": what, **values})

    def say(self, text):
        print(f"  [{self.name} {time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def write(self, out):
        folder = os.path.join(out, "parts")
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, f"{self.name}.json"), {
            "name": self.name, "at": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": round(time.monotonic() - self.started, 1),
            "load_before": self.load_before, "load_after": os.getloadavg()[0], "processors": os.cpu_count(),
            "bars": self.bars, "raw": self.raw, "notes": self.notes})


def write_json(path, value):
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    os.rename(f"{path}.new", path)


def read_part(out, name):
    """What a part found last, or None."""
    path = os.path.join(out, "parts", f"{name}.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_report(out, names):
    """From all parts of these names that were ever measured; the bars."""
    found = [part for part in (read_part(out, name) for name in names) if part]
    report = {"bars": [bar for part in found for bar in part["bars"]], "notes": [note for part in found for note in part["notes"]],
              "parts": [{key: part[key] for key in PART_KEYS} for part in found],
              "raw": [{"part": part["name"], **raw} for part in found for raw in part["raw"]]}
    write_json(os.path.join(out, "report.json"), report)
    return report

"""plots.py - docs/plots/*.svg from build/bench/report.json, by gnuplot: `make bench`, or `bench/run plots` alone.

A plot whose part was not measured is left as it is.
"""

import os
import subprocess

from report import median

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "docs", "plots")
HEAD = """set terminal svg size 760,440 font "sans,12" background "white"
set output "{path}"
set title "{title}"
set xlabel "{x}"
set ylabel "{y}"
set grid lc rgb "#dddddd"
set key outside right top
"""


def gnuplot(name, title, x, y, series, settings="", style="linespoints pt 7 ps 0.6 lw 2"):
    """One SVG; series: {name: [(x, y), ...]}."""
    os.makedirs(FOLDER, exist_ok=True)
    blocks = [f"$d{i} << EOD\n" + "".join(f"{a} {b}\n" for a, b in points) + "EOD\n" for i, points in enumerate(series.values())]
    lines = [f'$d{i} using 1:2 with {style} title "{label}"' for i, label in enumerate(series)]
    script = "".join(blocks) + HEAD.format(path=os.path.join(FOLDER, f"{name}.svg"), title=title, x=x, y=y) + settings + "\nplot " + ", ".join(lines) + "\n"
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def of(report, what):
    return [raw for raw in report["raw"] if raw["what"] == what]


def grouped(rows, key, x, y):
    """{key of a row: [(x, y), ...]}, in order of x."""
    series = {}
    for row in rows:
        series.setdefault(row[key], []).append((row[x], row[y]))
    return {name: sorted(points) for name, points in series.items()}


LOAD_X = {"idle": 1, "500 pages/s": 2, "5000 pages/s": 3}


def pause_with_peers(report):
    rows = [{**row, "x": LOAD_X[row["load"]], "ms": row["freeze_us"] / 1e3} for row in of(report, "peer") if row["way"] != "nothing"]
    for row in of(report, "colo"):
        if len(row["stops_us"]) > 1:
            rows.append({"way": "COLO (until it hangs)", "x": LOAD_X[row["load"]], "ms": median(row["stops_us"][1:]) / 1e3})
    return grouped(rows, "way", "x", "ms")


def slowdown(report):
    rows = [{**row, "name": f"{row['pages']} pages" + ("" if row["hot_pages"] else ", no hot pages")}
            for row in of(report, "slowdown")]
    return grouped(rows, "name", "interval", "share")


def bytes_(report):
    rows = [{**row, "name": f"{row['program']}, {kind}", "mb": row[f"{kind}_bytes"] / 1e6}
            for row in of(report, "program") if row["raw_bytes"] for kind in ("raw", "sent")]
    return grouped(rows, "name", "interval", "mb")


def recovery(report):
    rows = [{"mib": {"256M": 256, "4G": 4096}[row["memory"]], "ms": row["running_ms"] - row["lost_ms"], "name": "detection to all running"}
            for row in of(report, "recovery")]
    return grouped(rows, "name", "mib", "ms")


def growth(report):
    rows = [{"vms": row["vms"], "y": row[key] / unit, "name": name} for row in of(report, "growth")
            for name, key, unit in (("commit, ms", "commit_ms", 1), ("pause of a VM, ms", "pause_us", 1e3),
                                    ("CPU of all agents, % of a core", "cpu_percent", 1))]
    rows += [{"vms": row["vms"], "y": row["commit_ms"], "name": "commit by the costs, ms"} for row in of(report, "scale-here")]
    return grouped(rows, "name", "vms", "y")


def scale(report):
    rows = [{"vms": row["vms"], "ms": row[key] / unit, "name": f"{name}, {row['link_mbit'] // 1000} Gb/s"} for row in of(report, "scale")
            for name, key, unit in (("commit", "commit_ms", 1), ("pause of a VM", "pause_us", 1e3))]
    return grouped(rows, "name", "vms", "ms")


def timeline(report):
    rows = [row for row in of(report, "recovery") if row["memory"] == "256M"]
    return {"a datagram's answer": rows[-1]["timeline"]} if rows else {}


PLOTS = (
    ("pause", pause_with_peers, "Freeze of one checkpoint, by QEMU's STOP and RESUME (medians)", "dirty pages a second", "ms",
     'set logscale y\nset xtics ("idle" 1, "500" 2, "5000" 3)\nset xrange [0.8:3.2]'),
    ("slowdown", slowdown, "Work of a guest that writes a set of pages at full speed", "interval, ms", "share of the unprotected work",
     "set logscale x\nset yrange [0:1.1]"),
    ("bytes", bytes_, "Dirty bytes and what was sent of them", "interval, ms", "MB in the run", "set logscale xy"),
    ("recovery", recovery, "Recovery against the RAM of one lost VM", "MiB", "ms", "set logscale x 2\nset yrange [0:*]"),
    ("growth", growth, "Growth, on one machine of two cores", "VMs", "", "set logscale x 2\nset yrange [0:*]"),
    ("scale", scale, "By these costs: 2 to 32 hosts of 16 cores", "VMs", "ms", "set logscale x 2\nset yrange [0:*]"),
    ("timeline", timeline, "A host is killed at 0, as seen from outside", "asked, ms after the kill", "round trip, ms", ""))


def draw(report):
    for name, choose, title, x, y, settings in PLOTS:
        series = choose(report)
        if series:
            gnuplot(name, title, x, y, series, settings, "points pt 7 ps 0.3" if name == "timeline" else "linespoints pt 7 ps 0.6 lw 2")
            print(f"docs/plots/{name}.svg", flush=True)

"""test_campaign.py - the campaign of real attacks (tests/campaign/run) in short: every promise after each of some faults, with a fixed seed."""

import json
import os
import subprocess
import sys

import pytest

import vcft
from conftest import skip_without_lab

CAMPAIGN = os.path.join(vcft.REPOSITORY, "tests", "campaign", "run")
FAULTS, SEED = 3, 1


@pytest.mark.limit(900)
def test_campaign(tiny_guest, demo_guest):
    skip_without_lab()
    try:
        done = subprocess.run([sys.executable, CAMPAIGN, "--faults", str(FAULTS), "--seed", str(SEED), "--out", "campaign-short", "--lab", vcft.LAB_NAME],
                              check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finally:
        vcft.Lab(0)("down")
    assert done.returncode == 0, done.stdout
    with open(os.path.join(vcft.REPOSITORY, "build", "campaign-short", "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    assert (report["faults"], report["violations"], report["lost"], report["seed"]) == (FAULTS, 0, 0, SEED)
    assert len(report["rows"]) == FAULTS and all(row["whole_s"] and not row["violations"] for row in report["rows"])
    assert report["acknowledged"] > FAULTS

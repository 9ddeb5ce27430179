"""Records to pages: the arms of a run side by side, and one self-contained HTML file."""

from forkpoint.report.arms import Arm, arms, arms_json, arms_table
from forkpoint.report.page import render_report, write_report
from forkpoint.report.statistics import Difference, paired_difference, wilson_interval
from forkpoint.report.summary import run_summary

__all__ = [
    "Arm",
    "Difference",
    "arms",
    "arms_json",
    "arms_table",
    "paired_difference",
    "render_report",
    "run_summary",
    "wilson_interval",
    "write_report",
]

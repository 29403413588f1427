"""Reports: a study's store becomes numbers, sentences, tables and one page; no live model is looked at."""

from evenkeel.report._between import BetweenStudies, compare_studies
from evenkeel.report._export import FORMATS, export_figures
from evenkeel.report._findings import findings, progress
from evenkeel.report._frames import LoadedStudy, load_study
from evenkeel.report._judge import Judged
from evenkeel.report._page import write_report, write_report_on_scores
from evenkeel.report._results import Row, results
from evenkeel.report._tables import results_csv, results_latex, results_markdown, results_table
from evenkeel.report._verdicts import MethodVerdict, verdicts

__all__ = [
    "FORMATS",
    "BetweenStudies",
    "Judged",
    "LoadedStudy",
    "MethodVerdict",
    "Row",
    "compare_studies",
    "export_figures",
    "findings",
    "load_study",
    "progress",
    "results",
    "results_csv",
    "results_latex",
    "results_markdown",
    "results_table",
    "verdicts",
    "write_report",
    "write_report_on_scores",
]

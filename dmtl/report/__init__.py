"""Reports: `report_from_runs` turns finished runs into one self-contained HTML page;

`write_report` writes any `ReportData`.
"""

from dmtl.report.data import Cell, Chart, MetricRow, ReportData, SamplePictures, SampleRow
from dmtl.report.html import write_report
from dmtl.report.run import report_from_runs

__all__ = [
    "Cell",
    "Chart",
    "MetricRow",
    "ReportData",
    "SamplePictures",
    "SampleRow",
    "report_from_runs",
    "write_report",
]

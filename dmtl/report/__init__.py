"""Read finished runs, compare them, and show them as pages and tables.

`report_from_runs` writes a page about runs, `write_report` one about any `ReportData`; `dmtl.report.paper`
sets runs next to the published results.
"""

from dmtl.report.html.content import Cell, Chart, MetricRow, ReportData, SamplePictures, SampleRow
from dmtl.report.html.report import report_from_runs
from dmtl.report.html.sections import write_report

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

"""Read finished runs, compare them, and show them as pages and tables.

`compare` reads runs, `write_page` writes a page about them, `write_report` one about any `ReportData`;
`dmtl.report.paper` sets runs next to the published results.
"""

from dmtl.report.html.content import Cell, Chart, MetricRow, ReportData, SamplePictures, write_report
from dmtl.report.html.report import write_page
from dmtl.report.runs.comparison import compare

__all__ = [
    "Cell",
    "Chart",
    "MetricRow",
    "ReportData",
    "SamplePictures",
    "compare",
    "write_page",
    "write_report",
]

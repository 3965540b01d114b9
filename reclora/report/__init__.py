"""The page of a run: did the adapters help, where, and how sure is that, in one HTML file.

It opens offline, in light and dark, and prints. Everything on it is computed from the frames of
`Report`. Names of segments, models and settings come from a log that anybody may have written: in
the page, in Markdown and in CSV they are inert text, whatever they spell.
"""

from reclora.report.contents import TO_TELL, Report, Section
from reclora.report.figures import plotly_figures
from reclora.report.markdown import markdown
from reclora.report.page import write_report
from reclora.report.saved import read_report
from reclora.report.sheets import write_csv

__all__ = [
    "TO_TELL",
    "Report",
    "Section",
    "markdown",
    "plotly_figures",
    "read_report",
    "write_csv",
    "write_report",
]

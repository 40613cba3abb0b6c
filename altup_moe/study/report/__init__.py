"""The page of a study: pure statistics (models, front, summary), and what lays them out.

That is words (stdout), page, pictures and tables.
"""

from altup_moe.study.report.command import report_command

__all__ = ["report_command"]

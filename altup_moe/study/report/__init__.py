"""The report of a study: pure statistics (models, statistics, summary), and the modules that lay them out.

Those are text (stdout), page, pictures and tables.
"""

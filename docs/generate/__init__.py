"""Writes the pages of the documentation that repeat what the code or committed data says.

    python -m docs.generate           writes the pages that differ
    python -m docs.generate --check   names them, exit code 1

`tests/docs/test_generated_pages.py` compares. A page is a function without arguments that returns its text.
"""

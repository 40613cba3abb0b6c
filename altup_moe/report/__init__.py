"""What HTML pages of results share: the document, tables, number formats, and the script that draws figures."""

"""What came out of a run: one page, one Markdown file, one table."""

"""Tables of measured results, built once from JSON: Markdown for the docs, HTML for the page."""

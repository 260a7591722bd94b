"""Self-contained HTML pages: their content as plain data, their parts, their templates."""

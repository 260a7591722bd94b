"""Pages that need no second file: their content as plain data, their parts, their templates."""

"""The page that shows a model's predictions in the browser: `dmtl app` (extra `dmtl[app]`)."""

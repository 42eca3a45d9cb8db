"""The page and the `<geneface-avatar>` element (added with the live server)."""

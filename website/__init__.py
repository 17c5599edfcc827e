"""What the docs site is made with: generated pages, sources in pages, formulas, pictures, checks."""

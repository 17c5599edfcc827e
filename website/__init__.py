"""What the docs site is made with: generated pages, sources, formulas, pictures, checks."""

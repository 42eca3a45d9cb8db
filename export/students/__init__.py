"""Small networks that learn from a bundle's large ones."""

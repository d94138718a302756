"""A look at a distilled set: similarity of layers, nearest real images, embeddings."""

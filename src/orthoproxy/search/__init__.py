"""From a trained model to searching: export, embed, index, search, serve."""

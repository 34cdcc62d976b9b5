"""One thin view per architecture (where a Hugging Face model keeps its parts), and the tables of what is supported."""

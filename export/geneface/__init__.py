"""Import of speakers trained with GeneFace."""

"""Speakers that were trained with GeneFace: their files read, compared and imported."""
